"""What the tests of a running service share."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flambeau.bundle.storage import Bundle
from flambeau.runners.base import ReplicaSpec
from tests.support import fleet
from tests.support.photographs import encoded, photograph
from tests.support.server import Serve, ServerProcess

if TYPE_CHECKING:
    from tests.support.task_models import Made

OF_ANSWERS = ("test_tasks", "test_task_samples", "test_samples")
"""Files that ask what is answered, and nothing of the processes."""


@pytest.fixture(scope="module")
def serve(request: pytest.FixtureRequest, serve: Serve, serve_anew: Serve) -> Serve:
    """Here all processes begin as a user's do, but where only the answers count."""
    return serve if request.module.__name__.rpartition(".")[2] in OF_ANSWERS else serve_anew


@pytest.fixture(scope="session")
def cat_server(serve_anew: Serve, default_bundle: Bundle) -> Iterator[ServerProcess]:
    """The default model, served from its cached bundle, by such processes."""
    with serve_anew() as server:
        yield server


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """I5: after the test no descriptor, thread or child is there that was not there before it."""
    yield from fleet.nothing_left()


@pytest.fixture
def spec(tmp_path: Path) -> ReplicaSpec:
    """What a runner is told of a Python model that does as it is told."""
    return fleet.make_bundle(tmp_path)


@pytest.fixture(scope="module")
def obedient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a Python model that does as it is told."""
    folder = tmp_path_factory.mktemp("obedient")
    fleet.make_bundle(folder)
    return folder


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Three photographs."""
    return [encoded(photograph(name)) for name in ("chelsea", "coffee", "rocket")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> "dict[str, Made]":
    """A model for each task and activation, by its name."""
    from tests.support import task_models  # which imports torch

    folder = tmp_path_factory.mktemp("tasks")
    return {name: make(folder / name) for name, make in task_models.MAKERS.items()}
