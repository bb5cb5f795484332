"""Who may do what: tokens, access control of every route, Host, origins, rates, TLS. Over HTTP, with both fronts."""

import base64
import hashlib
import http.client
import itertools
import json
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask

import flambeau
from flambeau.http import tokens
from tests.support.server import Serve, ServerProcess
from tests.support.warm import run_flambeau

INFER, ADMIN, HASHED, WRONG = (  # the same in every process: they stand in the names of tests
    base64.urlsafe_b64encode(hashlib.sha256(name).digest()).decode().rstrip("=")
    for name in (b"infer", b"admin", b"hashed", b"wrong")
)
CREDENTIALS = {"none": None, "wrong": WRONG, "infer": INFER, "admin": ADMIN}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")
PAGE = "https://page.example"
FOREIGN = "https://evil.test"


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("access") / "tokens"
    digest = hashlib.sha256(HASHED.encode()).hexdigest()
    file.write_text(f"# ours\ninfer {INFER}\nadmin {ADMIN}  # the operator's\n\ninfer sha256:{digest}\n")
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def server(serve: Serve, double_py: Path, tokens_file: Path) -> Iterator[ServerProcess]:
    """One that asks for tokens, lets one page of another origin in, and answers to one more name."""
    with serve(
        f"{double_py}:Double", "--allow-code", "--tokens-file", tokens_file,
        "--cors-origins", PAGE, "--allowed-hosts", "model.example",
    ) as started:  # fmt: skip
        yield started


@pytest.fixture(scope="module")
def app(double_py: Path, tokens_file: Path) -> Iterator[Flask]:
    """The same as a Flask application."""
    made = flambeau.create_app(
        f"{double_py}:Double", allow_code=True, tokens_file=str(tokens_file), cors_origins=PAGE,
        allowed_hosts="localhost,model.example",
    )  # fmt: skip
    yield made
    made.extensions["flambeau"].close()


def bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def ask(
    server: ServerProcess, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """A request whose path is sent as it stands, which libraries would tidy up."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    given = dict(headers or {})
    connection.putrequest(method, path, skip_host="Host" in given, skip_accept_encoding=True)
    for name, value in (given | ({"Content-Length": str(len(body))} if body else {})).items():
        connection.putheader(name, value)
    connection.endheaders(body or None)
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def flask_status(app: Flask, method: str, path: str, headers: dict[str, str]) -> int:
    with app.test_client().open(path, method=method, headers=headers) as response:
        return response.status_code


def predict(token: str | None, **headers: str) -> dict[str, Any]:
    return {"json": {"input": 2}, "headers": bearer(token) | headers}


# Tokens (T-10)


def test_a_prediction_needs_a_token_t10(server: ServerProcess) -> None:
    for token in (INFER, ADMIN, HASHED):
        assert server.post(**predict(token)).json() == {"output": 4.0}
    wrong: str | None
    for wrong in (None, WRONG, INFER[:-1], INFER + "x", ""):
        refused = server.post(**predict(wrong))
        assert (refused.status_code, refused.json()["code"]) in ((401, "unauthorized"), (429, "too_many_attempts"))
        if refused.status_code == 401:
            assert refused.headers["WWW-Authenticate"].startswith("Bearer")


def test_other_schemes_are_no_tokens_t10(server: ServerProcess) -> None:
    for value in (f"Basic {INFER}", INFER, f"Bearer{INFER}", f"Bearer {INFER} {INFER}", "Bearer", f"Bearer {ADMIN},"):
        status, _, _ = ask(server, "POST", "/predict", {"Authorization": value}, b"{}")
        assert status in (401, 429), value
    status, _, body = ask(
        server, "POST", "/predict", {"Authorization": f"bearer {INFER}", "Content-Type": "application/json"},
        b'{"input": 1}',
    )  # fmt: skip
    assert (status, body) == (200, b'{"output":2.0}')


def test_an_infer_token_is_not_an_admin_token_t10(server: ServerProcess) -> None:
    refused = server.get("/metrics", headers=bearer(INFER))
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert server.get("/metrics", headers=bearer(ADMIN)).status_code == 200


def test_two_authorizations_are_not_one_t10(server: ServerProcess) -> None:
    """Whichever of the two another reader would take, only a token that is right by itself lets in."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as sock:
        sock.sendall(
            f"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {WRONG}\r\n"
            f"Authorization: Bearer {INFER}\r\nConnection: close\r\n\r\n".encode()
        )
        assert sock.recv(65536).split()[1] in (b"401", b"403", b"429")


def test_guessing_is_slowed_down_and_harms_nobody_else_t10(serve: Serve, double_py: Path, tokens_file: Path) -> None:
    with serve(f"{double_py}:Double", "--allow-code", "--tokens-file", tokens_file) as started:
        answers = [started.post(**predict(tokens.fresh())) for _ in range(12)]
        assert [each.status_code for each in answers] == [401] * 10 + [429] * 2
        assert answers[-1].json()["code"] == "too_many_attempts"
        assert 0 < int(answers[-1].headers["Retry-After"]) <= 60
        assert started.post(**predict(INFER)).status_code == 200  # somebody else behind the same address
        assert (
            'flambeau_refusals_total{code="too_many_attempts"} 2.0'
            in started.get("/metrics", headers=bearer(ADMIN)).text
        )


def test_tokens_of_the_environment_stay_out_of_everything_t10(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAMBEAU_TOKEN", INFER)
    monkeypatch.setenv("FLAMBEAU_ADMIN_TOKEN", ADMIN)
    (tmp_path / "spy.py").write_text(
        "import os, flambeau\n"
        "class Spy(flambeau.PythonModel):\n"
        "    def predict(self, batch):\n"
        "        return [dict(os.environ) for _ in batch]\n"
    )
    with serve(f"{tmp_path / 'spy.py'}:Spy", "--allow-code", "--log-level", "debug") as started:
        environment = started.post(**predict(INFER)).text
        started.post(**predict(WRONG))
        metrics = started.get("/metrics", headers=bearer(ADMIN)).text
        arguments = "".join(
            file.read_bytes().decode(errors="replace")
            for file in Path("/proc").glob("[0-9]*/cmdline")
            if file.parent.exists()
        )
        everything = environment + metrics + started.log() + started.post(**predict(WRONG)).text + arguments
        assert "PATH" in environment
        for secret in (INFER, ADMIN, WRONG):
            assert secret not in everything


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (f"infer {'a' * 40}\n", 0o600, "too weak"),
        ("infer short\n", 0o600, "too weak"),
        (f"read {INFER}\n", 0o600, "line 1"),
        (f"\n{INFER}\n", 0o600, "line 2"),
        ("# nothing\n", 0o600, "holds no token"),
        (f"infer {INFER}\n", 0o640, "chmod 600"),
        (f"infer {INFER}\n", 0o604, "chmod 600"),
        (None, 0, "cannot be read"),
    ],
)
def test_a_bad_tokens_file_is_refused_with_the_remedy_t10(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, mode: int, says: str
) -> None:
    file = tmp_path / "tokens"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(flambeau.SetupError, match=says) as caught:
        flambeau.create_app(tokens_file=str(file))
    assert caught.value.exit_code == 78
    assert INFER not in str(caught.value)


def test_the_token_command_prints_what_is_taken_t10(tmp_path: Path) -> None:
    first, second = (run_flambeau("token").stdout.strip() for _ in range(2))
    assert first != second
    assert re.fullmatch(r"[\w-]{43}", first)
    assert re.fullmatch(r"admin [\w-]{43}\n", run_flambeau("token", "--scope", "admin").stdout)


# Binding (T-08)


def test_another_address_is_served_with_tokens_t08(serve: Serve, double_py: Path, tokens_file: Path) -> None:
    with serve(f"{double_py}:Double", "--allow-code", "--host", "0.0.0.0", "--tokens-file", tokens_file) as started:
        started.url = started.url.replace("0.0.0.0", "127.0.0.1")
        assert started.post(**predict(None)).status_code == 401
        assert started.post(**predict(INFER, Host="any.example")).status_code == 200  # nobody said which names


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


@pytest.fixture(scope="module")
def open_app(double_py: Path) -> Iterator[Flask]:
    """An application without tokens, with a route of somebody else's."""
    made = flambeau.create_app(f"{double_py}:Double", allow_code=True)
    made.add_url_rule("/mine", "mine", lambda: "mine")
    yield made
    made.extensions["flambeau"].close()


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


# Rates


def test_a_token_has_its_own_rate(serve: Serve, double_py: Path, tokens_file: Path) -> None:
    flags = ("--tokens-file", tokens_file, "--rate-limit", "3/day")
    with serve(f"{double_py}:Double", "--allow-code", *flags) as started:
        answers = [started.post(**predict(INFER)) for _ in range(4)]
        assert [each.status_code for each in answers] == [200, 200, 200, 429]
        assert answers[-1].json()["code"] == "rate_limited"
        assert answers[-1].json()["retryable"] is True
        assert int(answers[-1].headers["Retry-After"]) > 0
        assert started.post(**predict(HASHED)).status_code == 200
        assert started.get("/metrics", headers=bearer(ADMIN)).status_code == 200  # only predictions count
        spoofed = [started.post(**predict(INFER, **{"X-Forwarded-For": f"10.0.0.{n}"})) for n in range(2)]
        assert {each.status_code for each in spoofed} == {429}  # T-35


def test_an_address_has_a_rate_where_there_are_no_tokens(double_py: Path) -> None:
    app = flambeau.create_app(f"{double_py}:Double", allow_code=True, rate_limit="2/day")
    client = app.test_client()
    asked = [client.post("/predict", json={"input": 1}).status_code for _ in range(3)]
    other = client.post("/predict", json={"input": 1}, environ_base={"REMOTE_ADDR": "10.1.1.1"}).status_code
    app.extensions["flambeau"].close()
    assert (asked, other) == ([200, 200, 429], 200)


def files(count: int) -> list[tuple[str, bytes]]:
    return [("file", b"x")] * count


def test_a_rate_counts_items_and_not_requests_a16(serve: Serve, double_py: Path) -> None:
    """`--rate-limit 5/minute` once let 320 predictions through, sixty-four a request."""
    with serve(f"{double_py}:Double", "--allow-code", "--rate-limit", "5/day") as started:
        assert started.post(files=files(3)).status_code == 200
        refused = started.post(files=files(3))
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert int(refused.headers["Retry-After"]) > 0
        refused = started.post("/", files=files(3))  # the page's form counts as well
        assert refused.status_code == 429
        never = started.post(files=files(6))
        assert never.status_code == 429  # it was the fifth request, and nothing is left
    with serve(f"{double_py}:Double", "--allow-code", "--rate-limit", "5/day") as started:
        never = started.post(files=files(6))
        assert (never.status_code, never.json()["code"], never.json()["retryable"]) == (413, "too_many_items", False)
        assert started.post(files=files(4)).status_code == 200


def test_a_rate_counts_items_under_plain_wsgi_too_a16(double_py: Path) -> None:
    app = flambeau.create_app(f"{double_py}:Double", allow_code=True, rate_limit="5/day")
    client = app.test_client()
    body = b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\nx\r\n" * 3 + b"--b--\r\n"
    kind = "multipart/form-data; boundary=b"
    answers = [client.post("/predict", data=body, content_type=kind).status_code for _ in range(2)]
    app.extensions["flambeau"].close()
    assert answers == [200, 429]


@pytest.mark.parametrize("rate", ["many", "5/fortnight", "minute"])
def test_what_is_no_rate_is_refused(rate: str) -> None:
    with pytest.raises(flambeau.SetupError, match="--rate-limit"):
        flambeau.create_app(rate_limit=rate)


# TLS


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("tls")
    return {name: certificate(folder, name) for name in ("ours", "other")}


def test_predictions_are_served_over_tls(
    serve: Serve, double_py: Path, identities: dict[str, tuple[Path, Path]]
) -> None:
    cert, key = identities["ours"]
    with serve(f"{double_py}:Double", "--allow-code", "--tls-certificate", cert, "--tls-key", key) as started:
        assert started.url.startswith("https://")
        with requests.Session() as session:
            for _ in range(2):
                answered = session.post(started.url + "/predict", json={"input": 4}, verify=str(cert), timeout=60)
                assert answered.json() == {"output": 8.0}
        host, port = started.url.removeprefix("https://").split(":")
        context = ssl.create_default_context(cafile=str(cert))
        with (
            socket.create_connection((host, int(port)), timeout=60) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as encrypted,
        ):
            assert encrypted.version() == "TLSv1.3"
        with socket.create_connection((host, int(port)), timeout=60) as sock:
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert not sock.recv(100).startswith(b"HTTP/1.1 200")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(str(cert))
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with (
            socket.create_connection((host, int(port)), timeout=60) as sock,
            pytest.raises(ssl.SSLError),
        ):
            old.wrap_socket(sock, server_hostname="localhost")


def test_a_certificate_that_cannot_be_used_is_told_before_anything_is_loaded(
    identities: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    from flambeau.http.listening import server_context
    from flambeau.settings.service import Settings

    (cert, key), (_, other) = identities["ours"], identities["other"]
    (tmp_path / "text").write_text("hello")
    for given, says in (
        ({"tls_certificate": cert}, "without --tls-key"),
        ({"tls_key": key}, "without --tls-certificate"),
        ({"tls_certificate": cert, "tls_key": other}, "another certificate"),
        ({"tls_certificate": tmp_path / "none", "tls_key": key}, "cannot be read"),
        ({"tls_certificate": tmp_path / "text", "tls_key": key}, "not a PEM file"),
    ):
        told: dict[str, Any] = {name: str(file) for name, file in given.items()}
        with pytest.raises(flambeau.SetupError, match=says):
            server_context(Settings(**told))
    done = run_flambeau("serve", "--tls-certificate", cert)
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)


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


def test_a_tokens_file_that_changes_is_read_again(serve: Serve, double_py: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"

    def write(text: str) -> None:
        other = tmp_path / "other"
        other.write_text(text)
        other.chmod(0o600)
        other.rename(file)

    def works(token: str) -> bool:
        answer = running.post(json={"input": 4}, headers=bearer(token))
        assert answer.status_code in (200, 401, 429)
        return answer.status_code == 200

    write(f"infer {INFER}\n")
    with serve(f"{double_py}:Double", "--allow-code", "--replicas", "1", "--tokens-file", file) as running:
        assert works(INFER)
        write(f"infer {HASHED}\n")
        running.wait_until(lambda: works(HASHED), within=30)
        assert not works(INFER)
        write("infer short\n")  # a mistake locks nobody out, and lets nobody in
        running.wait_until(lambda: works(HASHED) and "the tokens stay as they were" in running.log(), within=30)
        file.unlink()
        running.wait_until(lambda: works(HASHED) and "cannot be read (No such file" in running.log(), within=10)
        write(f"infer {HASHED}\nadmin {ADMIN}\n")
        running.wait_until(lambda: works(ADMIN) and "tokens read again" in running.log(), within=30)
        assert running.get("/metrics", headers=bearer(HASHED)).status_code == 403
        assert running.get("/metrics", headers=bearer(ADMIN)).status_code == 200
