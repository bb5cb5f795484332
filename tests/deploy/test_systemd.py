"""systemd itself reads the unit files. What the service tells it: tests/serving/test_systemd.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

UNIT = ROOT / "deploy/flambeau.service"
SOCKET = ROOT / "deploy/flambeau.socket"
PROGRAM = "/opt/flambeau/bin/flambeau"


pytestmark = pytest.mark.deploy


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    text = UNIT.read_text()
    assert PROGRAM in text
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace(PROGRAM, sys.executable))
    listens = tmp_path / SOCKET.name
    listens.write_text(SOCKET.read_text())
    done = subprocess.run(["systemd-analyze", "verify", unit, listens], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_killed_only_after_it_could_drain() -> None:
    settings = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line and line[0] != "#")
    assert int(settings["TimeoutStopSec"]) > 2 * 30
    assert settings["KillMode"] == "mixed"  # workers are told by the front, and not by systemd
