"""What the tests of the page share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flambeau.bundle.storage import Bundle
from flambeau.serving.service import BlockingService
from tests.support import page_models
from tests.support.browser import DESKTOP, Browser, open_browser
from tests.support.page_site import Site


@pytest.fixture(scope="session")
def several_models(
    default_bundle: Bundle, double_py: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BlockingService]:
    """One service with models of every kind; see `page_models`."""
    service = page_models.open_several(default_bundle, double_py, tmp_path_factory.mktemp("several"))
    yield service
    service.close()


@pytest.fixture(scope="session")
def site(several_models: BlockingService) -> Iterator[Site]:
    """These models on a real port."""
    site = Site(several_models)
    yield site
    site.close()


@pytest.fixture(scope="session")
def window(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The one window of all tests."""
    with open_browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


@pytest.fixture
def browser(window: Browser) -> Iterator[Browser]:
    """The window on a desktop, which has complained about nothing when the test ends.

    It leaves the page then: a dashboard would go on asking a server in this process, beside whatever test comes next.
    """
    window.resize(DESKTOP)
    window.darken(False)
    window.open("about:blank")
    yield window
    complaints = window.complaints(refusals=True)
    window.open("about:blank")
    assert complaints == []


@pytest.fixture
def picture(tmp_path: Path, cat: bytes) -> Path:
    """A photograph with a name that a shell and a page would stumble over."""
    file = tmp_path / "it's <b>$(me);,.png"
    file.write_bytes(cat)
    return file
