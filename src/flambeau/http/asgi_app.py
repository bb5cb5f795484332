"""The ASGI front: the site under another server, such as uvicorn, hypercorn or Granian.

It checks access control and reads the body, up to its limit, without looking into it. `flambeau serve` has connections
of its own (`flambeau.http.connection`), and asks the same site.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from flask import Flask

from flambeau.errors import RequestError
from flambeau.http import framing
from flambeau.http.access import AccessControl, Denial
from flambeau.http.answer_bytes import RawAnswer, raw
from flambeau.http.heads import Peer, RequestHead
from flambeau.http.request_body import DISCARD_AT_MOST, BodyBuffer, InflightBudget, Share, full
from flambeau.http.site import Run, Site
from flambeau.protocols.messages import new_id
from flambeau.serving.service import Service
from flambeau.telemetry import logs

AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]
T = TypeVar("T")


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
        self._access = access
        self._site = Site(service, app, access, run=run)
        self._budget = budget

    async def __call__(self, scope: AsgiMessage, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            share = Share(self._budget, asyncio.get_running_loop().time, None)
            try:
                with contextlib.suppress(ClientGoneError):
                    await self._http(scope, receive, send, share)
            finally:
                share.close()

    async def _http(self, scope: AsgiMessage, receive: Receive, send: Send, share: Share) -> None:
        received = time.monotonic()
        head, peer = self._read(scope)
        readable = self._access.origins.headers(head.headers)
        preflight = self._site.preflight(head)
        if preflight is not None:
            await self._send(send, raw(preflight, readable), head)
            return
        denial = self._site.denial(head, peer)
        more = _has_body(head)
        if denial is None:
            try:
                body = await self._read_body(head, receive, share)
            except RequestError as error:
                denial = Denial(error)
            except _TooLargeError as error:
                denial = self._site.too_large(head)
                more = error.more
        if denial is not None:
            share.close()  # the rest of the body is discarded
            closing = (("Connection", "close"),) if _has_body(head) else ()
            await self._send(send, raw(self._site.refused(denial, head, peer), readable + closing), head, end=False)
            # A client that sent Expect: 100-continue does not send a body that is refused.
            await self._discard(receive, send, more=more and not head.expects)
            return
        identity = head.identity or new_id()
        answering = self._site.answer(head, peer, body, identity=identity, received=received)
        if head.match is not None and head.match.route.waits:
            answered = await self._unless_gone(answering, identity, received, receive)
        else:
            answered = await answering
        await self._send(send, answered, head)

    def _read(self, scope: AsgiMessage) -> tuple[RequestHead, Peer]:
        """The request of a scope, as a trusted proxy tells it."""
        fields = [(bytes(name).lower(), bytes(value)) for name, value in scope["headers"]]
        path, prefix = scope["path"], scope.get("root_path", "").rstrip("/")
        client, scheme = (scope.get("client") or ("",))[0], scope.get("scheme", "http")
        forwarding = self._access.forwarding
        if forwarding.active:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}
            client, scheme = forwarding.client(client, headers), forwarding.scheme(client, headers, scheme)
            path, prefix = forwarding.below(path), prefix + forwarding.prefix
        head = RequestHead(
            scope["method"], path, scope["query_string"].decode("latin-1"), fields, self._access.table,
            version=scope["http_version"],
        )  # fmt: skip
        return head, Peer(client, scheme, scope.get("server"), prefix)

    async def _discard(self, receive: Receive, send: Send, *, more: bool) -> None:
        """Discard the rest of the body, and end the response.

        Closing at once would reset the connection while the client still sends, and it would never read the answer.
        """
        size = 0
        while more and size <= DISCARD_AT_MOST * self._service.settings.max_body_bytes:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": b""})

    async def _unless_gone(self, answer: Awaitable[T], identity: str, received: float, receive: Receive) -> T:
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
            milliseconds = 1000 * (time.monotonic() - received)
            logs.event("the client is gone", id=identity, status=499, ms=milliseconds)
            raise ClientGoneError from None
        finally:
            watching.cancel()

    async def _read_body(self, head: RequestHead, receive: Receive, share: Share) -> bytes | memoryview:
        """The whole body, counted in `share`.

        Raises `_TooLargeError`, `ClientGoneError` if the client leaves before the end, and `RequestError` for an
        invalid Content-Length and for a body that does not fit into the budget.
        """
        limit = self._site.limit(head)
        declared = head.headers.get("content-length")
        length = limit if declared is None else framing.length_of(declared)
        if length is None:
            raise framing.bad_http()
        if length > limit:
            raise _TooLargeError(more=True)
        body, more = BodyBuffer(length), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            piece = message.get("body", b"")
            more = message.get("more_body", False)
            if not share.take(len(piece)):
                raise full()
            if not body.add(piece):
                raise _TooLargeError(more=more)
        return body.whole()

    async def _send(self, send: Send, answer: RawAnswer, head: RequestHead, *, end: bool = True) -> None:
        fields = list(answer.fields)
        if self._service.draining:  # so that the client sends its next request elsewhere
            fields.append((b"connection", b"close"))
        body = b"" if head.method == "HEAD" else answer.body
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        await send({"type": "http.response.body", "body": body, "more_body": not end})


def _has_body(head: RequestHead) -> bool:
    return head.length != 0
