"""Host and Origin (T-11): foreign names are refused, listed pages may ask."""

import json

import pytest
from flask import Flask

import flambeau
from tests.support.access import ADMIN, INFER, PAGE, ask, bearer, flask_status
from tests.support.server import ServerProcess

FOREIGN = "https://evil.test"


# Host and origins (T-11)


@pytest.mark.parametrize("path", ["/", "/livez", "/predict", "/metrics", "/nothing"])
def test_a_foreign_host_is_refused_everywhere_t11(server: ServerProcess, app: Flask, path: str) -> None:
    for host in ("evil.test", "127.0.0.1.evil.test", "evil.test:80", "[::2]"):
        for method in ("GET", "POST"):
            status, _, body = ask(server, method, path, {"Host": host} | bearer(ADMIN))
            assert (status, json.loads(body)["code"]) == (400, "bad_host"), (host, method)
            assert flask_status(app, method, path, {"Host": host}) == 400


def test_our_own_names_are_ours_t11(server: ServerProcess) -> None:
    for host in (
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1",
        "127.0.0.1:99",
        "[::1]",
        "[::1]:5000",
        "model.example",
        "localhost.",
    ):
        assert ask(server, "GET", "/livez", {"Host": host})[0] == 200, host


@pytest.mark.parametrize("path", ["/predict", "/", "/predict/double"])
def test_a_foreign_page_cannot_send_t11(server: ServerProcess, app: Flask, path: str) -> None:
    foreign = {"Origin": FOREIGN, "Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain"} | bearer(INFER)
    assert ask(server, "POST", path, foreign, b'{"input": 1}')[0] == 403
    assert app.test_client().post(path, headers=foreign, data=b'{"input": 1}').status_code == 403
    assert ask(server, "GET", "/livez", foreign)[0] == 200  # a link is no harm


def test_a_foreign_page_is_told_nothing_t11(server: ServerProcess) -> None:
    asked = {"Origin": FOREIGN, "Access-Control-Request-Method": "POST"}
    for method, path in (("OPTIONS", "/predict"), ("OPTIONS", "/"), ("GET", "/livez"), ("POST", "/predict")):
        _, headers, _ = ask(server, method, path, asked)
        assert not [name for name in headers if name.startswith("access-control")], (method, path)


def test_a_listed_page_may_ask_and_read_t11(server: ServerProcess, app: Flask) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    status, headers, body = ask(server, "OPTIONS", "/predict", asked)
    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == PAGE
    assert "Authorization" in headers["access-control-allow-headers"]
    sent = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site", "Content-Type": "application/json"} | bearer(INFER)
    for path in ("/predict", "/livez", "/nothing"):
        status, headers, _ = ask(server, "POST", path, sent, b'{"input": 1}')
        assert headers["access-control-allow-origin"] == PAGE, (path, status)
        assert headers["vary"] == "Origin"
    assert app.test_client().options("/predict", headers=asked).status_code == 204
    answered = app.test_client().post("/predict", headers=sent, data=b'{"input": 1}')
    assert (answered.status_code, answered.headers["Access-Control-Allow-Origin"]) == (200, PAGE)


def test_nothing_is_said_of_origins_where_none_are_listed_t11(open_app: Flask) -> None:
    answered = open_app.test_client().post("/predict", headers={"Origin": PAGE}, json={"input": 1})
    assert not [name for name, _ in answered.headers if name.lower().startswith(("access-control", "vary"))]


@pytest.mark.parametrize("origins", ["page.example", "https://page.example/path", "ftp://page.example"])
def test_what_is_no_origin_is_refused_t11(origins: str) -> None:
    with pytest.raises(flambeau.SetupError, match="--cors-origins"):
        flambeau.create_app(cors_origins=origins)
