"""Models that share cores and workers, over HTTP: who is busy gets more workers, and nobody loses a request over it."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import flambeau
from tests.support.fleet import children
from tests.support.server import Serve, ServerProcess, started
from tests.support.warm import run_with_torch

CODE = """
import time
import flambeau


class Slow(flambeau.PythonModel):
    def predict(self, batch):
        time.sleep(0.01)
        return [item * 10 for item in batch]
"""
QUICKLY_IDLE = (
    "import sys; from flambeau.serving import elasticity; elasticity._IDLE_SECONDS = 1.0; "
    "from flambeau.__main__ import main; main()"
)
"""`flambeau` that ends workers that nobody needs after a second, and not after half a minute."""


def put(repository: Path, model: str, settings: str = "", version: str = "1") -> None:
    folder = repository / model / version
    folder.mkdir(parents=True)
    (folder / "slow.py").write_text(CODE)
    (folder / "model.toml").write_text(f'source = "slow.py:Slow"\nmax_batch_size = 1\n{settings}')


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[ServerProcess]:
    """Two models that may have two workers each."""
    folder = tmp_path_factory.mktemp("cores")
    for model in ("busy", "calm"):
        put(folder / "repository", model, "replicas = 2")
    command = [sys.executable, "-c", QUICKLY_IDLE, "serve", folder / "repository", "--port", "0", "--allow-code"]
    with started(command, folder) as server:
        yield server


def workers(server: ServerProcess, model: str) -> int:
    return int(server.get(f"/models/{model}/1").json()["workers"])


class Clients:
    """Clients of one model that ask without a pause, and note what was not right."""

    def __init__(self, server: ServerProcess, model: str, *, clients: int) -> None:
        self._url = f"{server.url}/predict/{model}"
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        self.faults: list[Any] = []
        self.answered = 0

    def _ask(self) -> None:
        with requests.Session() as session:
            for number in itertools.count():
                if self._stop.is_set():
                    return
                try:
                    response = session.post(self._url, json={"input": number}, timeout=60)
                except requests.RequestException as error:
                    self.faults.append(error)
                    continue
                if response.json().get("output") != 10 * number:
                    self.faults.append(response.text)
                self.answered += 1

    def __enter__(self) -> "Clients":
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()
        assert not self.faults
        assert self.answered


def test_a_flooded_model_gets_the_workers_that_it_may_have_and_gives_them_back(server: ServerProcess) -> None:
    assert [workers(server, model) for model in ("busy", "calm")] == [1, 1]
    detail = server.get("/models/busy/1").json()
    assert (detail["min_replicas"], detail["max_replicas"]) == (1, 2)
    cost = detail["cost"]
    with Clients(server, "busy", clients=8):
        server.wait_until(lambda: workers(server, "busy") == 2, within=30)
        metrics = server.get("/metrics").text
        assert 'flambeau_workers{model="calm",state="idle",version="1"} 1' in metrics
        for number in range(20):
            assert server.post("/predict/calm", json={"input": number}).json()["output"] == 10 * number
        server.wait_until(lambda: server.get("/models/busy/1").json()["cost"] > cost, within=30)  # it is measured
        assert workers(server, "calm") == 1
    server.wait_until(lambda: workers(server, "busy") == 1, within=30)
    server.wait_until(lambda: server.get("/models/busy/1").json()["cost"] < 1.5 * cost, within=30)
    told = [line for line in server.log().splitlines() if " workers model=" in line]
    assert ["before=1 now=2" in told[0], "before=2 now=1" in told[1], len(told)] == [True, True, 2]
    assert "worker lost" not in server.log()


def test_a_model_that_is_served_alone_has_as_many_workers_as_it_needs(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(CODE)
    command = [
        sys.executable, "-c", QUICKLY_IDLE, "serve", tmp_path / "slow.py:Slow", "--port", "0", "--allow-code",
        "--max-batch-size", "1", "--replicas", "2", "--min-replicas",
    ]  # fmt: skip
    refused = subprocess.run([*map(str, command), "3"], capture_output=True, text=True, check=False)
    assert "--min-replicas 3 are more than the 2 that Slow may have: say --replicas, too" in refused.stderr
    with started([*command, "1"], tmp_path) as server:
        detail = server.get("/models/Slow/1").json()
        assert [detail[each] for each in ("workers", "min_replicas", "max_replicas")] == [1, 1, 2]
        with Clients(server, "Slow", clients=8):
            server.wait_until(lambda: workers(server, "Slow") == 2, within=30)
        server.wait_until(lambda: workers(server, "Slow") == 1, within=30)


def test_the_number_of_workers_changes_under_load_and_no_request_fails(server: ServerProcess) -> None:
    def change(replicas: int) -> None:
        changed = requests.put(f"{server.url}/models/busy", json={"replicas": replicas}, timeout=60)
        assert changed.status_code == 200
        assert server.get("/models/busy/1").json()["max_replicas"] == replicas

    loaded = server.get("/models/busy/1").json()["loaded_at"]
    with Clients(server, "busy", clients=8):
        for replicas in (1, 2, 1, 3, 1):
            change(replicas)
            server.wait_until(lambda: workers(server, "busy") == replicas, within=30)  # noqa: B023 (in its turn)
    assert server.get("/models/busy/1").json()["loaded_at"] == loaded
    change(2)


@pytest.mark.long
def test_workers_killed_while_their_number_changes_cost_no_request(server: ServerProcess) -> None:
    rng = random.Random(1)
    with Clients(server, "busy", clients=8), Clients(server, "calm", clients=1):
        for turn in range(6):
            requests.put(f"{server.url}/models/busy", json={"replicas": 1 + turn % 2}, timeout=60)
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(children(server.process.pid)), signal.SIGKILL)
            server.wait_until(lambda: server.get("/readyz").status_code == 200, within=30)
    requests.put(f"{server.url}/models/busy", json={"replicas": 2}, timeout=60)


def test_what_cannot_be_is_refused_and_the_command_and_the_client_do_the_same(server: ServerProcess) -> None:
    for replicas, words in ((0, ">= 1"), (10_000, "a model may have at most")):
        refused = requests.put(f"{server.url}/models/calm", json={"replicas": replicas}, timeout=60)
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
        assert words in refused.json()["error"]
    done = run_with_torch("models", "--server", server.url, "set", "calm", "--replicas", 3, "--max-queue-size", 9)
    assert done.stdout.splitlines()[1:] == ["calm   1        ready  default"], done.stderr
    assert server.get("/models/calm/1").json()["max_replicas"] == 3
    assert "--replicas 2" in run_with_torch("models", "--server", server.url, "set", "calm").stderr
    with flambeau.Client(server.url) as client:
        assert client.set_limits("calm", replicas=2)["name"] == "calm"
        assert client.model("calm", 1)["max_replicas"] == 2


@pytest.mark.long
def test_a_model_alone_has_all_of_its_workers_and_so_has_the_version_that_takes_over(
    serve: Serve, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    put(repository, "cats", "replicas = 2")
    with serve(repository, "--allow-code", replicas=None) as server:
        assert workers(server, "cats") == 2
        requests.put(f"{server.url}/models/cats", json={"replicas": 3}, timeout=60)
        server.wait_until(lambda: workers(server, "cats") == 3, within=30)  # though nobody asks it
        put(repository, "cats", "replicas = 2", version="2")
        assert requests.post(f"{server.url}/models/cats/versions/2/load", timeout=60).status_code == 200
        assert server.get("/models/cats/2").json()["workers"] == 3  # what an operator has set holds for it, too


@pytest.mark.long
def test_workers_that_are_threads_stay_as_many(serve: Serve, tmp_path: Path) -> None:
    for model in ("cats", "dogs"):
        put(tmp_path / "repository", model, "replicas = 2")
    with serve(tmp_path / "repository", "--allow-code", "--runner", "threads", replicas=None) as server:
        detail = server.get("/models/cats/1").json()
        assert [detail[each] for each in ("workers", "min_replicas", "max_replicas")] == [2, 2, 2]
        refused = requests.put(f"{server.url}/models/cats", json={"replicas": 1}, timeout=60)
        assert (refused.status_code, "--runner processes" in refused.json()["error"]) == (400, True)
