"""`/docs`: Swagger UI, unchanged, with what its own files lack for keyboards and screen readers."""

from collections.abc import Iterator

import pytest

from flambeau.serving.service import BlockingService, Service
from flambeau.settings.service import Settings
from tests.support import page_models
from tests.support.browser import DESKTOP, PHONE, Browser, Screen
from tests.support.page_site import Site

pytestmark = pytest.mark.long

OPEN = """
for (const path of document.querySelectorAll(".opblock [data-path]")) {
  if (["/predict", "/models"].includes(path.dataset.path)) {
    path.closest(".opblock").querySelector(".opblock-summary-control").click();
  }
}
"""
PRESS = "document.querySelectorAll(arguments[0]).forEach((each) => each.click())"
NAMES = """
return [...document.querySelectorAll("#interface :is(select, input, textarea)")].map((field) => field.ariaLabel);
"""


@pytest.fixture(scope="module")
def small_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One model over numbers: of many, the page is long, and axe slow."""
    bundle = page_models.numbers("iris", tmp_path_factory.mktemp("docs") / "iris", (4,))
    settings = Settings(runner="threads", replicas=1, threads=1)
    service = BlockingService(lambda: Service([bundle], settings))
    site = Site(service)
    yield site
    site.close()
    service.close()


@pytest.mark.parametrize(
    ("screen", "dark"),
    [
        pytest.param(DESKTOP, False, id="desktop-light"),
        pytest.param(PHONE, True, id="phone-dark", marks=pytest.mark.slow),
    ],
)
def test_axe_finds_nothing_closed_open_and_answered(
    browser: Browser, small_site: Site, screen: Screen, dark: bool
) -> None:
    browser.resize(screen)
    browser.darken(dark)
    browser.open(f"{small_site.url}/docs")
    browser.until(lambda: browser.all(".opblock"))
    assert browser.violations() == []
    browser.run(OPEN)
    browser.until(lambda: len(browser.all(".try-out__btn")) == 2)
    browser.run(PRESS, ".try-out__btn")
    browser.until(lambda: len(browser.all(".execute")) == 2)
    browser.run(PRESS, ".execute")
    browser.until(lambda: len(browser.all(".live-responses-table")) == 2)
    assert browser.violations() == []
    names = browser.run(NAMES)
    assert {"Server", "Request body"} <= set(names)
    assert browser.complaints(refusals=True) == []
