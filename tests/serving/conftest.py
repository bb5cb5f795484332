"""What the tests of a running service share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flambeau.runners.base import ReplicaSpec
from tests.support import fleet


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
