"""Call a WSGI application (PEP 3333) with a request whose body is already here: how the ASGI front reaches Flask."""

import io
import sys
from collections.abc import Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

from flambeau.http.access import PASSED

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

AsgiScope = MutableMapping[str, Any]
AsgiHeaders = list[tuple[bytes, bytes]]


def call(app: "WSGIApplication", scope: AsgiScope, body: bytes | memoryview) -> tuple[int, AsgiHeaders, bytes]:
    """Run the application to its end, in the calling thread. Returns status, headers and the whole body."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    written: list[bytes] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: object = None, /
    ) -> Callable[[bytes], object]:
        started[:] = [(status, headers)]
        return written.append

    chunks: Iterable[bytes] = app(environ(scope, body), start_response)
    try:
        written.extend(chunks)
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    [(status, headers)] = started
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return int(status.split(" ", 1)[0]), encoded, b"".join(written)


class _View(io.RawIOBase):
    """A long body as a file, without a copy of it."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        size = min(len(buffer), len(self._view))
        buffer[:size] = self._view[:size]
        self._view = self._view[size:]
        return size


def environ(scope: AsgiScope, body: bytes | memoryview) -> dict[str, Any]:
    """The WSGI environment of an ASGI scope."""
    server, client = scope.get("server") or ("localhost", 80), scope.get("client") or ("", 0)
    found: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": scope.get("root_path", ""),
        "PATH_INFO": scope["path"].encode("utf-8").decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": str(server[0]),
        "SERVER_PORT": str(server[1] or 0),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": str(client[0]),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BytesIO(body) if isinstance(body, bytes) else io.BufferedReader(_View(body)),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name == "content-type":
            found["CONTENT_TYPE"] = value
        elif name not in ("content-length", "transfer-encoding") and "_" not in name:
            key = "HTTP_" + name.upper().replace("-", "_")
            found[key] = f"{found[key]},{value}" if key in found else value
    found["CONTENT_LENGTH"] = str(len(body))
    if PASSED in scope:
        found[PASSED] = scope[PASSED]
    return found
