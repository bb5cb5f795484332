"""The models of every kind behind a page on a real port, with what stands before it: a prefix, and a lock."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.serving import make_server

from flambeau.serving.service import BlockingService
from tests.support.page_models import application

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Doorway:
    """What stands before an application: a proxy that cuts off the prefix `/below`, and a lock, while there is a token.

    The lock is on what shows predictions and metrics. `asked` counts what was posted, `running` what
    is not answered yet. `busy`: whoever posts is told so, as by a limit on rates.
    """

    def __init__(self, app: Wsgi) -> None:
        self._app = app
        self.token = ""
        self.asked = self.running = 0
        self.busy = False

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        environ["PATH_INFO"] = path = environ["PATH_INFO"].removeprefix("/below")
        closed = self.token and path.startswith(("/predict", "/metrics"))
        if closed and environ.get("HTTP_AUTHORIZATION") != f"Bearer {self.token}":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("401 Unauthorized", [("Content-Type", "application/json")])
            return [b'{"error":"this token is not known here","code":"unauthorized","retryable":false}']
        posted = environ["REQUEST_METHOD"] == "POST"
        if posted and self.busy:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("429 Too Many Requests", [("Content-Type", "application/json")])
            return [b'{"error":"too many requests for now","code":"rate_limited","retryable":true}']
        self.asked += posted
        self.running += posted
        try:
            return self._app(environ, start)
        finally:
            self.running -= posted


class Site:
    """The models of every kind on a real port."""

    def __init__(self, service: BlockingService) -> None:
        self.doorway = Doorway(application(service).wsgi_app)
        self._server = make_server("127.0.0.1", 0, self.doorway, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.port}"

    @property
    def asked(self) -> int:
        """How many forms and predictions were posted."""
        return self.doorway.asked

    @property
    def running(self) -> int:
        """How many of them are not answered yet."""
        return self.doorway.running

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
