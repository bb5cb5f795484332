"""The ASGI application for other servers and frameworks: uvicorn, hypercorn, Granian, FastAPI, Starlette.

It is the ASGI front over a service with a loop of its own. So it does not matter on which loop a request arrives, nor
whether the server sends lifespan events: an application mounted in another one often gets none.
"""

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flambeau.errors import RequestError, SetupError
from flambeau.http import grpc_front
from flambeau.http.access import AccessControl, Denial
from flambeau.http.asgi_app import AsgiFront, AsgiMessage, Receive, Send
from flambeau.http.flask_app import make_app, open_for_others
from flambeau.http.request_body import InflightBudget
from flambeau.protocols.messages import HttpAnswer, request_id
from flambeau.serving.service import BlockingService, Service
from flambeau.system.loop_thread import renew_lock_in_children
from flambeau.telemetry import logs

if TYPE_CHECKING:
    from flambeau.grpc.proxied import ProxiedCall, ProxiedCalls


class AsgiApp:
    """An ASGI 3 application that serves a model. It loads when the server starts, or at the first request."""

    def __init__(self, make: Callable[[], Service], access: AccessControl) -> None:
        self._make = make
        self._access = access
        self._lock = threading.Lock()
        renew_lock_in_children(self)
        self._opened: tuple[int, BlockingService, AsgiFront] | None = None  # the process it was opened in comes first
        self._calls: tuple[BlockingService, ProxiedCalls] | None = None

    async def __call__(self, scope: AsgiMessage, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":  # not supported: refuse the handshake
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def start(self) -> None:
        """Load the model, unless it is loaded. Raises `SetupError`.

        Await this when the application around this one starts; otherwise the first request waits for the model.
        """
        await asyncio.to_thread(self._front)

    async def answer_call(self, method: str, call: "ProxiedCall") -> bytes:
        """Answer a call of gRPC that a proxy has received. Raises `SetupError`."""
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            await asyncio.to_thread(self._front)
            opened = self._opened
            assert opened is not None
        handle = opened[1]
        calls = self._calls
        if calls is None or calls[0] is not handle:
            # Messages have a budget of their own: a budget belongs to one loop, and HTTP's is not the service's.
            budget = InflightBudget(handle.service.settings)
            calls = self._calls = handle, grpc_front.proxied(handle.service, self._access, budget)
        return await handle.run(calls[1].answer(method, call))

    async def close(self) -> None:
        """Answer the requests in progress, and close the model. A later request loads it again."""
        opened, self._opened = self._opened, None
        if opened is not None and opened[0] == os.getpid():
            await asyncio.to_thread(opened[1].close)

    def _front(self) -> AsgiFront:
        """The front of this process: after a fork the child has the object, but not its threads."""
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                handle = BlockingService(self._make)
                budget = InflightBudget(handle.service.settings)
                app = make_app(handle, self._access, budget)
                front = AsgiFront(handle.service, app, self._access, budget, run=handle.run)
                self._opened = (os.getpid(), handle, front)
            return self._opened[2]

    async def _http(self, scope: AsgiMessage, receive: Receive, send: Send) -> None:
        if not str(scope["http_version"]).startswith("1"):
            send = _without_connection(send)
        opened = self._opened
        if opened is not None and opened[0] == os.getpid():
            front = opened[2]
        else:
            try:
                front = await asyncio.to_thread(self._front)
            except SetupError as error:
                logs.failure("the model cannot be loaded", error)
                refusal = Denial(RequestError("the model cannot be loaded: the log says why", code="model_unavailable"))
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
                await _send_whole(send, refusal.answer(request_id(headers), _below(scope)))
                return
        await front({**scope, "path": _below(scope)}, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            step = self.start if message["type"] == "lifespan.startup" else self.close
            try:
                await step()
            except Exception as error:
                await send({"type": f"{message['type']}.failed", "message": str(error)})
                return
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return


def _below(scope: AsgiMessage) -> str:
    """The path within this application: without the root path, which servers and frameworks leave in it.

    If a proxy has removed its own prefix already (`FastAPI(root_path=...)`), only Starlette's mount prefix is removed.
    """
    path, whole = str(scope["path"]), scope.get("root_path", "").rstrip("/")
    mounted = whole.removeprefix(scope.get("app_root_path", "").rstrip("/"))
    for root in (whole, mounted):
        if root and (path == root or path.startswith(root + "/")):
            return path[len(root) :]
    return path


async def _send_whole(send: Send, answer: HttpAnswer) -> None:
    fields = (("content-type", answer.content_type), *answer.headers, ("content-length", str(len(answer.body))))
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in fields]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _without_connection(send: Send) -> Send:
    """Drop the header Connection, which is an error in HTTP/2: there the server alone manages the connection."""

    async def sender(message: AsgiMessage) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message["headers"] if name != b"connection"]
            message = {**message, "headers": kept}
        await send(message)

    return sender


def create_asgi_app(source: str | Path | None = None, **options: Any) -> AsgiApp:
    """Build the source if need be, and make the application that serves it. Raises `SetupError`.

    `options` are those of `create_app`.
    """
    make, access = open_for_others(source, options)
    return AsgiApp(make, access)
