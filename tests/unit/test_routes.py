"""The table of routes: how a request finds its own, what it requires, and that one line in it is a whole route."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flambeau.http.access import PASSED, AccessControl
from flambeau.http.asgi_app import AsgiFront
from flambeau.http.flask_app import make_app, open_for_others
from flambeau.http.request_body import InflightBudget
from flambeau.protocols import native
from flambeau.protocols.dispatch import prediction
from flambeau.protocols.errors import error_answer
from flambeau.protocols.messages import HttpAnswer
from flambeau.protocols.routes import Match, RequiredScope, Route, RouteTable
from flambeau.serving.service import BlockingService
from tests.support.fronts import application

TOKEN = "abcdefghijklmnopqrstuvwxyz"
INFER = {"Authorization": f"Bearer {TOKEN}"}


def answer(*_: object) -> HttpAnswer:
    return HttpAnswer(200, b"")


def route(method: Any, path: str, scope: RequiredScope = "infer", *, slash: bool = False) -> Route:
    return Route(method, path, scope, answer, slash=slash)


TABLE = RouteTable(
    [
        route("GET", "/"),
        route("GET", "/ping", "public"),
        route("GET", "/v2/models/{model}"),
        route("POST", "/v2/models/{model}/versions/{version}/infer", slash=True),
        route("POST", "/v1/models/{model}:predict"),
        route("GET", "/v1/models/{model}", "public"),
        route("GET", "/files/{name:path}", "admin"),
        route("POST", "/files/{name:path}"),
    ]
)


@pytest.mark.parametrize(
    ("method", "path", "template", "parameters"),
    [
        ("GET", "/", "/", {}),
        ("HEAD", "/ping", "/ping", {}),
        ("GET", "/v2/models/cats", "/v2/models/{model}", {"model": "cats"}),
        ("HEAD", "/v2/models/cats", "/v2/models/{model}", {"model": "cats"}),
        ("POST", "/v2/models/a/versions/7/infer/", "/v2/models/{model}/versions/{version}/infer",
         {"model": "a", "version": "7"}),
        ("POST", "/v1/models/a:b:predict", "/v1/models/{model}:predict", {"model": "a:b"}),
        ("GET", "/v1/models/a:predict", "/v1/models/{model}", {"model": "a:predict"}),
        ("GET", "/files/a/b.css", "/files/{name:path}", {"name": "a/b.css"}),
        ("GET", "//ping", "/ping", {}),
    ],
)  # fmt: skip
def test_a_request_finds_its_route(method: str, path: str, template: str, parameters: dict[str, str]) -> None:
    match = TABLE.find(method, path)
    assert isinstance(match, Match)
    assert (match.route.path, match.parameters) == (template, parameters)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""), ("GET", "/ping/"), ("POST", "/ping"), ("GET", "/v2/models/"), ("GET", "/v2/models/a/"),
        ("POST", "/v1/models/:predict"), ("POST", "/v1/models/a/b:predict"), ("GET", "/v2/models/{model}/x"),
        ("GET", "/files/"), ("GET", "/files//a"), ("PUT", "/"), ("OPTIONS", "/"), ("BREW", "/"), ("GET", "/x//ping"),
    ],
)  # fmt: skip
def test_what_is_no_route_is_none(method: str, path: str) -> None:
    assert TABLE.find(method, path) is None


def test_options_needs_the_least_of_its_methods_and_what_is_nowhere_a_token() -> None:
    assert TABLE.scope_elsewhere("OPTIONS", "/ping") == "public"
    assert TABLE.scope_elsewhere("OPTIONS", "/files/a") == "infer"
    assert TABLE.scope_elsewhere("OPTIONS", "/nothing") == "infer"
    assert TABLE.scope_elsewhere("GET", "/nothing") == "infer"


@pytest.fixture(scope="module")
def opened(
    double_py: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[BlockingService, AccessControl]]:
    """A service with tokens, and a table with one more line in it: another protocol's way to predict."""
    tokens = tmp_path_factory.mktemp("routes") / "tokens"
    tokens.write_text(f"infer {TOKEN}\n")
    tokens.chmod(0o600)
    make, access = open_for_others(f"{double_py}:Double", {"allow_code": True, "tokens_file": str(tokens)})
    predict = prediction("/v9/models/{model}:predict", native.answer, error_answer)
    more = Route("POST", "/v9/models/{model}:predict", "infer", predict, quiet=True)
    access.table = RouteTable([*access.table, more])
    service = BlockingService(make)
    yield service, access
    service.close()


def test_one_line_is_a_route_under_flask(opened: tuple[BlockingService, AccessControl]) -> None:
    client = make_app(*opened).test_client()
    sent = {"json": {"input": 2}, "headers": INFER}
    assert client.post("/v9/models/Double:predict", **sent).json == {"output": 4.0}
    assert client.post("/v9/models/nobody:predict", **sent).status_code == 404
    assert client.post("/v9/models/Double:predict", json={"input": 2}).status_code == 401
    assert client.get("/v9/models/Double:predict", headers=INFER).status_code == 405


def test_one_line_is_a_route_under_asgi(opened: tuple[BlockingService, AccessControl]) -> None:
    handle, access = opened
    budget = InflightBudget(handle.service.settings)
    front = AsgiFront(handle.service, make_app(*opened), access, budget, run=handle.run)

    def ask(method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        fields = [(b"host", b"x"), *((name.lower().encode(), value.encode()) for name, value in headers.items())]
        scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "headers": fields}
        sent: list[Any] = []
        coming = [{"type": "http.request", "body": b'{"input": 3}', "more_body": False}]

        async def receive() -> Any:
            if not coming:
                await asyncio.Event().wait()
            return coming.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(front(scope | {"query_string": b""}, receive, send))
        return sent[0]["status"], sent[1]["body"]

    headers = INFER | {"Content-Type": "application/json"}
    assert ask("POST", "/v9/models/Double:predict", headers) == (200, b'{"output":6.0}')
    assert ask("POST", "/v9/models/Double:predict", {})[0] == 401
    assert ask("GET", "//metrics", INFER)[0] == 403


def test_flask_asks_again_where_its_router_found_another_route_than_the_table_t09(
    opened: tuple[BlockingService, AccessControl],
) -> None:
    """`//metrics` was once no route to the one and `/metrics` to the other."""
    client = make_app(*opened).test_client()
    passed: dict[str, Any] = {PASSED: (opened[1], "infer")}
    assert client.get("/nothing", environ_base=passed).status_code == 404
    assert client.get("/metrics", environ_base=passed).status_code == 401
    assert client.get("/metrics", environ_base=passed, headers=INFER).status_code == 403


def test_every_path_of_the_document_is_a_route(double_py: Path) -> None:
    with application(f"{double_py}:Double", allow_code=True) as app:
        paths = app.test_client().get("/openapi.json").get_json()["paths"]
        assert list(paths) == [
            "/predict", "/predict/Double", "/predict/Double/1", "/livez", "/readyz", "/metrics",
            "/models", "/models/{model}", "/models/{model}/shadow", "/models/{model}/{version}",
            "/v2/health/live", "/v2/health/ready", "/v2", "/v2/models",
            "/v2/models/Double/infer", "/v2/models/{model}/ready", "/v2/models/{model}",
            "/v2/models/Double/versions/1/infer", "/v2/models/{model}/versions/{version}/ready",
            "/v2/models/{model}/versions/{version}", "/v1/models", "/v1/models/Double:predict", "/predictions/Double",
            "/openapi.json",
        ]  # fmt: skip
        adapter = app.url_map.bind("localhost")
        for path, operations in paths.items():
            for method in operations:
                adapter.match(path, method=method.upper())
