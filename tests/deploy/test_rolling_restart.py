"""Two servers behind a real nginx, and behind a real HAProxy, are restarted one after the other under 32 clients: no
request fails. The proxies run the files of `deploy/`.
"""

import asyncio
import random
import ssl
import urllib.request
from pathlib import Path

import pytest

from chaos.client import Ask, Load, nonce
from chaos.ledger import Ledger
from chaos.server import Server, free_port
from tests.deploy.proxies import Proxy

CLIENTS = 32
LARGE = 150_000  # bytes: more than either proxy holds in a buffer

pytestmark = pytest.mark.deploy  # half a minute each
both = pytest.mark.parametrize("kind", ["nginx", "haproxy"])


def small_and_large(rng: random.Random) -> Ask:
    """Every fourth request is as large as a photograph."""
    return Ask(nonce(rng), more={"padding": "x" * LARGE} if rng.random() < 0.25 else {})


async def _start(folder: Path, port: int) -> Server:
    server = Server(folder, folder.parent / "cache", "Slow20", "--replicas", "1", port=port)
    await server.begin()
    await server.ready()
    return server


async def _roll(kind: str, folder: Path, *, rounds: int, changes: dict[str, str] | None = None) -> tuple[Ledger, int]:
    """What 32 clients saw while each server was restarted `rounds` times, and how often that was."""
    ports = free_port(), free_port()
    servers = [await _start(folder / f"server-{index}", port) for index, port in enumerate(ports)]
    ledger, restarts = Ledger(), 0
    try:
        async with Proxy(kind, folder / kind, ports, changes) as proxy:
            await asyncio.to_thread(_speaks_tls, proxy)
            async with Load(proxy.port, ledger, small_and_large, clients=CLIENTS, seed=1, deadline=15.0):
                for turn in range(rounds):
                    for index, port in enumerate(ports):
                        await asyncio.sleep(1.0)  # load on both
                        assert await servers[index].stop() == 0
                        servers[index] = await _start(folder / f"server-{index}-{turn}", port)
                        restarts += 1
                await asyncio.sleep(1.0)
    finally:
        for each in servers:
            await each.kill()
    return ledger, restarts


def _speaks_tls(proxy: Proxy) -> None:
    """HTTPS answers with the proxy's certificate; plain HTTP sends there; the metrics are not shown to the world."""
    trusting = ssl.create_default_context(cafile=str(proxy.certificate))
    url = f"https://localhost:{proxy.tls}"
    with urllib.request.urlopen(f"{url}/readyz", context=trusting) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{url}/metrics", context=trusting)
    assert refused.value.code == 404
    refused.value.close()
    opener = urllib.request.build_opener(_Stay())
    with pytest.raises(urllib.error.HTTPError) as sent:
        opener.open(f"http://localhost:{proxy.redirecting}/readyz")
    assert sent.value.code == 308
    assert sent.value.headers["Location"].startswith("https://localhost")
    sent.value.close()


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: object) -> None:
        return None


@both
def test_a_rolling_restart_under_load_loses_nothing(kind: str, tmp_path: Path) -> None:
    ledger, restarts = asyncio.run(_roll(kind, tmp_path, rounds=2))
    assert restarts == 4
    assert ledger.begun > 500
    assert ledger.good == ledger.begun, (ledger.summary(), ledger.complaints())
    assert not ledger.complaints()
    print(f"{kind}: {restarts} restarts, {ledger.summary()}")


def test_a_proxy_that_repeats_nothing_is_noticed(tmp_path: Path) -> None:
    repeats = "proxy_next_upstream error timeout non_idempotent;"
    ledger, _ = asyncio.run(_roll("nginx", tmp_path, rounds=1, changes={repeats: "proxy_next_upstream off;"}))
    assert ledger.complaints()


@both
def test_the_proxy_finds_its_configuration_good(kind: str, tmp_path: Path) -> None:
    done = Proxy(kind, tmp_path / kind, (5000, 5001)).checked()
    assert done.returncode == 0, done.stderr
    assert "[warn" not in done.stderr.lower(), done.stderr
