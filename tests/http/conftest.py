"""Applications behind each front, for the tests of what they answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flambeau.bundle.storage import Bundle
from tests.support.fronts import FRONTS, MAX_BODY, Front, open_front
from tests.support.server import Serve
from tests.support.versions import put

if TYPE_CHECKING:
    from tests.support.kserve_models import Served


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model of two versions, whose answers are the input times 10 and times 20."""
    folder = tmp_path / "repository"
    put(folder, "1", 10)
    put(folder, "2", 20)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> "Served":
    """A repository of four models, for the tests of protocols and platforms."""
    from tests.support import kserve_models  # which imports torch

    return kserve_models.write(tmp_path_factory.mktemp("kserve") / "models")


@pytest.fixture(scope="module", params=FRONTS)
def cats(
    request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: pytest.TempPathFactory, default_bundle: Bundle
) -> Iterator[Front]:
    """The default image model, behind each front."""
    folder = tmp_path_factory.mktemp("front")
    with open_front(request.param, serve, folder, None, max_body_bytes=MAX_BODY) as front:
        yield front


@pytest.fixture(scope="module", params=FRONTS)
def doubles(
    request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: pytest.TempPathFactory, double_py: Path
) -> Iterator[Front]:
    """The third recipe's model, behind each front."""
    folder = tmp_path_factory.mktemp("front")
    with open_front(request.param, serve, folder, f"{double_py}:Double", allow_code=True) as front:
        yield front
