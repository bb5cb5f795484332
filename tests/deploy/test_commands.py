"""The two commands of the README: from weights in a file to a running container, timed."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

from flambeau.architectures import torchvision_compat
from tests.deploy.containers import Engine
from tests.support.photographs import encoded, photograph
from tests.support.server import FLAMBEAU


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A ResNet-18 of four classes, as somebody's training saved it."""
    torch.manual_seed(3)
    torchvision_compat.declare_missing()
    from torchvision import models

    network = models.resnet18(num_classes=4)
    file = tmp_path / "mine.pth"
    torch.save(network.state_dict(), file)
    return file


def test_from_a_file_to_a_running_container_in_two_commands(engine: Engine, weights: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "buildah").symlink_to(str(shutil.which("buildah")))
    began = time.monotonic()
    command = [*FLAMBEAU, "package", weights, "-o", tmp_path / "image", "--tag", "my-model", "--build"]
    done = subprocess.run(
        [str(word) for word in command],
        env={**engine.building, "PATH": str(tools)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "[1/4] building the bundle" in done.stderr
    assert "STEP" in done.stderr  # the builder's own progress
    built = time.monotonic() - began
    with engine.run("localhost/my-model") as made:
        started = made.start()
        assert made.post(files={"image": encoded(photograph("chelsea"))}).json()["class_index"] in range(4)
    print(f"\npackaged and built in {built:.0f} s, running {started:.1f} s later; {done.stdout.splitlines()[-1]}")
    engine.buildah("rmi", "--force", "localhost/my-model")
