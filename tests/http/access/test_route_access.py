"""Access control of every route (T-09), over HTTP and with Flask."""

import itertools
import json
import socket

import pytest
from flask import Flask

from tests.support.access import ADMIN, INFER, PAGE, WRONG, ask, bearer, flask_status
from tests.support.server import ServerProcess

CREDENTIALS = {"none": None, "wrong": WRONG, "infer": INFER, "admin": ADMIN}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")


# Access control (T-09)


PATHS = {
    # what each needs by method; every other method and path needs a token, and then is 404, 405 or a redirect
    "/": {"GET": "public", "POST": "infer"},
    "/livez": {"GET": "public"},
    "/readyz": {"GET": "public"},
    "/static/style.css": {"GET": "public"},
    "/predict": {"POST": "infer"},
    "/predict/double": {"POST": "infer"},
    "/predict/double/1": {"POST": "infer"},
    "/metrics": {"GET": "admin"},
    "/v2/health/live": {"GET": "public"},
    "/v2/health/ready": {"GET": "public"},
    "/v2": {"GET": "infer"},
    "/v2/models/double": {"GET": "infer"},
    "/v2/models/double/ready": {"GET": "infer"},
    "/v2/models/stats": {"GET": "infer"},
    "/v2/models/double/infer": {"POST": "infer"},
    "/v2/models/double/versions/1/infer": {"POST": "infer"},
    "/v2/repository/index": {"POST": "infer"},
    "/v2/logging": {"GET": "infer", "POST": "admin"},
    "/v2/trace/setting": {"GET": "infer", "POST": "admin"},
    "/v2/systemsharedmemory/status": {"GET": "infer"},
    "/v1/models": {"GET": "infer"},
    "/v1/models/double": {"GET": "infer"},
    "/v1/models/double:predict": {"POST": "infer"},
    "/v1/models/double:explain": {"POST": "infer"},
    "/predictions/double": {"POST": "infer", "PUT": "infer"},
    "/predictions/double/1": {"POST": "infer", "PUT": "infer"},
    "/ping": {"GET": "public"},
}
STRANGE = (
    "//predict",
    "/predict/", "/./predict", "/x/../predict", "/PREDICT", "/%70redict", "/predict%2f", "/predict%2fdouble",
    "/predict;x", "/predict.", "/predict%00", "/livez/../metrics", "/%2e%2e/metrics", "/livez/%2e%2e/metrics",
    "/livez%2f..%2fmetrics", "//metrics", "/metrics/", "/metrics;x", "/Metrics", "/%6detrics", "/metrics%20",
    "/static/../metrics", "/static/%2e%2e/metrics", "/static/..%2fmetrics", "/livez?/metrics", "/metrics?x=/livez",
    "/nothing", "/admin",
)  # fmt: skip


def needed(method: str, path: str) -> str:
    """What a request needs, by the table above."""
    routes = PATHS.get(path)
    if routes is None:
        return "infer"
    if method == "OPTIONS":
        return "public" if "public" in routes.values() else next(iter(routes.values()))
    return routes.get("GET" if method == "HEAD" else method, "infer")


def let_in(status: int) -> bool:
    return status not in (401, 403, 429)


def allowed(need: str, who: str) -> bool:
    return need == "public" or who == "admin" or (need == "infer" and who == "infer")


def test_the_matrix_of_paths_methods_and_tokens_t09(server: ServerProcess, app: Flask) -> None:
    for (path, method), who in itertools.product(itertools.product(PATHS, METHODS), CREDENTIALS):
        expected = allowed(needed(method, path), who)
        headers = bearer(CREDENTIALS[who])
        status, _, _ = ask(server, method, path, headers)
        in_flask = flask_status(app, method, path, headers)
        assert (let_in(status), let_in(in_flask)) == (expected, expected), (method, path, who, status, in_flask)


def test_models_are_managed_over_kserve_as_over_the_native_protocol_t09(server: ServerProcess, app: Flask) -> None:
    """An admin token, no page, and nobody where other processes may serve beside."""
    for path in ("/v2/repository/models/nobody/load", "/v2/repository/models/nobody/unload"):
        assert ask(server, "POST", path, bearer(ADMIN))[0] == 404  # it is let in, and there is no such model
        for who in ("none", "wrong", "infer"):
            assert not let_in(ask(server, "POST", path, bearer(CREDENTIALS[who]))[0])
        status, _, body = ask(server, "POST", path, bearer(ADMIN) | {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"})
        assert (status, b"pages may not change anything here" in body) == (403, True)
        assert flask_status(app, "POST", path, bearer(ADMIN)) == 403


def test_no_other_way_to_write_a_path_gets_in_t09(server: ServerProcess, app: Flask) -> None:
    """Without a token nothing is answered but what is public; below /static/ there is nothing else."""
    for path, method, who in itertools.product(STRANGE, ("GET", "POST", "HEAD", "OPTIONS"), ("none", "wrong")):
        headers = bearer(CREDENTIALS[who])
        status, _, body = ask(server, method, path, headers)
        public = path.startswith(("/livez?", "/static/")) and method != "POST"
        refused = (404, 200) if public else (400, 401, 429)
        assert status in refused, (method, path, who, status)
        assert b"flambeau_requests" not in body
        assert flask_status(app, method, path, headers) in refused, (method, path, who)


def test_an_infer_token_reads_no_metrics_however_it_is_written_t09(server: ServerProcess) -> None:
    for path in STRANGE:
        _, _, body = ask(server, "GET", path, bearer(INFER))
        assert b"flambeau_requests" not in body, path


def test_headers_that_change_the_method_or_the_address_change_nothing_t09(server: ServerProcess) -> None:
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        assert ask(server, "GET", "/metrics", {name: "OPTIONS"})[0] == 401
        assert ask(server, "POST", "/livez", {name: "GET"})[0] == 401
    for name in ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Path", "X-Forwarded-Prefix"):
        assert ask(server, "GET", "/livez", {name: "/metrics"})[2] == b'{"status":"live"}'
    assert ask(server, "GET", f"{server.url}/livez")[0] == 400  # an absolute address


def test_every_route_declares_what_it_needs_t09(app: Flask) -> None:
    declared = app.extensions["flambeau.routes"]
    for rule in app.url_map.iter_rules():
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            assert f"{method} {rule.rule}" in declared, (
                f"{method} {rule.rule} declares nothing: see protocols/routes.py"
            )


def test_a_route_that_declares_nothing_is_refused_even_without_tokens_t09(open_app: Flask) -> None:
    client = open_app.test_client()
    assert client.get("/mine").status_code == 403
    open_app.extensions["flambeau.routes"]["GET /mine"] = "public"
    assert client.get("/mine").data == b"mine"
    assert client.options("/mine").status_code == 200


def test_a_refusal_does_not_wait_for_the_body_t09(server: ServerProcess) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for more in ("Content-Length: 30000000", "Transfer-Encoding: chunked", "Content-Length: 3\r\nExpect: 100-continue"):
        with socket.create_connection((host, int(port)), timeout=60) as sock:
            sock.sendall(f"POST /predict HTTP/1.1\r\nHost: localhost\r\n{more}\r\n\r\n".encode())
            answer = sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 401"), more
        assert b"connection: close" in answer


def test_a_client_that_sends_on_can_read_why_it_was_refused_t09(server: ServerProcess) -> None:
    refused = server.post(data=b"x" * 20_000_000)
    assert refused.status_code == 401


def test_the_document_says_what_takes_a_token(app: Flask) -> None:
    document = app.test_client().get("/openapi.json").get_json()
    secured = {path for path, each in document["paths"].items() if any("security" in one for one in each.values())}
    assert secured == {
        "/predict", "/predict/Double", "/predict/Double/1", "/predictions/Double", "/metrics",
        "/models", "/models/{model}", "/models/{model}/shadow", "/models/{model}/{version}",
        "/v2", "/v2/models", "/v2/models/{model}", "/v2/models/{model}/ready", "/v2/models/{model}/versions/{version}",
        "/v2/models/{model}/versions/{version}/ready", "/v2/models/Double/infer", "/v2/models/Double/versions/1/infer",
        "/v1/models", "/v1/models/Double:predict",
    }  # fmt: skip
    assert document["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/v2/models/Double/infer", "/v1/models/Double:predict", "/v2", "/v1/models"])
def test_kserves_clients_are_refused_in_their_form(server: ServerProcess, app: Flask, method: str, path: str) -> None:
    status, headers, body = ask(server, method, path)
    challenge = {name.lower(): value for name, value in headers.items()}["www-authenticate"]
    mounted = app.test_client().open(path, method=method, headers={"Host": "localhost"})
    assert (status, mounted.status_code, challenge) == (401, 401, mounted.headers["WWW-Authenticate"])
    assert list(json.loads(body)) == list(mounted.get_json()) == ["error"]
