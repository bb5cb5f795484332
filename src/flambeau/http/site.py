"""What a server of ours asks about a request: may it pass, and what is its answer. It knows no connection and no ASGI.

`flambeau serve` (`flambeau.http.connection`) and the ASGI application (`flambeau.http.asgi_app`) ask the same `Site`,
so they cannot differ. It dispatches the routes of the table: coroutine functions on the loop, plain ones in a thread.
Files, and whatever is no route (404, 405, OPTIONS, redirects), are Flask's, in a thread. Vital routes, which report the
server's health, have threads of their own, so that they are answered whatever occupies the others.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flask import Flask

from flambeau.errors import RequestError
from flambeau.http.access import PASSED, AccessControl, Denial
from flambeau.http.answer_bytes import RawAnswer, raw
from flambeau.http.flask_app import body_too_large
from flambeau.http.heads import Peer, RequestHead
from flambeau.http.wsgi_call import call_wsgi, environ_of
from flambeau.protocols import dispatch
from flambeau.protocols.errors import STATUS
from flambeau.protocols.messages import HttpAnswer, HttpRequest, new_id
from flambeau.protocols.routes import RequiredScope
from flambeau.serving.service import Service
from flambeau.telemetry import logs

Run = Callable[[Coroutine[Any, Any, HttpAnswer]], Coroutine[Any, Any, HttpAnswer]]

_THREADS = 8
_VITAL_THREADS = 2


class Site:
    """The routes of one service behind its access control."""

    def __init__(self, service: Service, app: Flask, access: AccessControl, *, run: Run | None = None) -> None:
        """`run` runs a coroutine of the service on the service's own loop, if that is not the server's."""
        self.service = service
        self.access = access
        self._app = app
        self._run: Run = run or (lambda step: step)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="pages")
        self._vital_threads = ThreadPoolExecutor(_VITAL_THREADS, thread_name_prefix="vital")

    def preflight(self, head: RequestHead) -> HttpAnswer | None:
        """The answer to a preflight request from a page of a listed origin; `None` for any other request."""
        return self.access.origins.preflight(head.method, head.headers)

    def denial(self, head: RequestHead, peer: Peer) -> Denial | None:
        """Why a request is refused before its body is read; `None` if it may pass."""
        port = peer.server[1] if peer.server is not None else None
        return self.access.check(self._required(head), head.method, head.headers, peer.client, port=port)

    def _required(self, head: RequestHead) -> RequiredScope:
        match = head.match
        return self.access.table.scope_elsewhere(head.method, head.path) if match is None else match.route.scope

    def limit(self, head: RequestHead) -> int:
        """The most bytes that the body may have."""
        settings = self.service.settings
        return settings.max_upload_bytes if _is_upload(head) else settings.max_body_bytes

    def too_large(self, head: RequestHead) -> Denial:
        """Why a body over the limit is refused."""
        message = body_too_large(self.limit(head), upload=_is_upload(head))
        return Denial(RequestError(message, code="body_too_large"))

    def refused(self, denial: Denial, head: RequestHead, peer: Peer) -> HttpAnswer:
        """The answer to a request that is refused, which is counted and logged."""
        identity, code = head.identity or new_id(), denial.error.code
        self.service.metrics.refused(code, STATUS[code])
        logs.event(f"{head.method} refused", id=identity, status=STATUS[code], code=code, client=peer.client)
        return denial.answer(identity, head.path)

    def request(
        self, head: RequestHead, peer: Peer, body: bytes | memoryview, *, identity: str, received: float
    ) -> HttpRequest:
        """The request as the protocols see it. `received`: `time.monotonic()` at its first byte."""
        access = self.access
        charge = None
        if not access.never_changes and head.method == "POST":
            charge = access.charge(head.headers, peer.client)
        root = f"{peer.scheme}://{head.headers.get('host', '')}{peer.prefix}/"
        return HttpRequest(
            head.method, head.path, head.query, head.headers, body, received, charge, identity, root, peer.client
        )

    async def answer(
        self, head: RequestHead, peer: Peer, body: bytes | memoryview, *, identity: str, received: float
    ) -> RawAnswer:
        """The answer to a request that may pass and has come whole."""
        loop, match = asyncio.get_running_loop(), head.match
        readable = self.access.origins.headers(head.headers)  # these let a page of another origin read the answer
        threads = self._vital_threads if match is not None and match.route.vital else self._threads
        if match is None or match.route.answer is None:
            environ = environ_of(head, peer, body)
            environ[PASSED] = self.access, self._required(head)
            found = await loop.run_in_executor(threads, call_wsgi, self._app.wsgi_app, environ)
            more = tuple((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in readable)
            return found._replace(fields=found.fields + more)
        request = self.request(head, peer, body, identity=identity, received=received)
        if match.route.waits:
            return raw(await self._run(dispatch.answer(self.service, match, request)), readable)
        answered = await loop.run_in_executor(threads, dispatch.answer_in_thread, self.service, match, request)
        return raw(answered, readable)


def _is_upload(head: RequestHead) -> bool:
    return head.match is not None and head.match.route.upload
