"""Several models and versions in one service: routes, swaps, access, the command, the client. All over HTTP."""

import hashlib
import itertools
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

import flambeau
from tests.support.fronts import application
from tests.support.server import Serve, ServerProcess
from tests.support.versions import ask, change, code, put, states
from tests.support.warm import run_with_torch

INFER, ADMIN = (hashlib.sha256(name).hexdigest() for name in (b"infer", b"admin"))


def test_versions_are_loaded_switched_and_unloaded_while_it_serves(serve: Serve, repository: Path) -> None:
    with serve(repository, "--allow-code", "--replicas", "1") as server:
        assert states(server) == {"2": "ready", "1": "unloaded"}
        assert (ask(server), ask(server, "/predict/times"), ask(server, "/predict/times/2")) == (20, 20, 20)
        assert ask(server, "/predict/times/1") == (503, "model_unavailable")
        assert ask(server, "/predict/times/3") == (404, "version_not_found")
        assert "times, version 1: unloaded" in server.get("/").text

        # a new version is put into the folder, loaded beside the old one, and answers in its place
        put(repository, "3", 30)
        loaded = change(server, "/models/times/versions/3/load")
        assert (loaded.status_code, loaded.json()["default_version"]) == (200, "3")
        assert (ask(server), ask(server, "/predict/times/2")) == (30, 20)

        # back is one call; and an alias leads to a version
        assert change(server, "/models/times", default_version="2").json()["default_version"] == "2"
        assert ask(server) == 20
        assert change(server, "/models/times", aliases={"stable": "1"}).status_code == 200
        assert ask(server, "/predict/times/stable") == 10

        assert change(server, "/models/times/versions/3/unload").status_code == 200
        assert states(server) == {"3": "unloaded", "2": "ready", "1": "ready"}
        shutil.rmtree(repository / "times" / "3")
        assert "3" not in states_after_listing(server)

        lines = [line for line in server.log().splitlines() if re.search(r"model (load|set|unload) ", line)]
        assert len(lines) == 4
        assert all("by=127.0.0.1" in line and "outcome=done" in line and "seconds=" in line for line in lines)
        assert "asked=3 before=2 default=3" in lines[0]


def states_after_listing(server: ServerProcess) -> dict[str, str]:
    server.wait_until(lambda: len(server.get("/models").json()["models"][0]["versions"]) == 2, within=10)
    return states(server)


@pytest.mark.long
def test_a_version_that_cannot_be_loaded_changes_nothing(serve: Serve, repository: Path) -> None:
    with serve(repository, "--allow-code", "--replicas", "1") as server:
        put(repository, "3", 1, load="1 / 0")
        (repository / "times" / "4").mkdir()
        (repository / "times" / "4" / "times.pth").write_bytes(b"no weights")
        for version, words in (("3", "ZeroDivisionError"), ("4", "is text, not a model")):
            refused = change(server, f"/models/times/versions/{version}/load")
            assert (refused.status_code, refused.json()["code"]) == (422, "load_failed")
            assert words in refused.json()["error"]
        assert states(server) == {"4": "failed", "3": "failed", "2": "ready", "1": "unloaded"}
        assert (ask(server), server.get("/readyz").status_code) == (20, 200)
        put(repository, "5", 50)
        assert change(server, "/models/times/versions/5/load").status_code == 200
        assert ask(server) == 50


@pytest.mark.long
def test_one_bad_model_keeps_no_other_from_serving(serve: Serve, repository: Path) -> None:
    (repository / "bad.pth").write_bytes(b"no weights")
    with serve(repository, "--allow-code", "--replicas", "1", "--default", "times") as server:
        assert ask(server) == 20
        assert ask(server, "/predict/bad") == (503, "model_unavailable")
        bad, times = server.get("/models").json()["models"]
        assert (bad["name"], bad["state"], times["state"]) == ("bad", "failed", "ready")
        assert "is text, not a model" in bad["versions"][0]["error"]
        assert "bad, version 1, is not served" in server.output()
        assert server.get("/readyz").json()["models"] == {"bad": "failed", "times": "ready"}
        dashboard = server.get("/dashboard").text  # which is public
        assert "bad, version 1" in dashboard
        assert "is text, not a model" not in dashboard
    done = run_with_torch("serve", repository, "--allow-code", "--port", "0", "--strict")
    assert done.returncode
    assert "bad: " in done.stderr


@pytest.mark.long
def test_at_the_start_an_older_version_answers_for_a_newer_one_that_cannot_be_loaded(
    serve: Serve, repository: Path
) -> None:
    put(repository, "3", 1, load="1 / 0")
    with serve(repository, "--allow-code", "--replicas", "1") as server:
        assert states(server) == {"3": "failed", "2": "ready", "1": "unloaded"}
        assert ask(server) == 20
        assert "an older version answers" in server.log()
        assert "times, version 3, is not served" in server.output()
    (repository / "times" / "model.toml").write_text('default_version = "3"')
    done = run_with_torch("serve", repository, "--allow-code", "--port", "0")
    assert done.returncode
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.long
def test_no_request_is_lost_or_answered_by_two_versions_f18(serve: Serve, repository: Path) -> None:
    """F-18: the default goes back and forth under load, and what it leaves is unloaded at once.

    A request that was begun after the change was answered is answered by the new version.
    """
    with serve(repository, "--allow-code", "--replicas", "1", "--keep-loaded", "0") as server:
        stop, faults, answered = threading.Event(), [], []

        def client() -> None:
            with requests.Session() as session:
                for number in itertools.count(1):
                    if stop.is_set():
                        return
                    response = session.post(server.url + "/predict", json={"input": [number, number]}, timeout=60)
                    answer = response.json().get("output")
                    answered.append(answer)
                    if answer not in ([number, number] * 10, [number, number] * 20):
                        faults.append(response.text)

        clients = [threading.Thread(target=client) for _ in range(8)]
        for each in clients:
            each.start()
        try:
            for version, factor in (("1", 10), ("2", 20)) * 4:
                assert change(server, "/models/times", default_version=version).status_code == 200
                assert ask(server) == factor
        finally:
            stop.set()
            for each in clients:
                each.join()
        assert not faults
        assert len(answered) > 100
        assert states(server) == {"2": "ready", "1": "unloaded"}
        assert change(server, "/models/times/versions/1/load").status_code == 200
        assert states(server) == {"2": "ready", "1": "ready"}  # what was asked for stays, though it was left before


def test_several_sources_are_served_by_name(serve: Serve, repository: Path, cat: bytes) -> None:
    (repository / "double.py").write_text(code(2).replace("Times", "Double"))
    with serve(f"double={repository / 'double.py'}:Double", "photos=default", "--allow-code") as server:
        assert ask(server) == 2
        answer = server.post("/predict/photos", files={"file": cat})
        assert answer.json() == {"class_id": "n02124075", "class_name": "Egyptian_cat"}
        double, photos = server.get("/models").json()["models"]
        assert (double["name"], photos["name"]) == ("double", "photos")
        detail = server.get("/models/photos/1").json()
        assert (detail["task"], detail["activation"], len(detail["labels"])) == ("classification", "softmax", 1000)
        assert detail["memory"] > 10_000_000
        assert detail["inputs"][0]["shape"] == [3, 224, 224]
        page = server.get("/", params={"model": "photos"}).text
        assert "<h1>photos</h1>" in page
        paths = server.get("/openapi.json").json()["paths"]
        assert {"/predict/photos", "/predict/double/1", "/models", "/models/{model}"} <= paths.keys()


@pytest.mark.long
def test_who_may_change_models(serve: Serve, repository: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"infer {INFER}\nadmin {ADMIN}\n")
    tokens.chmod(0o600)

    def load(server: ServerProcess, token: str, version: str = "1") -> int:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"{server.url}/models/times/versions/{version}/load"
        return requests.post(url, headers=headers, timeout=60).status_code

    with serve(repository, "--allow-code", "--replicas", "1", "--tokens-file", tokens) as server:
        assert [load(server, token) for token in ("", "x" * 40, INFER, ADMIN)] == [401, 401, 403, 200]
        assert 'by="token sha256:' in server.log()
        assert server.get("/models").status_code == 401
        put(repository, "3", 1, load="1 / 0")
        assert load(server, ADMIN, "3") == 422
        for token, reason in ((INFER, "an admin token reads why"), (ADMIN, "ZeroDivisionError")):
            shown = server.get("/models", headers={"Authorization": f"Bearer {token}"}).text
            assert (reason in shown, str(repository) in shown) == (True, False)
        assert server.get("/models", headers={"Authorization": f"Bearer {INFER}"}).status_code == 200
    with serve(repository, "--allow-code", "--replicas", "1", "--host", "0.0.0.0", "--insecure-no-auth") as server:
        refused = change(server, "/models/times/versions/1/load")
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert "--tokens-file" in refused.json()["error"]


def test_under_the_servers_of_others_models_are_shown_and_not_changed(repository: Path) -> None:
    with application(str(repository), allow_code=True, replicas=1) as app:
        client = app.test_client()
        assert client.post("/predict/times", json={"input": 1}).json == {"output": 20}
        assert client.get("/models/times").get_json()["default_version"] == "2"
        for answer in (client.post("/models/times/versions/1/load"), client.put("/models/times", json={})):
            assert answer.status_code == 403
            assert "may have other processes" in answer.get_json()["error"]


@pytest.fixture(scope="module")
def one_server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("models") / "repository"
    for model in ("limited", "split", "times"):
        put(folder, "1", 10, model=model)
        put(folder, "2", 20, model=model)
    put(folder, "2", 20, model="shadowed")
    put(folder, "3", "20 if item < 100 else 21", model="shadowed")
    with serve(folder, "--allow-code", "--replicas", "1", "--default", "times") as server:
        yield server


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ('{"default": "1"}', "bad_request", "unknown field"),
        ('{"aliases": {"stable": 1}}', "bad_request", "Expected `str`"),
        ('{"default_version": "7"}', "version_not_found", "no such version"),
        ('{"aliases": {"a/b": "1"}}', "bad_request", "cannot be an alias"),
        ('{"aliases": {"1": "2"}}', "bad_request", "cannot be an alias"),
        ("{", "invalid_json", "not JSON"),
        ("\xff", "invalid_json", "not JSON"),
    ],
)
def test_a_change_that_is_none_is_refused(one_server: ServerProcess, body: str, code: str, words: str) -> None:
    refused = requests.put(one_server.url + "/models/times", data=body.encode("latin-1"), timeout=60)
    assert refused.json()["code"] == code
    assert words in refused.json()["error"]
    assert one_server.get("/models/times").json()["aliases"] == {}


def test_a_change_is_made_whole_or_not_at_all(one_server: ServerProcess) -> None:
    refused = change(one_server, "/models/limited", aliases={"stable": "1"}, default_version="9")
    assert refused.json()["code"] == "version_not_found"
    assert one_server.get("/models/limited").json()["aliases"] == {}
    assert states(one_server, "limited")["1"] == "unloaded"
    assert change(one_server, "/models/limited", sticky_header="X-User").status_code == 400


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://localhost:8888", "Sec-Fetch-Site": "same-site"}, {"Origin": "http://evil.test"}]
)
def test_no_page_changes_models(one_server: ServerProcess, headers: dict[str, str]) -> None:
    """A page of another port of this machine is of the same site, and old browsers tell no site."""
    url = one_server.url + "/models/limited/versions/1/load"
    assert requests.post(url, headers=headers, timeout=60).status_code == 403
    assert states(one_server, "limited")["1"] == "unloaded"


@pytest.mark.long
def test_the_command_and_the_client_do_the_same(one_server: ServerProcess) -> None:
    def models(*words: str) -> str:
        done = run_with_torch("models", "--server", one_server.url, *words)
        return done.stdout if done.returncode == 0 else done.stderr

    lines = models("list").splitlines()
    assert lines[0] == "MODEL     VERSION  STATE"
    assert lines[-2:] == ["times *   2        ready     default", "times     1        unloaded"]
    assert "times  1        ready" in models("load", "times", "1")
    assert "times  1        ready  default" in models("default", "times", "1")
    assert ask(one_server) == 10
    assert "stable" in models("alias", "times", "stable=1")
    assert '"engine": "python"' in models("show", "times", "1")
    assert "the model has no such version" in models("load", "times", "9")
    assert "ALIAS=VERSION" in models("alias", "times", "stable")
    with flambeau.Client(one_server.url) as client:
        assert client.model("times")["aliases"] == {"stable": "1"}
        assert client.set_default("times", None)["default_version"] == "2"
        assert client.set_aliases("times", {})["aliases"] == {}
        assert client.unload("times", 1)["versions"][1]["state"] == "unloaded"
        assert client.model("times", 2)["state"] == "ready"
        with pytest.raises(flambeau.ClientError) as refused:
            client.load("nobody", 1)
        assert refused.value.code == "model_not_found"
    assert ask(one_server) == 20


@pytest.mark.long
def test_traffic_is_shared_and_a_sender_stays_with_its_version(one_server: ServerProcess) -> None:
    server = one_server
    shared = change(server, "/models/split", traffic={"2": 80, "1": 20}, sticky_header="X-User")
    assert shared.json()["traffic"] == {"2": 80, "1": 20}
    answers: dict[str, set[int]] = {}
    for number in range(300):
        user = f"user-{number % 100}"
        response = server.post("/predict/split", json={"input": 1}, headers={"X-User": user})
        answers.setdefault(user, set()).add(response.json()["output"])
    assert all(len(each) == 1 for each in answers.values())
    old = sum(each == {10} for each in answers.values())
    assert 8 <= old <= 34  # of 100 users a fifth: three deviations to each side
    assert ask(server, "/predict/split/2") == 20
    assert change(server, "/models/split", traffic={"1": 0}).status_code == 400
    assert change(server, "/models/split", traffic={"7": 1}).status_code == 404
    assert change(server, "/models/split", traffic={}).json()["traffic"] is None
    assert {ask(server, "/predict/split") for _ in range(50)} == {20}


def test_limits_change_without_a_reload(one_server: ServerProcess) -> None:
    server = one_server
    loaded = server.get("/models/limited/2").json()["loaded_at"]
    assert change(server, "/models/limited", max_batch_size=3, max_queue_size=2).status_code == 200
    detail = server.get("/models/limited/2").json()
    assert (detail["batch_size"], detail["loaded_at"]) == (3, loaded)
    too_many = server.post("/predict/limited", files=[("file", b"1"), ("file", b"1"), ("file", b"1")])
    assert too_many.json()["code"] == "too_many_items"
    assert change(server, "/models/limited/versions/1/load").status_code == 200
    assert server.get("/models/limited/1").json()["batch_size"] == 3
    assert change(server, "/models/limited", max_batch_size=0).status_code == 400


@pytest.mark.long
def test_a_shadow_answers_nobody_and_is_compared(one_server: ServerProcess) -> None:
    server = one_server
    assert change(server, "/models/shadowed", default_version="2").status_code == 200
    assert server.get("/models/shadowed/shadow").json()["code"] == "not_found"
    assert change(server, "/models/shadowed", shadow="3").json()["shadow"] == "3"

    def compared() -> int:
        return int(server.get("/models/shadowed/shadow").json()["compared"])

    for number in (1, 2, 3, 100, 101):
        before = compared()
        assert ask(server, "/predict/shadowed", number) == 20 * number
        server.wait_until(lambda: compared() == before + 1, within=10)  # noqa: B023 (it is waited for in its turn)
    found = server.get("/models/shadowed/shadow").json()
    assert (found["compared"], found["agreed"], found["failed"], found["skipped"]) == (5, 3, 0, 0)
    assert found["largest_difference"] == pytest.approx(1 / 21)
    assert set(found["differing"]) == {hashlib.sha256(each).hexdigest() for each in (b"100", b"101")}
    assert found["median_seconds"] > 0
    assert found["shadow_median_seconds"] > 0
    assert change(server, "/models/shadowed/versions/3/unload").json()["shadow"] is None


@pytest.mark.long
def test_kill_9_during_a_load_leaves_nothing_half_done(serve: Serve, repository: Path, cache: Path) -> None:
    put(repository, "3", 30, load="import time; time.sleep(3)")
    (repository / "times" / "model.toml").write_text('default_version = "2"')
    with serve(repository, "--allow-code", "--replicas", "1") as server, ThreadPoolExecutor(1) as pool:
        loading = pool.submit(change, server, "/models/times", default_version="3")
        server.wait_until(lambda: states(server)["3"] == "loading", within=30)
        server.process.kill()
        with pytest.raises(requests.ConnectionError):
            loading.result()
    (repository / "times" / "model.toml").unlink()
    with serve(repository, "--allow-code", "--replicas", "1") as server:
        assert states(server) == {"3": "ready", "2": "unloaded", "1": "unloaded"}
        assert ask(server) == 30
        assert not list((cache / "bundles").glob(".Times*unfinished*"))
