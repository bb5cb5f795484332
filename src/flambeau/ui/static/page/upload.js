/** A request whose sending can be watched: `fetch` does not tell how much has left. */

/**
 * @param {(sent: number, whole: number) => void} watch called with bytes, as they leave
 * @returns {(address: string, request: RequestInit) => Promise<Response>} what `fetch` does, for what this page sends
 */
export function watched(watch) {
  return (address, { method, headers, body }) =>
    new Promise((answer, fail) => {
      const request = new XMLHttpRequest();
      request.open(method, address);
      request.responseType = "blob";
      for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
      request.upload.addEventListener("progress", ({ loaded, total }) => watch(loaded, total));
      request.addEventListener("load", () => {
        const lines = request.getAllResponseHeaders().trim().split("\r\n");
        const pairs = lines.filter(Boolean).map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]);
        answer(new Response(request.response, { status: request.status, headers: pairs }));
      });
      request.addEventListener("error", () => fail(new TypeError("the request did not arrive")));
      request.send(body);
    });
}
