"""Rates of tokens and addresses, counted in items; and TLS."""

import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests

import flambeau
from tests.support import server as servers
from tests.support.access import ADMIN, HASHED, INFER, bearer, predict
from tests.support.fronts import application
from tests.support.server import FLAMBEAU, Serve
from tests.support.warm import run_with_torch

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
    with application(f"{double_py}:Double", allow_code=True, rate_limit="2/day") as app:
        client = app.test_client()
        asked = [client.post("/predict", json={"input": 1}).status_code for _ in range(3)]
        other = client.post("/predict", json={"input": 1}, environ_base={"REMOTE_ADDR": "10.1.1.1"}).status_code
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
    body = b"--b\r\nContent-Disposition: form-data; name=file\r\n\r\nx\r\n" * 3 + b"--b--\r\n"
    kind = "multipart/form-data; boundary=b"
    with application(f"{double_py}:Double", allow_code=True, rate_limit="5/day") as app:
        client = app.test_client()
        answers = [client.post("/predict", data=body, content_type=kind).status_code for _ in range(2)]
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


_ON_WINDOWS = """
import asyncio, sys

def add_reader(*_):
    raise NotImplementedError

sys.modules["uvloop"] = None
asyncio.SelectorEventLoop.add_reader = add_reader
from flambeau.__main__ import main
main()
"""


def test_tls_needs_no_loop_that_watches_sockets(
    double_py: Path, identities: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """That of Windows does not."""
    cert, key = identities["ours"]
    tls = ("--tls-certificate", cert, "--tls-key", key)
    model = (f"{double_py}:Double", "--allow-code", "--runner", "threads", "--port", "0")
    with servers.started([FLAMBEAU[0], "-c", _ON_WINDOWS, "serve", *model, *tls], tmp_path) as server:
        answered = requests.post(server.url + "/predict", json={"input": 4}, verify=str(cert), timeout=60)
        assert answered.json() == {"output": 8.0}


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
    done = run_with_torch("serve", "--tls-certificate", cert)
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
