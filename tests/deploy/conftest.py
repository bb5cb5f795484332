"""The tools, the base image, and the image of the default model, which all these tests share."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flambeau.bundle.storage import Bundle
from tests.deploy import containers
from tests.deploy.containers import Engine
from tests.support.server import FLAMBEAU


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder."""
    for item in items:
        if item.nodeid.startswith("tests/deploy/"):
            item.add_marker("deploy")
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def engine() -> Engine:
    """buildah and podman, with a base image."""
    if reason := containers.missing():
        pytest.skip(reason)
    found = Engine(containers.HOME)
    found.make_base()
    return found


@dataclass(frozen=True)
class Image:
    """An image, the folder that it was built from, and what the command said."""

    tag: str
    folder: Path
    output: str


@pytest.fixture(scope="session")
def default_image(engine: Engine, default_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The default model's image, packaged and built by one command, which finds buildah alone."""
    tools = tmp_path_factory.mktemp("tools")
    (tools / "buildah").symlink_to(str(shutil.which("buildah")))
    folder = tmp_path_factory.mktemp("package") / "image"
    command = [*FLAMBEAU, "package", default_bundle.path, "-o", folder, "--tag", "default:test", "--build"]
    environment = {**engine.building, "PATH": str(tools)}
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield Image("localhost/default:test", folder, done.stdout)
    engine.buildah("rmi", "--force", "localhost/default:test")
