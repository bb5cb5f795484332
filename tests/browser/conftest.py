"""What the tests of the page share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flambeau.bundle.storage import Bundle
from flambeau.serving.service import BlockingService
from tests.support import page_models


@pytest.fixture(scope="session")
def several_models(
    default_bundle: Bundle, double_py: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BlockingService]:
    """One service with models of every kind; see `page_models`."""
    service = page_models.open_several(default_bundle, double_py, tmp_path_factory.mktemp("several"))
    yield service
    service.close()
