"""Several fronts on one port: balance, counts, deaths, limits and changes, with real processes."""

import contextlib
import functools
import http.client
import itertools
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from flambeau.bundle.storage import Bundle
from flambeau.system.process import proportional_bytes
from tests.support.server import Serve, ServerProcess, run_anew
from tests.support.several_fronts import (
    KeepAlive,
    alive,
    all_ready,
    answered,
    children,
    end,
    eventually,
    presence,
    replaced,
    samples,
)

JSON = {"Content-Type": "application/json"}
TOTAL = (("model", "commands"), ("stage", "total"), ("version", "1"))


@pytest.fixture(scope="module")
def server(serve: Serve, obedient: Path) -> Iterator[ServerProcess]:
    """Two fronts; every test leaves both of them ready."""
    with serve(obedient, "--allow-code", "--fronts", "2", "--replicas", "2") as two:
        yield two


@pytest.fixture(autouse=True)
def _whole(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        eventually(lambda: all_ready(request.getfixturevalue("server")))


def connections(server: ServerProcess) -> list[float]:
    return [value for (name, _), value in sorted(samples(server).items()) if name == "flambeau_front_connections"]


def sockets(pid: int) -> set[str]:
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed meanwhile
            found.add(str(each.readlink()))
    return {each for each in found if each.startswith("socket:")}


def shared_bytes(pid: int) -> int:
    """Of a process, the memory of its own that others have, too."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Shared_Dirty:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such line")


def test_the_first_fronts_share_the_supervisors_memory_and_nothing_else_of_it(server: ServerProcess) -> None:
    """They have the channel for events in common, and not the socket that is listened on, nor each other's channels."""
    supervisor, fronts = server.process.pid, children(server.process.pid)
    assert len(fronts) == 2
    for each in fronts:
        assert shared_bytes(each) > 5 * 2**20
        assert len(sockets(each) & sockets(supervisor)) == 1
        assert not (sockets(each) & sockets(fronts[0]) & sockets(fronts[1])) - sockets(supervisor)


def test_connections_are_balanced_within_one(server: ServerProcess) -> None:
    eventually(lambda: sum(connections(server)) == 1)  # that of the question
    clients = [KeepAlive(server) for _ in range(8)]
    for number, client in enumerate(clients):
        assert client.ask(number) == (200, number)
    found = connections(server)  # with that of the question
    assert sum(found) == 9
    assert max(found) - min(found) <= 1

    # four go away, wherever they were; those that come next make up for it
    for client in clients[:4]:
        client.close()
    eventually(lambda: sum(connections(server)) == 5)
    clients[:4] = [KeepAlive(server) for _ in range(4)]
    for client in clients[:4]:
        assert client.ask("again") == (200, "again")
    found = connections(server)
    assert max(found) - min(found) <= 1
    workers = [worker for front in children(server.process.pid) for worker in children(front)]
    assert len(workers) == 2  # as --replicas says, over both fronts
    for client in clients:
        client.close()


def test_what_is_counted_adds_up_and_never_falls(server: ServerProcess) -> None:
    before = answered(server)
    clients = [KeepAlive(server) for _ in range(7)]
    for number, client in itertools.product(range(5), clients):
        assert client.ask(number) == (200, number)
    assert answered(server) - before == 35
    stats = server.get("/v2/models/stats").json()["model_stats"]
    assert [each["inference_stats"]["success"]["count"] for each in stats] == [answered(server)]
    text = server.get("/metrics").text
    assert text.count("# TYPE flambeau_requests_total counter") == 1
    found = samples(server)
    assert found["flambeau_fronts", (("state", "ready"),)] == 2
    assert sum(value for (name, labels), value in found.items() if name == "flambeau_workers") == 2
    ones = {labels for (name, labels) in found if name == "flambeau_worker_memory_bytes"}
    assert {dict(labels)["worker"] for labels in ones} == {"1.0", "2.0"}

    # a front dies: what it had counted stays counted, to the last answer, and that of its successor is added
    before_death = samples(server)
    for number, client in itertools.product(range(3), clients):
        assert client.ask(number) == (200, number)
    victim = children(server.process.pid)[0]
    end(victim, signal.SIGKILL)
    replaced(server, victim)
    after = samples(server)
    counted = {key for key in before_death if key[0].endswith(("_total", "_count", "_bucket"))}
    assert not {key: (before_death[key], after.get(key)) for key in counted if after.get(key, 0) < before_death[key]}
    assert answered(server) - before == 56
    assert after["flambeau_stage_seconds_count", TOTAL] == answered(server)
    assert after["flambeau_front_restarts_total", (("reason", "killed"),)] == 1
    model = server.get("/models/commands").json()["versions"][0]
    assert model["workers"] == 2
    for client in clients:
        client.close()


def test_what_a_worker_logs_names_its_front(server: ServerProcess) -> None:
    clients = [KeepAlive(server) for _ in range(2)]
    assert [client.ask("x") for client in clients] == [(200, "x")] * 2  # one is at each front
    for client in clients:
        client.connection.request("POST", "/predict", b'{"input": {"do": "no", "such": 1}}', JSON)
        assert client.connection.getresponse().read()
        client.close()

    def named() -> list[str]:
        failures = [line for line in server.log().splitlines() if "the model failed on an input" in line]
        return sorted(line.rpartition(" front=")[2] for line in failures)

    eventually(lambda: len(named()) == 2)
    assert named() == ["1", "2"]


def _all_ended(*pids: int) -> bool:
    return not any(map(alive, pids))


@pytest.mark.long
def test_a_front_that_is_killed_takes_only_its_own_connections_with_it(server: ServerProcess) -> None:
    """32 clients, which ask once more when their connection breaks, and a front that dies every time both are there."""
    stop = threading.Event()
    wrong: list[object] = []
    broken, good = itertools.count(), itertools.count()

    def client(number: int) -> None:
        mine = KeepAlive(server)
        for turn in itertools.count():
            if stop.is_set():
                break
            value = f"{number}.{turn}"
            try:
                found = mine.ask(value)
            except (OSError, http.client.HTTPException):
                next(broken)
                mine.again()
                try:
                    found = mine.ask(value)
                except (OSError, http.client.HTTPException) as error:
                    wrong.append(error)
                    break
            if found != (200, value):
                wrong.append(found)
            next(good)
        mine.close()

    with ThreadPoolExecutor(32) as pool:
        running = [pool.submit(client, number) for number in range(32)]
        try:
            for turn in range(3):
                victim = children(server.process.pid)[turn % 2]
                workers = children(victim)
                end(victim, signal.SIGKILL)
                eventually(functools.partial(_all_ended, victim, *workers))  # its workers end with it
                replaced(server, victim)
        finally:
            stop.set()
        for each in running:
            each.result()
    assert not wrong
    assert 0 < next(broken) <= 3 * 32
    assert next(good) > 100


@pytest.mark.long
def test_a_change_of_a_model_reaches_every_front(serve: Serve, tmp_path: Path) -> None:
    """Also one that starts later; and what one front refuses is changed nowhere."""
    for version in ("1", "2"):
        folder = tmp_path / "repository" / "times" / version
        folder.mkdir(parents=True)
        (folder / "times.py").write_text(
            "import flambeau\n\n\nclass Times(flambeau.PythonModel):\n"
            f"    def predict(self, batch):\n        return [item * {version}0 for item in batch]\n"
        )
        (folder / "model.toml").write_text('source = "times.py:Times"\n')
    with serve(tmp_path / "repository", "--allow-code", "--fronts", "2") as server:

        def everywhere(path: str = "/predict") -> set[object]:
            """What new connections, one after another, are answered: they go to both fronts."""
            found = [server.post(path, json={"input": 1}).json() for _ in range(4)]
            return {each.get("output", each.get("code")) for each in found}

        assert everywhere() == {20}
        assert everywhere("/predict/times/1") == {"model_unavailable"}
        changed = requests.put(f"{server.url}/models/times", json={"default_version": "1"}, timeout=60)
        assert (changed.status_code, changed.json()["default_version"]) == (200, "1")
        assert everywhere() == {10}
        refused = requests.put(f"{server.url}/models/times", json={"replicas": 1}, timeout=60)
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
        assert "2 fronts" in refused.json()["error"]
        assert requests.post(f"{server.url}/models/times/versions/9/load", timeout=60).status_code == 404
        # whoever comes later repeats what was changed
        victim = children(server.process.pid)[0]
        end(victim, signal.SIGKILL)
        replaced(server, victim)
        assert everywhere() == {10}
        # one that cannot repeat it does not serve: it would answer 20, where the other answers 10
        (tmp_path / "repository/times/1").rename(tmp_path / "away")
        end(children(server.process.pid)[0], signal.SIGKILL)
        eventually(lambda: "it cannot repeat PUT /models/times" in server.log())
        assert everywhere() == {10}
        assert presence(server) == {"ready": 1, "of": 2}
        (tmp_path / "away").rename(tmp_path / "repository/times/1")
        eventually(lambda: all_ready(server))
        assert everywhere() == {10}


def test_limits_hold_over_all_fronts(serve: Serve, obedient: Path) -> None:
    limits = ("--rate-limit", "21/hour", "--max-connections-per-address", "9")
    with serve(obedient, "--allow-code", "--fronts", "2", *limits) as server:
        clients = [KeepAlive(server) for _ in range(8)]
        statuses = [client.ask("x")[0] for _ in range(5) for client in clients]
        assert (statuses.count(200), statuses.count(429)) == (21, 19)
        for client in clients:
            client.close()
        with contextlib.ExitStack() as opened:
            where = "127.0.0.1", int(server.url.rpartition(":")[2])
            for _ in range(9):
                sock = opened.enter_context(socket.create_connection(where))
                sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
            tenth = requests.get(f"{server.url}/models", timeout=60)
            assert (tenth.status_code, tenth.json()["code"]) == (429, "rate_limited")
        eventually(lambda: requests.get(f"{server.url}/models", timeout=60).status_code == 200)


@pytest.mark.slow
def test_a_front_that_hangs_is_replaced(server: ServerProcess) -> None:
    victim = children(server.process.pid)[0]
    end(victim, signal.SIGSTOP)
    replaced(server, victim)
    assert "a front hangs and is killed" in server.log()


@pytest.mark.slow
def test_weights_are_in_memory_once_whatever_the_number_of_fronts(serve: Serve, default_bundle: Bundle) -> None:
    totals = {}
    for fronts in ("1", "2"):
        with serve("--fronts", fronts, "--replicas", "2") as server:
            below = children(server.process.pid)
            everybody = [server.process.pid, *below, *(each for pid in below for each in children(pid))]
            totals[fronts] = sum(proportional_bytes(pid) for pid in everybody) / 2**20
    assert len(everybody) == 5
    assert totals["2"] - totals["1"] < 60  # a front and a supervisor more, most of whose memory is shared


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--grpc-port", "1"), "--grpc-port 1 needs one front"),
        (("--replicas", "1"), "--replicas 1 is less than --fronts 2"),
        (("--max-connections", "1"), "--max-connections 1 is less than --fronts 2"),
    ],
)
def test_what_several_fronts_cannot_keep_is_refused(arguments: tuple[str, ...], why: str) -> None:
    found = run_anew("serve", "--fronts", "2", *arguments)
    assert found.returncode != 0
    assert why in found.stderr
