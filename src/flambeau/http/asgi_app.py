"""The ASGI front: it dispatches the routes of the table, and calls Flask, in a thread, for files and everything else.

It checks access control and reads the body, up to its limit, without looking into it. Vital routes, which report the
server's health, have threads of their own, so that they are answered whatever occupies the others.
"""

import asyncio
import contextlib
import io
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from flask import Flask

from flambeau.errors import RequestError
from flambeau.http import framing
from flambeau.http.access import PASSED, REFUSED, AccessControl, Denial
from flambeau.http.flask_app import body_too_large
from flambeau.http.request_body import FULL, SHARE, BodyBuffer, InflightBudget, Share
from flambeau.protocols import dispatch
from flambeau.protocols.errors import STATUS
from flambeau.protocols.messages import HttpAnswer, HttpRequest, request_id
from flambeau.serving.service import Service
from flambeau.telemetry import logs

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

AsgiScope = MutableMapping[str, Any]
AsgiHeaders = list[tuple[bytes, bytes]]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]
Run = Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]
Fields = tuple[tuple[str, str], ...]
T = TypeVar("T")

_THREADS = 8
_VITAL_THREADS = 2
_DISCARD_AT_MOST = 8  # times the body limit: what a client may still send before the connection is closed on it


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete or answered."""


class _TooLargeError(Exception):
    """The body is over the limit; `more`: the client is still sending it."""

    def __init__(self, *, more: bool) -> None:
        super().__init__()
        self.more = more


class AsgiFront:
    """The ASGI application of one service."""

    def __init__(
        self, service: Service, app: Flask, access: AccessControl, budget: InflightBudget, *, run: Run | None = None
    ) -> None:
        """`run` runs a coroutine of the service on the service's own loop, if that is not the server's."""
        self._service = service
        self._run: Run = run or (lambda step: step)
        self._app = app
        self._access = access
        self._limit = service.settings.max_body_bytes
        self._budget = budget
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="pages")
        self._vital_threads = ThreadPoolExecutor(_VITAL_THREADS, thread_name_prefix="vital")

    async def __call__(self, scope: AsgiMessage, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            share = None  # made here under another server; our own connections bring one in the scope
            if SHARE not in scope:
                share = scope[SHARE] = Share(self._budget, asyncio.get_running_loop().time, None)
            try:
                with contextlib.suppress(ClientGoneError):
                    await self._http(scope, receive, send, counted=share is None)
            finally:
                if share is not None:
                    share.close()

    async def _http(self, scope: AsgiMessage, receive: Receive, send: Send, *, counted: bool) -> None:
        received = time.monotonic()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self._access.forwarding.active:
            self._access.forwarding.apply(scope, headers)
        method, path = scope["method"], scope["path"]
        readable = self._access.origins.headers(headers)  # these let a page of another origin read the answer
        preflight = self._access.origins.preflight(method, headers)
        if preflight is not None:
            await self._send(send, preflight, readable)
            return
        client = (scope.get("client") or ("",))[0]
        match = self._access.table.find(method, path)
        required = self._access.table.scope_elsewhere(method, path) if match is None else match.route.scope
        refusal = scope.get(REFUSED) or self._access.check(
            required, method, headers, client, port=(scope.get("server") or (None, None))[1]
        )
        more = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        if refusal is None:
            upload = match is not None and match.route.upload
            limit = self._service.settings.max_upload_bytes if upload else self._limit
            try:
                body = await self._read_body(headers, receive, limit, None if counted else scope[SHARE])
            except RequestError as error:
                refusal = Denial(error)
            except _TooLargeError as error:
                refusal = Denial(RequestError(body_too_large(limit, upload=upload), code="body_too_large"))
                more = error.more
        if refusal is not None:
            # A client that sent Expect: 100-continue does not send a body that is refused.
            more = more and "expect" not in headers
            scope[SHARE].close()  # the rest of the body is discarded
            await self._refuse(refusal, scope, headers, readable, send)
            await self._discard(receive, send, more=more)
            return
        loop = asyncio.get_running_loop()
        threads = self._vital_threads if match is not None and match.route.vital else self._threads
        if match is None or match.route.answer is None:
            scope[PASSED] = self._access, required
            status, fields, whole = await loop.run_in_executor(threads, call_wsgi, self._app.wsgi_app, scope, body)
            await self._send_raw(send, status, fields + _encoded(readable), whole)
            return
        request = self._request(scope, headers, body, received)
        if match.route.waits:
            waiting = self._run(dispatch.answer(self._service, match, request))
            answered = await self._unless_gone(waiting, request, receive)
        else:
            answered = await loop.run_in_executor(threads, dispatch.answer_in_thread, self._service, match, request)
        await self._send(send, answered, readable, head=method == "HEAD")

    def _request(
        self, scope: AsgiMessage, headers: dict[str, str], body: bytes | memoryview, received: float
    ) -> HttpRequest:
        client = (scope.get("client") or ("",))[0]
        query = scope["query_string"].decode("latin-1")
        charge = self._access.charge(headers, client) if scope["method"] == "POST" else None
        root = f"{scope.get('scheme', 'http')}://{headers.get('host', '')}{scope.get('root_path', '').rstrip('/')}/"
        return HttpRequest(
            scope["method"], scope["path"], query, headers, body, received, charge, root=root, client=client
        )

    async def _refuse(
        self, refusal: Denial, scope: AsgiMessage, headers: dict[str, str], readable: Fields, send: Send
    ) -> None:
        """Send the whole refusal, but do not end the response yet."""
        identity, code = request_id(headers), refusal.error.code
        client = (scope.get("client") or ("",))[0]
        self._service.metrics.refused(code, STATUS[code])
        logs.event(f"{scope['method']} refused", id=identity, status=STATUS[code], code=code, client=client)
        whole = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        closing = () if whole else (("Connection", "close"),)
        answer = refusal.answer(identity, scope["path"])
        await self._send(send, answer, readable + closing, head=scope["method"] == "HEAD", end=False)

    async def _discard(self, receive: Receive, send: Send, *, more: bool) -> None:
        """Discard the rest of the body, and end the response.

        Closing at once would reset the connection while the client still sends, and it would never read the answer.
        """
        size = 0
        while more and size <= _DISCARD_AT_MOST * self._limit:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": b""})

    async def _unless_gone(self, answer: Awaitable[T], request: HttpRequest, receive: Receive) -> T:
        """The answer. If the client leaves, it is cancelled, and items that are still queued are not computed."""
        answering = asyncio.current_task()
        assert answering is not None  # coroutines run in tasks
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True
            answering.cancel()

        watching = asyncio.get_running_loop().create_task(watch())
        try:
            return await answer
        except asyncio.CancelledError:
            if not gone:
                raise
            milliseconds = 1000 * (time.monotonic() - request.received)
            logs.event("the client is gone", id=request.identity, status=499, ms=milliseconds)
            raise ClientGoneError from None
        finally:
            watching.cancel()

    async def _read_body(
        self, headers: dict[str, str], receive: Receive, limit: int, share: Share | None
    ) -> bytes | memoryview:
        """The whole body, counted in `share` if that is given.

        Raises `_TooLargeError`, `ClientGoneError` if the client leaves before the end, and `RequestError` for an
        invalid Content-Length and for a body that does not fit into the budget.
        """
        declared = headers.get("content-length")
        length = limit if declared is None else framing.length_of(declared)
        if length is None:
            raise framing.BAD_HTTP
        if length > limit:
            raise _TooLargeError(more=True)
        body, more = BodyBuffer(length), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            piece = message.get("body", b"")
            more = message.get("more_body", False)
            if share is not None and not share.take(len(piece)):
                raise FULL
            if not body.add(piece):
                raise _TooLargeError(more=more)
        return body.whole()

    async def _send(
        self,
        send: Send,
        answer: HttpAnswer,
        more: Fields = (),
        *,
        head: bool = False,
        end: bool = True,
    ) -> None:
        headers = _encoded((("Content-Type", answer.content_type), *answer.headers, *more))
        if answer.status != 204:
            headers.append((b"content-length", str(len(answer.body)).encode()))
        await self._send_raw(send, answer.status, headers, b"" if head else answer.body, end=end)

    async def _send_raw(self, send: Send, status: int, headers: AsgiHeaders, body: bytes, *, end: bool = True) -> None:
        lowered = [(name.lower(), value) for name, value in headers]
        if self._service.draining:  # so that the client sends its next request elsewhere
            lowered.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": lowered})
        await send({"type": "http.response.body", "body": body, "more_body": not end})


def _encoded(headers: Fields) -> AsgiHeaders:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


# Calling a WSGI application (PEP 3333) with a fully received request: how the ASGI front reaches Flask.


def call_wsgi(app: "WSGIApplication", scope: AsgiScope, body: bytes | memoryview) -> tuple[int, AsgiHeaders, bytes]:
    """Run the application to completion in the calling thread. Returns status, headers and the whole body."""
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
