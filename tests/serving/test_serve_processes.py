"""A real server with real worker processes: what the front maps into its memory, and what clients see of a death."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from flambeau.bundle.storage import Bundle
from tests.support.fleet import children, ended, wait_for
from tests.support.server import Serve, ServerProcess

GUARDED = """
import os, time
from pathlib import Path
import flambeau

HERE = Path({folder!r})

class Guarded(flambeau.PythonModel):
    def load(self):
        while (HERE / "slow").exists():
            time.sleep(0.01)

    def predict(self, batch):
        for item in batch:
            if item == "poison":
                os.abort()
        time.sleep(0.01)
        return [[item] for item in batch]
"""


@pytest.fixture
def guarded(tmp_path: Path) -> str:
    """A Python model that loads slowly while a file is there, and dies of one input."""
    (tmp_path / "guarded.py").write_text(GUARDED.format(folder=str(tmp_path)))
    return f"{tmp_path}/guarded.py:Guarded"


def maps(pid: int) -> str:
    """The files that a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text()


def test_the_front_maps_neither_engine_nor_decoder_and_its_workers_no_torch_i7(
    serve: Serve, default_bundle: Bundle, cat: bytes
) -> None:
    with serve("--replicas", 2) as server:
        assert server.post(files={"file": cat}).json()["class_name"] == "Egyptian_cat"
        front = maps(server.process.pid)
        for library in ("torch", "_imaging", "PIL", "onnxruntime"):
            assert library not in front
        workers = children(server.process.pid)
        assert len(workers) == 2
        for pid in workers:
            assert "onnxruntime" in maps(pid)
            assert "_imaging" in maps(pid)
            assert "torch" not in maps(pid)
        server.process.terminate()
        assert server.process.wait(60) == 0
        assert all(map(ended, workers))


@pytest.mark.long
def test_killing_workers_under_load_loses_no_request_f01(serve: Serve, guarded: str) -> None:
    """I1, I2: eight clients, a kill -9 of one of the two workers again and again, every request its own answer."""
    done = threading.Event()
    answered: list[int] = []

    def client(number: int) -> None:
        with requests.Session() as session:
            turn = 0
            while not done.is_set():
                sent = f"{number}.{turn}"
                answer = session.post(server.url + "/predict", json={"input": sent}, timeout=60)
                assert (answer.status_code, answer.json()) == (200, {"output": [sent]})
                answered.append(number)
                turn += 1

    with serve(guarded, "--allow-code", "--replicas", 2) as server, ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, number) for number in range(8)]
        try:
            for kills in range(5):
                before = len(answered)
                wait_for(lambda: len(answered) >= before + 50 or any(each.done() for each in clients))  # noqa: B023
                wait_for(lambda: server.log().count("worker ready") == kills)  # noqa: B023 (one that starts: no loss)
                victim = children(server.process.pid)[0]
                os.kill(victim, signal.SIGKILL)
                wait_for(lambda: victim not in children(server.process.pid))  # noqa: B023
        finally:
            done.set()
        for each in clients:
            each.result()
        assert len(answered) > 250
        assert server.log().count("worker lost") == 5


def test_readiness_follows_the_only_worker_f02(serve: Serve, guarded: str, tmp_path: Path) -> None:
    with serve(guarded, "--allow-code", "--replicas", 1) as server:
        assert server.get("/readyz").status_code == 200
        (tmp_path / "slow").touch()
        os.kill(children(server.process.pid)[0], signal.SIGKILL)
        wait_for(lambda: server.get("/readyz").status_code == 503)
        assert server.get("/livez").status_code == 200
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.post, json={"input": 1})
            wait_for(lambda: "flambeau_queue_items{" in server.get("/metrics").text and _queued(server) == 1)
            (tmp_path / "slow").unlink()
            assert waiting.result().json() == {"output": [1]}
        wait_for(lambda: server.get("/readyz").status_code == 200)


def _queued(server: ServerProcess) -> float:
    [line] = [line for line in server.get("/metrics").text.splitlines() if line.startswith("flambeau_queue_items{")]
    return float(line.rpartition(" ")[2])


def test_an_input_that_kills_its_worker_is_refused_and_the_rest_is_answered_f05(serve: Serve, guarded: str) -> None:
    with serve(guarded, "--allow-code") as server:
        first = server.post(json={"input": "poison"})
        assert (first.status_code, first.json()["code"]) == (500, "model_crashed")
        second = server.post(json={"input": "poison"})
        assert (second.status_code, second.json()["code"]) == (422, "poison_input")
        assert server.post(json={"input": "fine"}).json() == {"output": ["fine"]}
        assert server.log().count("worker lost") == 1
        assert not list(Path.cwd().glob("core*"))


def test_no_worker_outlives_a_killed_server_f08(serve: Serve, guarded: str) -> None:
    with serve(guarded, "--allow-code", "--replicas", 2) as server:
        workers = children(server.process.pid)
        server.process.kill()
        server.process.wait(60)
        wait_for(lambda: all(map(ended, workers)))
    assert len(workers) == 2


HANGING = """
import time
from pathlib import Path
import flambeau

class Hanging(flambeau.PythonModel):
    def predict(self, batch):
        while (Path({folder!r}) / "hang").exists():
            time.sleep(0.01)
        return batch
"""


@pytest.fixture
def hanging(tmp_path: Path) -> str:
    """A Python model that hangs over every input while a file is there."""
    (tmp_path / "hanging.py").write_text(HANGING.format(folder=str(tmp_path)))
    return f"{tmp_path}/hanging.py:Hanging"


def test_a_model_that_hangs_over_all_inputs_is_told_and_stays_ready_for_others_a2(
    serve: Serve, hanging: str, tmp_path: Path
) -> None:
    """Nobody but clients has an input for it: if that took readiness away, one of them could end the service."""
    with serve(hanging, "--allow-code", "--replicas", 1, "--compute-timeout", 0.5) as server:
        (tmp_path / "hang").touch()
        for value in range(5):
            assert "the model only hangs" not in server.log()
            answered = server.post(json={"input": value})
            assert (answered.status_code, answered.json()["code"]) == (504, "model_timeout")
        wait_for(lambda: "the model only hangs: it has answered nothing since" in server.log())
        wait_for(lambda: server.get("/readyz").status_code == 200)
        (tmp_path / "hang").unlink()
        assert server.post(json={"input": 0}).json() == {"output": 0}
        assert server.post(json={"input": 7}).json() == {"output": 7}
        wait_for(lambda: server.log().count("the model answers again") == 1)


@pytest.mark.long
def test_a_model_with_golden_samples_that_hangs_over_them_is_not_ready_a2(
    serve: Serve, hanging: str, tmp_path: Path
) -> None:
    """What a new worker cannot answer tells of the model: no client has chosen it."""
    samples = tmp_path / "samples"
    samples.mkdir()
    (samples / "a.json").write_text('{"input": 21, "output": 21}')
    with serve(hanging, "--allow-code", "--replicas", 1, "--compute-timeout", 0.5, "--samples", samples) as server:
        assert server.get("/readyz").status_code == 200
        (tmp_path / "hang").touch()
        assert server.post(json={"input": 1}).json()["code"] == "model_timeout"
        wait_for(lambda: server.get("/readyz").status_code == 503)
        (tmp_path / "hang").unlink()
        wait_for(lambda: server.get("/readyz").status_code == 200)
        assert server.post(json={"input": 1}).json() == {"output": 1}
