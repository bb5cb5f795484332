"""The lane: an ASGI application that answers the hot routes on the loop and hands every other to Flask, in a thread.

It reads the body, with its limit, and knows nothing of what is in it.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flask import Flask

from flambeau import logs
from flambeau.errors import RequestError
from flambeau.service import Service
from flambeau.web import hot, wsgi
from flambeau.web.app import body_too_large
from flambeau.web.errors import error_answer
from flambeau.web.http import HttpAnswer, HttpRequest, request_id, sealed

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_FLASK_THREADS = 8
_DISCARD_AT_MOST = 8  # times the body limit: what a client may still send before it reads that it was too much


class ClientGoneError(Exception):
    """The client closed the connection before its request was whole."""


class Lane:
    """The ASGI application of one service."""

    def __init__(self, service: Service, app: Flask) -> None:
        self._service = service
        self._app = app
        self._limit = service.settings.max_body_bytes
        self._threads = ThreadPoolExecutor(_FLASK_THREADS, thread_name_prefix="flask")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            with contextlib.suppress(ClientGoneError):
                await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        received = time.monotonic()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            body = await self._read_body(headers, receive)
        except RequestError as error:
            identity = request_id(headers)
            logs.event(f"{scope['method']} refused", id=identity, status=413, code=error.code)
            self._service.metrics.other.rejected(error.code)
            self._service.metrics.other.answered(413)
            refusal = error_answer(error, identity, headers=(("Connection", "close"),))
            await self._send(send, sealed(refusal, identity))
            return
        if hot.is_hot(scope["method"], scope["path"]):
            query = scope["query_string"].decode("latin-1")
            request = HttpRequest(scope["method"], scope["path"], query, headers, body, received)
            answered = await self._answer_unless_gone(request, receive)
            await self._send(send, answered, head=scope["method"] == "HEAD")
        else:
            loop = asyncio.get_running_loop()
            whole = await loop.run_in_executor(self._threads, wsgi.call, self._app.wsgi_app, scope, body)
            await self._send_raw(send, *whole)

    async def _answer_unless_gone(self, request: HttpRequest, receive: Receive) -> HttpAnswer:
        """The answer. When the client leaves, what it waited for is cancelled, and not computed if it still waits."""
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
            return await hot.answer(self._service, request)
        except asyncio.CancelledError:
            if not gone:
                raise
            milliseconds = 1000 * (time.monotonic() - request.received)
            logs.event("the client is gone", id=request_id(request.headers), status=499, ms=milliseconds)
            raise ClientGoneError from None
        finally:
            watching.cancel()

    async def _read_body(self, headers: dict[str, str], receive: Receive) -> bytes:
        """The whole body. Raises `RequestError` when it is too large, `ClientGoneError` when it never ends."""
        declared = headers.get("content-length", "")
        too_large = declared.isdigit() and int(declared[:19]) > self._limit
        if too_large and "expect" in headers:  # the client asks first and has sent nothing yet
            raise self._too_large()
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            size += len(chunk)
            if too_large or size > self._limit:
                # Closing now would reset the connection while the client still sends, and it would never read why.
                too_large = True
                chunks.clear()
                if size > _DISCARD_AT_MOST * self._limit:
                    raise self._too_large()
            else:
                chunks.append(chunk)
            if not message.get("more_body"):
                break
        if too_large:
            raise self._too_large()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _too_large(self) -> RequestError:
        return RequestError(body_too_large(self._limit), code="body_too_large")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Under an ASGI server that is not ours: load with the server's start, let go with its end."""
        while True:
            message = await receive()
            step = self._service.start if message["type"] == "lifespan.startup" else self._service.close
            try:
                await step()
            except Exception as error:
                await send({"type": f"{message['type']}.failed", "message": str(error)})
                return
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _send(self, send: Send, answer: HttpAnswer, *, head: bool = False) -> None:
        headers = [(b"content-type", answer.content_type.encode("latin-1"))]
        headers += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
        headers.append((b"content-length", str(len(answer.body)).encode()))
        await self._send_raw(send, answer.status, headers, b"" if head else answer.body)

    async def _send_raw(self, send: Send, status: int, headers: wsgi.Headers, body: bytes) -> None:
        lowered = [(name.lower(), value) for name, value in headers]
        if self._service.draining:  # the client is to take its next request elsewhere
            lowered.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": lowered})
        await send({"type": "http.response.body", "body": body})
