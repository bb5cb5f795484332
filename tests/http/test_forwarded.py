"""Proxies: whose word about a client is taken, and what is made of it; prefixes of paths."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from flambeau.errors import ConfigError
from flambeau.http.forwarded import Forwarding
from flambeau.settings.service import Settings
from tests.support.server import Serve, ServerProcess
from tests.support.tensor_bundles import doubling

PROXIES = "10.0.0.0/8,127.0.0.1,fd00::/8"


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("10.0.0.1", {"x-forwarded-for": "203.0.113.5"}, "203.0.113.5"),
        ("10.0.0.1", {"x-forwarded-for": "203.0.113.5:4711"}, "203.0.113.5"),
        ("10.0.0.1", {"x-forwarded-for": "[2001:db8::1]:4711"}, "2001:db8::1"),
        ("10.0.0.1", {"x-forwarded-for": "1.1.1.1, 203.0.113.5"}, "203.0.113.5"),  # the first is the client's invention
        ("10.0.0.1", {"x-forwarded-for": "203.0.113.5, 10.9.9.9, 10.0.0.7"}, "203.0.113.5"),
        ("10.0.0.1", {"x-forwarded-for": "10.1.1.1"}, "10.1.1.1"),  # a client inside
        ("::ffff:10.0.0.1", {"x-forwarded-for": "203.0.113.5"}, "203.0.113.5"),
        ("fd00::1", {"forwarded": 'for=1.1.1.1, for="[2001:db8::1]:80";proto=https;by=x'}, "2001:db8::1"),
        ("10.0.0.1", {"forwarded": "proto=https;For=203.0.113.5"}, "203.0.113.5"),
        ("10.0.0.1", {"forwarded": "for=203.0.113.5, for=unknown"}, "10.0.0.1"),
        ("10.0.0.1", {"forwarded": "for=_hidden"}, "10.0.0.1"),
        ("10.0.0.1", {"x-forwarded-for": "203.0.113.5, nonsense, 10.0.0.2"}, "10.0.0.2"),
        ("10.0.0.1", {"x-forwarded-for": "203.0.113.5", "forwarded": "for=1.1.1.1"}, "10.0.0.1"),  # one is the client's
        ("10.0.0.1", {}, "10.0.0.1"),
        ("192.0.2.1", {"x-forwarded-for": "203.0.113.5", "x-forwarded-proto": "https"}, "192.0.2.1"),  # not trusted
        ("", {"x-forwarded-for": "203.0.113.5"}, ""),  # a Unix socket, which is not named
    ],
)
def test_the_last_address_that_is_no_trusted_proxys_is_the_clients(
    peer: str, headers: dict[str, str], client: str
) -> None:
    assert Forwarding(Settings(trusted_proxies=PROXIES)).client(peer, headers) == client


def test_the_scheme_is_the_nearest_proxys_and_only_if_it_is_trusted() -> None:
    trusting = Forwarding(Settings(trusted_proxies="unix,10.0.0.1"))
    assert trusting.scheme("", {"x-forwarded-proto": "http, https"}, "http") == "https"
    assert trusting.scheme("10.0.0.1", {"forwarded": "for=1.1.1.1;proto=https"}, "http") == "https"
    assert trusting.scheme("10.0.0.1", {"x-forwarded-proto": "gopher"}, "http") == "http"
    assert trusting.scheme("10.0.0.2", {"x-forwarded-proto": "https"}, "http") == "http"
    assert trusting.client("", {"x-forwarded-for": "203.0.113.5"}) == "203.0.113.5"


def test_names_of_proxies_are_refused() -> None:
    with pytest.raises(ConfigError, match="--trusted-proxies proxy is no address, network"):
        Forwarding(Settings(trusted_proxies="10.0.0.1, proxy"))


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    bundle = doubling(tmp_path_factory.mktemp("forwarded") / "doubling")
    with serve(bundle, "--replicas", "1", "--trusted-proxies", "127.0.0.1", "--root-path", "/cats",
               "--rate-limit", "2/hour") as running:  # fmt: skip
        yield running


def ask(server: ServerProcess, client: str, path: str = "/predict", *, chunked: bool = False) -> requests.Response:
    """A prediction on behalf of a client. Chunked bodies take the way over ASGI."""
    body = b'{"input": [1, 2, 3]}'
    headers = {"X-Forwarded-For": client, "Content-Type": "application/json"}
    return server.post(path, data=iter([body]) if chunked else body, headers=headers)


def test_rates_are_limited_for_each_client_behind_the_proxy(server: ServerProcess) -> None:
    assert [ask(server, "203.0.113.1").status_code for _ in range(3)] == [200, 200, 429]
    assert ask(server, "203.0.113.1", chunked=True).status_code == 429
    assert [ask(server, f"9.9.9.{each}, 203.0.113.1").status_code for each in range(2)] == [429, 429]
    assert ask(server, "203.0.113.2").status_code == 200
    assert ask(server, "203.0.113.2", chunked=True).status_code == 200
    assert ask(server, "203.0.113.2").status_code == 429


def test_a_prefix_may_be_stripped_or_left(server: ServerProcess) -> None:
    assert ask(server, "203.0.113.3", "/cats/predict").json() == {"output": [2, 4, 6]}
    assert ask(server, "203.0.113.3", "/cats/predict", chunked=True).json() == {"output": [2, 4, 6]}
    for path in ("/readyz", "/cats/readyz", "/cats/", "/cats", "/cats/static/style.css", "/static/style.css"):
        assert server.get(path).status_code == 200, path
    assert server.get("/catsuit/readyz").status_code == 404
    shown = server.get("/", headers={"X-Forwarded-Proto": "https", "Host": "localhost"}).text
    assert "https://localhost/cats/predict" in shown


def test_behind_a_proxy_loopback_manages_nothing_without_a_token(server: ServerProcess) -> None:
    assert server.post("/v2/repository/models/doubling/unload").status_code == 403


def test_a_server_without_proxies_believes_nobody(serve: Serve, tmp_path: Path) -> None:
    with serve(doubling(tmp_path / "doubling"), "--replicas", "1", "--rate-limit", "1/hour") as running:
        assert ask(running, "203.0.113.1").status_code == 200
        assert ask(running, "203.0.113.2").status_code == 429
