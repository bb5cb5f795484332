"""The command `flambeau torchserve`, and archives on the command line, with real processes."""

import colorsys
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from flambeau.system import process
from tests.support import model_store
from tests.support.archives import write_mar
from tests.support.server import FLAMBEAU, free_port, run_flambeau, started


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_store.write_store(tmp_path_factory.mktemp("store"), model_store.custom_network())


@pytest.mark.long
def test_a_file_that_a_bundle_does_not_list_is_not_before_its_handler(tmp_path: Path) -> None:
    handler = "import colorsys\n\ndef handle(data, context):\n    return data and [colorsys.__file__] * len(data)\n"
    write_mar(tmp_path / "net.mar", {"modelName": "net", "handler": "net.py"}, {"net.py": handler})
    done = run_flambeau("convert", tmp_path / "net.mar", "-o", tmp_path / "bundle", "--allow-code", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "bundle" / "archive" / "colorsys.py").write_text("")
    command = [*FLAMBEAU, "serve", f"net={tmp_path / 'bundle'}", "--allow-code", "--port", "0"]
    with started(command, tmp_path) as server:
        assert server.post("/predictions/net", data=b"x").text == colorsys.__file__


def test_an_archive_with_a_handler_needs_permission(store: Path, tmp_path: Path) -> None:
    done = run_flambeau("serve", store / "plain.mar", "--port", 0, cwd=tmp_path)
    assert done.returncode == 78
    assert "its handler plain.py is code that would run with your rights" in done.stderr


@pytest.mark.long
def test_the_command_of_torchserve_reads_its_file_and_passes_over_the_rest(store: Path, tmp_path: Path) -> None:
    inference, management = free_port(), free_port()
    models = {"one": {"1.0": {"defaultVersion": True, "marName": "plain.mar", "batchSize": 3, "maxBatchDelay": 5}}}
    (tmp_path / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{inference}\nmanagement_address=http://127.0.0.1:{management}\n"
        f"enable_metrics_api=false\nNUM_WORKERS=1\njob_queue_size=7\nmodels={json.dumps(models)}\n"
        f"grpc_inference_port={free_port()}\ngrpc_management_port={free_port()}\n"
    )
    command = [*FLAMBEAU, "torchserve", "--start", "--foreground", "--ncs", "--model-store", store, "--ts-config",
               tmp_path / "config.properties", "--log-config", "log4j2.xml", "--allow-code",
               "--tokens-file", tmp_path / "tokens"]  # fmt: skip
    token = secrets.token_urlsafe(32)
    (tmp_path / "tokens").write_text(f"admin {token}\n")
    (tmp_path / "tokens").chmod(0o600)
    with_token = {"Authorization": f"Bearer {token}"}
    with started(command, tmp_path) as server:
        server.wait_until(lambda: "Model server started." in server.output())
        assert server.url == f"http://127.0.0.1:{inference}"
        assert server.post("/predictions/one/1.0", data=b"x").status_code == 401
        assert server.post("/predictions/one/1.0", data=b"x", headers=with_token).text == "plain 1"
        url = f"http://127.0.0.1:{management}/models/one"
        [shown] = requests.get(url, headers=with_token, timeout=60).json()
        assert (shown["batchSize"], shown["maxBatchDelay"], shown["loadedAtStartup"]) == (3, 5, True)
        assert shown["jobQueueStatus"]["remainingCapacity"] == 7
        log = server.log()
    assert "argument passed over" in log
    assert "NUM_WORKERS" in log
    assert "key=enable_metrics_api" not in log


def test_stop_ends_the_server_that_start_has_started_and_no_other(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one that took its number: the note beside it says when the process was started."""
    ports = {each: free_port() for each in ("inference", "management", "metrics")}
    text = "".join(f"{name}_address=http://127.0.0.1:{port}\n" for name, port in ports.items())
    text += f"grpc_inference_port={free_port()}\ngrpc_management_port={free_port()}\n"
    (tmp_path / "config.properties").write_text(text)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def command(*arguments: object) -> str:
        done = run_flambeau("torchserve", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return str(done.stdout).strip()

    note = tmp_path / f".flambeau-torchserve-{os.getuid()}.pid"
    with subprocess.Popen([sys.executable, "-c", "input()", "flambeau"], stdin=subprocess.PIPE) as other:
        for text in (str(other.pid), f"{other.pid} another boot/1"):
            note.write_text(text)
            assert command("--stop") == "TorchServe is not currently running."
        other.communicate(b"\n")
        assert other.returncode == 0
    start = ["--start", "--model-store", str(store), "--models", "plain.mar", "--allow-code"]
    with (tmp_path / "log").open("w") as log:  # which the server keeps
        subprocess.run([*FLAMBEAU, "torchserve", *start], cwd=tmp_path, stdout=log, stderr=log, timeout=60, check=True)
    pid = int(note.read_text().partition(" ")[0])
    try:
        url = f"http://127.0.0.1:{ports['inference']}/predictions/plain"
        assert _retried(lambda: requests.post(url, data=b"x", timeout=10).text) == "plain 1"
        assert command("--start", "--model-store", store) == "TorchServe has already started."
        assert command("--stop") == "TorchServe has stopped."
        assert process.identity(pid) is None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _retried(ask: Callable[[], str]) -> str:
    """The answer of a server that is starting; nothing tells when it listens."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return ask()
        except requests.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_convert_says_what_became_of_everything(store: Path, tmp_path: Path) -> None:
    done = run_flambeau("convert", store / "rows.mar", "-o", tmp_path / "bundle", "--allow-code", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "kept     the handler rows.py, with its 7 files" in done.stdout
    assert "kept     batchSize 4" in done.stdout
    assert "dropped  the version 2.0" in done.stdout
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert (manifest["task"], manifest["pipeline"]["batch"]) == ("handler", 4)
