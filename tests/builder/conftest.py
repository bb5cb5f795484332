"""What the tests of builds share."""

from collections.abc import Iterator

import pytest

from flambeau.sources import build_cache
from tests.support import warm


@pytest.fixture(scope="module")
def warm_builds() -> Iterator[None]:
    """Builds that a test asks for in this process begin with torch imported: see `warm`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_cache, "_run_build_process", warm.run_build)
        yield
