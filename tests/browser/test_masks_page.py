"""A segmenter's masks on the page: over the picture, with switches and a slider, by keyboard and on a phone."""

from pathlib import Path

import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from tests.support.browser import DESKTOP, PHONE, Browser, Screen
from tests.support.page_site import Site
from tests.support.photographs import encoded

MEASURE = """
const [image, mask] = [".picture > img", ".picture .masks img"].map((name) =>
  document.querySelector(`.card ${name}`).getBoundingClientRect());
return [image.left, image.top, image.width, image.height, mask.left, mask.top, mask.width, mask.height];
"""
SHOWN = "return [...document.querySelectorAll('.masks img')].map((image) => !image.hidden && image.naturalWidth);"


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_masks_lie_over_the_picture_and_can_be_switched_off(
    browser: Browser, site: Site, tmp_path: Path, screen: Screen
) -> None:
    image = Image.new("RGB", (600, 400), (0, 0, 255))
    image.paste((0, 255, 0), (0, 0, 200, 400))
    image.paste((255, 0, 0), (500, 0, 600, 100))  # class 0, the background
    (tmp_path / "field.png").write_bytes(encoded(image))
    browser.resize(screen)
    browser.open(f"{site.url}/?model=segmenter")
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
    assert [each.split()[0] for each in browser.texts(".card .tools a")] == ["PNG", "JSON"]
    assert browser.violations() == []
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.complaints() == []


def test_a_picture_that_was_made_can_be_compared_with_the_one_before(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (300, 200), (0, 0, 255))))
    browser.open(f"{site.url}/?model=negative")
    browser.find("#file").send_keys(str(tmp_path / "a.png"))
    browser.until(lambda: browser.all(".card .masks img") and not browser.all(".card.busy"))
    assert browser.texts(".card .verdict") == ["A picture of 600 × 400 pixels"]
    browser.until(lambda: browser.run(SHOWN) == [600])
    measured = browser.run(MEASURE)
    assert measured[4:] == pytest.approx(measured[:4], abs=1)
    browser.find(".layers input[type=range]").send_keys(Keys.HOME)
    assert browser.run("return document.querySelector('.masks').style.opacity") == "0"
    assert browser.violations() == []
    assert browser.complaints() == []
