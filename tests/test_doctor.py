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

from conftest import FLAMBEAU
from flambeau import bundle
from flambeau.bundle import PROBES, Bundle


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
    assert rooms["source"][0]["found"] == "absent.pth does not exist"


def test_settings_that_are_wrong_are_a_finding_among_others(tmp_path: Path) -> None:
    (tmp_path / "flambeau.toml").write_text("prt = 1")
    code, rooms = doctor(cwd=tmp_path, FLAMBEAU_PORT="0")
    assert (code, broken(rooms)) == (1, ["settings"])
    assert rooms["settings"][0]["found"].startswith("flambeau.toml, line 1: there is no setting prt: write port")


def test_a_bundle_that_was_changed_is_broken(default_bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(default_bundle.path, copy)
    (copy / "labels.json").write_text("[]")
    code, rooms = doctor(copy, cwd=tmp_path)
    assert (code, broken(rooms)) == (1, ["bundle"])
    assert "labels.json of bundle" in rooms["source"][0]["found"]


def test_a_bundle_that_answers_otherwise_than_its_probes_is_broken(default_bundle: Bundle, tmp_path: Path) -> None:
    """Its checksums are right: that it is loaded and warmed up is what tells."""
    copy = tmp_path / "copy"
    shutil.copytree(default_bundle.path, copy)
    probes = {
        name: np.ascontiguousarray(array[:, ::-1]) if name.startswith("output.") else array
        for name, array in load_file(copy / PROBES).items()
    }
    save_file(probes, copy / PROBES)
    bundle.write_manifest(copy, default_bundle.manifest)
    code, rooms = doctor(copy, cwd=tmp_path)
    assert (code, broken(rooms)) == (1, ["model"])
    assert "does not reproduce the answers it was built with" in rooms["source"][-1]["found"]


def test_the_doctor_imports_no_torch_itself_and_reads_well(tmp_path: Path) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from flambeau.cli import cli\n"
        "done = CliRunner().invoke(cli, ['doctor', '--port', '0']); print(done.output, end='')\n"
        "assert not {'torch', 'onnxruntime', 'PIL'} & sys.modules.keys(), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "machine" in lines
    assert any(line.startswith(("  ok       sandbox", "  warning  sandbox")) for line in lines)
    assert "things looked at" in lines[-1]


@pytest.mark.parametrize("arguments", [["--no-such-flag"], ["a", "b"]])
def test_arguments_that_serve_does_not_take_are_refused(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*FLAMBEAU, "doctor", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
