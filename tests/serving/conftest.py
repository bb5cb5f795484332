"""What the tests of a running service share."""

from pathlib import Path

import pytest

from tests.support import fleet


@pytest.fixture(scope="module")
def obedient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a Python model that does as it is told."""
    folder = tmp_path_factory.mktemp("obedient")
    fleet.make_bundle(folder)
    return folder
