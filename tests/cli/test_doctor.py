"""`flambeau doctor`: what it finds on this machine, and in what was broken for it."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flambeau.bundle import storage
from flambeau.bundle.storage import PROBES, Bundle
from tests.support.golden import python_bundle
from tests.support.server import FLAMBEAU, run_flambeau
from tests.support.tensor_bundles import doubling


def doctor(*arguments: object, cwd: Path, **environment: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit code and the findings by room, on a port that is free."""
    port = () if "--port" in arguments else ("--port", "0")
    done = subprocess.run(
        [*FLAMBEAU, "doctor", "--json", *map(str, arguments), *port],
        capture_output=True, text=True, timeout=100, cwd=cwd, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)["rooms"]


def broken(rooms: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The subjects of what is broken; each comes with advice."""
    wrong = [each for findings in rooms.values() for each in findings if each["verdict"] == "broken"]
    assert all(each["advice"] for each in wrong)
    return [each["subject"] for each in wrong]


@pytest.mark.long
def test_a_bundle_on_this_machine_is_fine(default_bundle: Bundle, tmp_path: Path) -> None:
    """It is verified, loaded and warmed up; its probes and the sandbox are really tried."""
    code, rooms = doctor(default_bundle.path, cwd=tmp_path)
    assert broken(rooms) == []
    assert code == 0
    assert rooms.keys() == {"machine", "packages", "sandbox", "devices", "source"}
    found = {each["subject"]: each for findings in rooms.values() for each in findings}
    assert found["model"]["found"].startswith("onnxruntime on cpu is warm after")
    assert found["bundle"]["found"].startswith("efficientnet_lite0: all")
    assert found["cache"]["found"].startswith(os.environ["FLAMBEAU_CACHE"])
    if sys.platform == "linux":
        assert "seccomp" in found["sandbox"]["found"]
    for each in found.values():
        assert each["verdict"] == "fine" or each["advice"]


@pytest.mark.long
def test_a_machine_where_much_is_wrong(default_bundle: Bundle, tmp_path: Path) -> None:
    """The address is taken, a package is older than is safe, the cache is no folder, and the source is not there."""
    old = tmp_path / "packages" / "pillow-9.0.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 9.0.0\n")
    (tmp_path / "cache").write_text("no folder")
    environment = {"PYTHONPATH": str(old.parent), "FLAMBEAU_CACHE": str(tmp_path / "cache")}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, rooms = doctor("absent.pth", "--port", taken.getsockname()[1], cwd=tmp_path, **environment)
    assert code == 1
    assert broken(rooms) == ["cache", "address", "pillow", "source"]
    [pillow] = [each for each in rooms["packages"] if each["subject"] == "pillow"]
    assert pillow["found"] == "9.0.0: older ones have known holes in their decoders"
    assert pillow["advice"].startswith("pip install 'pillow>=12")
    assert rooms["source"][0]["found"].startswith("absent.pth does not exist: ")


@pytest.mark.slow
def test_every_model_of_a_repository_is_checked(tmp_path: Path) -> None:
    doubling(tmp_path / "models" / "fine" / "1")
    doubling(tmp_path / "models" / "changed" / "2")
    with (tmp_path / "models" / "changed" / "2" / storage.ONNX).open("ab") as file:
        file.write(b"more")
    (tmp_path / "models" / "empty" / "1").mkdir(parents=True)
    (tmp_path / "models" / "empty" / "1" / "model.toml").write_text("port = 1\n")
    code, rooms = doctor("models", cwd=tmp_path)
    found = {room: {each["subject"]: each["verdict"] for each in findings} for room, findings in rooms.items()}
    assert code == 1
    assert found["fine, version 1"] == {"bundle": "fine", "engines": "fine", "model": "fine"}
    assert found["changed, version 2"] == {"bundle": "broken"}
    assert found["empty, version 1"] == {"source": "broken"}
    code, rooms = doctor("a=models/fine/1", "b=models/fine/1", cwd=tmp_path)
    assert code == 0, rooms
    assert {"a, version 1", "b, version 1"} < rooms.keys()


@pytest.mark.long
def test_a_bundle_that_was_changed_is_broken(default_bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(default_bundle.path, copy)
    (copy / "labels.json").write_text("[]")
    code, rooms = doctor(copy, cwd=tmp_path)
    assert (code, broken(rooms)) == (1, ["bundle"])
    assert "labels.json of bundle" in rooms["source"][0]["found"]


@pytest.mark.slow
def test_a_bundle_that_answers_otherwise_than_its_probes_is_broken(default_bundle: Bundle, tmp_path: Path) -> None:
    """Its checksums are right: that it is loaded and warmed up is what tells."""
    copy = tmp_path / "copy"
    shutil.copytree(default_bundle.path, copy)
    probes = {
        name: np.ascontiguousarray(array[:, ::-1]) if name.startswith("output.") else array
        for name, array in load_file(copy / PROBES).items()
    }
    save_file(probes, copy / PROBES)
    storage.write_manifest(copy, default_bundle.manifest)
    code, rooms = doctor(copy, cwd=tmp_path)
    assert (code, broken(rooms)) == (1, ["model"])
    assert "does not reproduce the answers it was built with" in rooms["source"][-1]["found"]


@pytest.mark.long
@pytest.mark.parametrize(("output", "wrong"), [pytest.param(6, [], marks=pytest.mark.slow), (7, ["model"])])
def test_golden_samples_are_held_against_their_answers(output: int, wrong: list[str], tmp_path: Path) -> None:
    source = (
        "import flambeau\n\nclass Model(flambeau.PythonModel):\n"
        "    def predict(self, batch):\n        return [2 * item for item in batch]\n"
    )
    double = python_bundle(tmp_path / "double", source, {"three.json": {"input": 3, "output": output}})
    code, rooms = doctor(double.path, "--allow-code", cwd=tmp_path)
    assert (code, broken(rooms)) == (len(wrong), wrong)
    assert ("three.json" if wrong else "its golden samples reproduce") in rooms["source"][-1]["found"]


@pytest.mark.slow
def test_code_is_not_run_unasked(tmp_path: Path) -> None:
    source = f"import pathlib\npathlib.Path({str(tmp_path / 'canary')!r}).touch()\n"
    trap = python_bundle(tmp_path / "trap", source, {"one.json": {"input": 1, "output": 1}})
    code, rooms = doctor(trap.path, cwd=tmp_path)
    assert (code, broken(rooms)) == (1, ["model"])
    assert not (tmp_path / "canary").exists()


@pytest.mark.long
def test_wrong_settings_are_a_finding_and_torch_is_not_imported_here(tmp_path: Path) -> None:
    (tmp_path / "flambeau.toml").write_text("prt = 1")
    code = (
        "import sys; from click.testing import CliRunner; from flambeau.cli import cli\n"
        "done = CliRunner().invoke(cli, ['doctor']); print(done.output, end='')\n"
        "assert not {'torch', 'onnxruntime', 'PIL'} & sys.modules.keys(), 'imported'; sys.exit(done.exit_code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[1:4] == [
        "settings",
        "  BROKEN   settings      flambeau.toml, line 1: there is no setting prt: write port, or take it away",
        "                         -> correct it: nothing is served before",
    ]
    assert any(line.startswith(("  ok       sandbox", "  warning  sandbox")) for line in lines)
    assert " checks: " in lines[-1]


def test_arguments_that_serve_does_not_take_are_refused(tmp_path: Path) -> None:
    done = run_flambeau("doctor", "--no-such-flag", cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
