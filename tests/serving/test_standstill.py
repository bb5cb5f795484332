"""No clock condemns (A3): a front that stood still finds nobody guilty of it. And inputs that hang are answered as what
they are, while the others have their answers beside them (A2).
"""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.fleet import wait_for
from tests.support.server import Serve, ServerProcess

SLEEPER = """
import time
from pathlib import Path
import flambeau

class Sleeper(flambeau.PythonModel):
    def predict(self, batch):
        Path({begun!r}).touch()
        time.sleep(max(item["seconds"] for item in batch))
        return [item["name"] for item in batch]
"""


@pytest.fixture
def sleeper(tmp_path: Path) -> str:
    (tmp_path / "sleeper.py").write_text(SLEEPER.format(begun=str(tmp_path / "begun")))
    return f"{tmp_path / 'sleeper.py'}:Sleeper"


def ask(server: ServerProcess, name: str, seconds: float) -> requests.Response:
    return server.post(json={"input": {"name": name, "seconds": seconds}})


def stand_still(server: ServerProcess, begun: Path, *, seconds: float) -> None:
    """Stop the front, and not its workers, while a worker has a request in hand."""
    wait_for(begun.exists)
    begun.unlink()
    os.kill(server.process.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(server.process.pid, signal.SIGCONT)


@pytest.mark.long
@pytest.mark.parametrize("limits", [("--compute-timeout", 2), ("--deadline", 2)])
def test_a_front_that_stood_longer_than_the_limit_answers_what_was_computed_meanwhile_a3(
    serve: Serve, sleeper: str, tmp_path: Path, limits: tuple[str, int]
) -> None:
    with serve(sleeper, "--allow-code", "--replicas", 1, *limits) as server, ThreadPoolExecutor() as pool:
        for _ in range(2):  # the second time it would be refused, had the first been held against it
            answer = pool.submit(ask, server, "innocent", 1.2)
            stand_still(server, tmp_path / "begun", seconds=3)
            assert answer.result().json() == {"output": "innocent"}
        assert "worker lost" not in server.log()


@pytest.mark.long
@pytest.mark.parametrize("replicas", [1, 2])
def test_many_inputs_that_hang_do_not_make_the_model_refuse_the_others_a2(
    serve: Serve, sleeper: str, replicas: int
) -> None:
    """Six hang at once, all of them different, and four clients go on asking for what takes no time."""
    done = threading.Event()

    def client(number: int) -> list[int]:
        seen: list[int] = []
        while not done.is_set():
            seen.append(ask(server, f"other {number}.{len(seen)}", 0.01).status_code)
        return seen

    limits = ("--compute-timeout", 1, "--max-batch-size", 1, "--deadline", 50)
    with (
        serve(sleeper, "--allow-code", "--replicas", replicas, *limits) as server,
        ThreadPoolExecutor(10) as pool,
    ):
        hostile = [pool.submit(ask, server, f"hostile {number}", 500) for number in range(6)]
        clients = [pool.submit(client, number) for number in range(4)]
        refused = [each.result() for each in hostile]
        done.set()
        assert {(each.status_code, each.json()["code"]) for each in refused} == {(504, "model_timeout")}
        assert {code for each in clients for code in each.result()} == {200}
        assert server.log().count("how=hung") == 6
        assert "only crashes" not in server.log()


@pytest.mark.long
def test_an_input_that_hangs_is_not_tried_a_third_time_a3(serve: Serve, sleeper: str) -> None:
    """One hang alone does not convict: the second does."""
    with serve(sleeper, "--allow-code", "--replicas", 1, "--compute-timeout", 0.5) as server:
        answers = [ask(server, "hostile", 500) for _ in range(3)]
        assert [(each.status_code, each.json()["code"]) for each in answers] == [
            (504, "model_timeout"), (504, "model_timeout"), (422, "poison_input"),
        ]  # fmt: skip
        assert server.log().count("how=hung") == 2
