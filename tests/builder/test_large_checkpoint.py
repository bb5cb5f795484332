"""A checkpoint of two hundred megabytes: how much memory building and serving it take."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from flambeau.architectures import torchvision_compat
from tests.support.server import FLAMBEAU

MEBI = 1 << 20
POLL_SECONDS = 0.02


def anonymous_bytes(process: int) -> int:
    """The memory of a process and its descendants that is backed by no file, in bytes."""
    found = 0
    try:
        status = Path(f"/proc/{process}/status").read_text()
        found = int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]
        for task in Path(f"/proc/{process}/task").iterdir():
            found += sum(anonymous_bytes(int(child)) for child in (task / "children").read_text().split())
    except (OSError, TypeError):  # it has ended meanwhile
        pass
    return found


def peak_of(command: list[str]) -> tuple[int, str]:
    """The most memory that a command and its children took together, in bytes, and what it said."""
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while True:
            try:
                _, said = process.communicate(timeout=POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                peak = max(peak, anonymous_bytes(process.pid))
    assert process.returncode == 0, said
    return peak, said


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_building_two_hundred_megabytes_takes_at_most_twice_that(tmp_path: Path) -> None:
    """Beside what torch and the exporter take for themselves, which the build of a small network shows.

    The reading is shown as it goes on.
    """
    torchvision_compat.declare_missing()
    from torchvision import models

    sizes, peaks = [], []
    for name in ("squeezenet1_0", "resnet152"):
        file = tmp_path / f"{name}.pth"
        torch.save({"state_dict": models.get_model(name).state_dict()}, file)
        # without OpenVINO's trial, where it is installed: that loads the network as a worker would
        command = [*FLAMBEAU, "build", str(file), "--engine", "onnxruntime", "-o", str(tmp_path / name)]
        peak, said = peak_of(command)
        sizes.append(file.stat().st_size)
        peaks.append(peak)
    print(f"files {[size // MEBI for size in sizes]} MiB, peaks {[peak // MEBI for peak in peaks]} MiB")
    assert "50%" in said
    assert sizes[1] > 200 * MEBI
    assert peaks[1] - peaks[0] < 2 * (sizes[1] - sizes[0])
