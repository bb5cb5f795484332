"""Calling a WSGI application (PEP 3333) with a request that has come whole: how our servers reach Flask."""

import io
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flambeau.http.answer_bytes import RawAnswer
from flambeau.http.heads import Peer, RequestHead

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def call_wsgi(app: "WSGIApplication", environ: dict[str, Any]) -> RawAnswer:
    """Run the application to completion in the calling thread."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    written: list[bytes] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: object = None, /
    ) -> Callable[[bytes], object]:
        started[:] = [(status, headers)]
        return written.append

    chunks: Iterable[bytes] = app(environ, start_response)
    try:
        written.extend(chunks)
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    [(status, headers)] = started
    fields = tuple((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers)
    return RawAnswer(int(status.split(" ", 1)[0]), fields, b"".join(written))


class _View(io.RawIOBase):
    """A long body as a file, without copying it."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        size = min(len(buffer), len(self._view))
        buffer[:size] = self._view[:size]
        self._view = self._view[size:]
        return size


def environ_of(head: RequestHead, peer: Peer, body: bytes | memoryview) -> dict[str, Any]:
    """The WSGI environment of a request."""
    server = peer.server or ("localhost", 80)
    found: dict[str, Any] = {
        "REQUEST_METHOD": head.method,
        "SCRIPT_NAME": peer.prefix,
        "PATH_INFO": head.path.encode("utf-8").decode("latin-1"),
        "QUERY_STRING": head.query,
        "SERVER_NAME": str(server[0]),
        "SERVER_PORT": str(server[1] or 0),
        "SERVER_PROTOCOL": f"HTTP/{head.version}",
        "REMOTE_ADDR": peer.client,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": peer.scheme,
        "wsgi.input": io.BytesIO(body) if isinstance(body, bytes) else io.BufferedReader(_View(body)),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for raw_name, raw_value in head.fields:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name == "content-type":
            found["CONTENT_TYPE"] = value
        elif name not in ("content-length", "transfer-encoding") and "_" not in name:
            key = "HTTP_" + name.upper().replace("-", "_")
            found[key] = f"{found[key]},{value}" if key in found else value
    found["CONTENT_LENGTH"] = str(len(body))
    return found
