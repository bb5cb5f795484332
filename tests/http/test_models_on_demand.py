"""Models that come, go and are loaded when they are wanted: a folder that is followed, and the memory for models."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Serve
from tests.support.versions import ask, change, code, put, states
from tests.support.warm import run_with_torch


@pytest.mark.long
def test_a_repository_is_followed(serve: Serve, repository: Path) -> None:
    """A version that is still being copied is waited for; a broken one is tried again when it is mended."""
    with serve(repository, "--allow-code", "--replicas", "1", "--keep-loaded", "0", "--watch",
               "--watch-interval", "0.3") as server:  # fmt: skip
        put(repository, "3", 30)
        server.wait_until(lambda: ask(server) == 30, within=30)
        put(repository, "4", 1, load="1 / 0")
        server.wait_until(lambda: states(server).get("4") == "failed", within=30)
        assert ask(server) == 30
        (repository / "times" / "4" / "times.py").write_text(code(40))
        server.wait_until(lambda: ask(server) == 40, within=30)
        shutil.rmtree(repository / "times" / "4")
        server.wait_until(lambda: "4" not in states(server), within=30)
        assert ask(server) == 30
        put(repository, "1", 7, model="other")
        server.wait_until(lambda: ask(server, "/predict/other") == 7, within=30)
        (repository / "times" / "3" / "times.py").write_text(code(31))  # of the version that answers
        server.wait_until(lambda: "files of a loaded version have changed" in server.log(), within=30)
        assert ask(server) == 30
        (repository / "idle").mkdir()
        (repository / "idle" / "model.toml").write_text("replicas = ")  # which cannot be loaded
        server.wait_until(lambda: "model=idle" in server.log(), within=30)
        shutil.rmtree(repository / "idle")
        server.wait_until(lambda: "idle" not in server.get("/models").text, within=30)
        time.sleep(1.5)  # until the watch has seen that it is gone
        assert "could not be followed" not in server.log()
        assert "by=--watch" in server.log()
    done = run_with_torch("serve", "default", "--watch", "--port", "0")
    assert "--watch follows a repository" in done.stderr


@pytest.mark.long
def test_a_version_that_comes_while_the_service_starts_is_followed(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    put(folder, "1", 10, load="__import__('time').sleep(4)")
    later = threading.Timer(2.0, put, (folder, "2", 20))
    later.start()
    with serve(folder, "--allow-code", "--replicas", "1", "--watch", "--watch-interval", "0.2") as server:
        later.join()
        server.wait_until(lambda: ask(server) == 20, within=20)


@pytest.mark.long
def test_models_are_loaded_when_they_are_wanted_within_the_memory(serve_anew: Serve, tmp_path: Path) -> None:
    """Workers that were forked would share most of their memory with each other."""
    folder = tmp_path / "repository"
    for number in range(20):
        put(folder, "1", number + 1, model=f"m{number}")
    put(folder, "1", 1, model="broken", load="1 / 0")
    limit = 150_000_000  # two workers of 60 MB, as long as nothing is known of them
    flags = ("--allow-code", "--replicas", "1", "--load", "on-demand", "--max-memory", limit)
    with serve_anew(folder, *flags) as server:
        assert server.get("/readyz").status_code == 200
        assert {each["state"] for each in server.get("/models").json()["models"]} == {"unloaded"}
        assert "21 models on demand" in server.output()
        page = server.get("/")
        assert (page.status_code, "No model is loaded" in page.text) == (200, True)
        assert ask(server, "/predict/m0") == 1
        found = server.get("/", params={"model": "m0"}).text  # so many are searched
        assert '<datalist id="models">' in found
        assert "1 of 21 are loaded" in found
        assert "/predict/{model}" not in server.get("/openapi.json").json()["paths"]
        for number in (0, 1, 2, 3, 4, 5, 0, 3):
            assert ask(server, f"/predict/m{number}", 10) == 10 * (number + 1)
            loaded = [each for each in server.get("/models").json()["models"] if each["state"] == "ready"]
            assert f"m{number}" in {each["name"] for each in loaded}
        taken = sum(server.get(f"/models/{each['name']}/1").json()["cost"] for each in loaded)
        assert 0 < taken <= limit
        assert len(loaded) < 6
        with ThreadPoolExecutor(8) as pool:
            asked = list(pool.map(lambda _: ask(server, "/predict/broken"), range(8)))
        assert set(asked) == {(503, "model_unavailable")}
        assert server.log().count("a model cannot be loaded model=broken") == 1  # once for all of them
        (folder / "broken" / "1" / "times.py").write_text(code(9))
        server.wait_until(lambda: ask(server, "/predict/broken") == 9, within=10)
        # the default is deleted: the others are there
        shutil.rmtree(folder / "broken")
        put(folder, "2", 8, model="m5")
        server.wait_until(lambda: ask(server, "/predict/m5/2") == 8, within=10)
        assert ask(server, "/predict/m5") == 6
        assert server.get("/readyz").status_code == 200
        # all at once: each waits for memory, and nobody is answered by another's model
        answers: dict[int, Any] = {}

        def client(number: int) -> None:
            answers[number] = ask(server, f"/predict/m{number}", 100)

        clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        assert answers == {number: 100 * (number + 1) for number in range(6)}
        assert server.get("/readyz").status_code == 200


@pytest.mark.long
def test_a_request_waits_for_a_load_as_long_as_it_allows(serve: Serve, tmp_path: Path) -> None:
    put(tmp_path / "repository", "1", 2, load="__import__('time').sleep(3)")
    with serve(tmp_path / "repository", "--allow-code", "--replicas", "1", "--load", "on-demand") as server:
        began = time.monotonic()
        hurried = server.post("/predict/times", json={"input": 1}, headers={"X-Request-Timeout-Ms": "300"})
        assert (hurried.status_code, hurried.json()["code"]) == (504, "deadline_exceeded")
        assert time.monotonic() - began < 2
        assert ask(server, "/predict/times") == 2  # the load went on


@pytest.mark.long
def test_a_model_that_does_not_fit_is_refused_with_the_sum(serve_anew: Serve, repository: Path) -> None:
    with serve_anew(repository, "--allow-code", "--replicas", "1", "--max-memory", 70_000_000) as server:
        refused = change(server, "/models/times/versions/1/load")
        assert (refused.status_code, refused.json()["code"]) == (507, "out_of_memory")
        assert "needs about 60 MB, and models may take 70 MB together, of which times 2" in refused.json()["error"]
        assert states(server) == {"2": "ready", "1": "unloaded"}
        assert ask(server) == 20
