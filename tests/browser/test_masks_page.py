"""A segmenter's masks on the page: over the picture, with switches and a slider, by keyboard and on a phone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from tests.support import picture_bundles, segmenter_bundles
from tests.support.browser import DESKTOP, PHONE, Screen, open_browser
from tests.support.photographs import encoded
from tests.support.server import Serve, ServerProcess

AXE = (Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js").read_text()
MEASURE = """
const [image, mask] = [".picture > img", ".picture .masks img"].map((name) =>
  document.querySelector(`.card ${name}`).getBoundingClientRect());
return [image.left, image.top, image.width, image.height, mask.left, mask.top, mask.width, mask.height];
"""
SHOWN = "return [...document.querySelectorAll('.masks img')].map((image) => !image.hidden && image.naturalWidth);"


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    bundle = segmenter_bundles.segmenter(tmp_path_factory.mktemp("segmenter") / "bundle")
    with serve(bundle.path, "--replicas", "1") as running:
        yield running


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_masks_lie_over_the_picture_and_can_be_switched_off(
    server: ServerProcess, chromium: str, tmp_path: Path, screen: Screen
) -> None:
    image = Image.new("RGB", (600, 400), (0, 0, 255))
    image.paste((0, 255, 0), (0, 0, 200, 400))
    image.paste((255, 0, 0), (500, 0, 600, 100))  # class 0, the background
    (tmp_path / "field.png").write_bytes(encoded(image))
    with open_browser(tmp_path) as browser:
        browser.resize(screen)
        browser.open(server.url)
        browser.find("#file").send_keys(str(tmp_path / "field.png"))
        browser.until(lambda: browser.all(".card .masks img") and not browser.all(".card.busy"))
        assert browser.texts(".card .verdict")[0].lower() == "sky, grass, background"
        browser.until(lambda: browser.run(SHOWN) == [600, 600, False])
        measured = browser.run(MEASURE)
        assert measured[4:] == pytest.approx(measured[:4], abs=1)
        assert measured[3] / measured[2] == pytest.approx(400 / 600, rel=0.02)
        first, *_ = browser.all(".layers input[type=checkbox]")
        first.send_keys(Keys.SPACE)
        assert browser.run(SHOWN) == [False, 600, False]
        slider = browser.find(".layers input[type=range]")
        slider.send_keys(Keys.ARROW_RIGHT)
        assert browser.run("return document.querySelector('.masks').style.opacity") == "0.61"
        assert browser.find(".file").is_displayed()
        browser.run(AXE)
        found = browser.run("return (await axe.run()).violations")
        assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.complaints() == []


def test_a_picture_that_was_made_can_be_compared_with_the_one_before(
    serve: Serve, chromium: str, tmp_path: Path
) -> None:
    bundle = picture_bundles.negative(tmp_path / "bundle", enlarge=2)
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (300, 200), (0, 0, 255))))
    with serve(bundle.path, "--replicas", "1") as server, open_browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.find("#file").send_keys(str(tmp_path / "a.png"))
        browser.until(lambda: browser.all(".card .masks img") and not browser.all(".card.busy"))
        assert browser.texts(".card .verdict") == ["A picture of 600 × 400 pixels"]
        browser.until(lambda: browser.run(SHOWN) == [600])
        measured = browser.run(MEASURE)
        assert measured[4:] == pytest.approx(measured[:4], abs=1)
        browser.find(".layers input[type=range]").send_keys(Keys.HOME)
        assert browser.run("return document.querySelector('.masks').style.opacity") == "0"
        browser.run(AXE)
        found = browser.run("return (await axe.run()).violations")
        assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
        assert browser.complaints() == []
