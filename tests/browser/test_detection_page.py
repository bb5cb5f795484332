"""A detector's boxes on the page: over the picture, in its pixels, on a desktop and on a phone."""

from pathlib import Path

import pytest
from PIL import Image

from tests.support.browser import DESKTOP, PHONE, Browser, Screen
from tests.support.page_site import Site
from tests.support.photographs import encoded

MEASURE = """
const [image, drawn, box] = ["img", ".outlines", ".outlines rect"].map((name) =>
  document.querySelector(`.card .picture ${name}`).getBoundingClientRect());
return [image.left, image.top, image.width, image.height, drawn.left, drawn.top, drawn.width, drawn.height,
  box.left, box.top, box.width, box.height];
"""


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_boxes_are_drawn_over_the_picture_in_its_pixels(
    browser: Browser, site: Site, tmp_path: Path, screen: Screen
) -> None:
    for name, level in (("dark", 1), ("black", 0)):  # one box, and none
        (tmp_path / f"{name}.png").write_bytes(encoded(Image.new("RGB", (600, 400), (level,) * 3)))
    browser.resize(screen)
    browser.open(f"{site.url}/?model=detector")
    browser.find("#file").send_keys(str(tmp_path / "dark.png"))
    browser.until(lambda: browser.all(".card .picture .outlines") and not browser.all(".card.busy"))
    assert [text.lower() for text in browser.texts(".card .verdict")] == ["cat"]
    left, top, wide, high, *drawn = browser.run(MEASURE)
    outlines, box = drawn[:4], drawn[4:]
    assert outlines == pytest.approx([left, top, wide, high], abs=1)
    scale = wide / 600
    assert high / wide == pytest.approx(400 / 600, rel=0.02)
    assert box == pytest.approx([left, top, 30 * scale, 20 * scale], abs=4)  # the line has a width
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    browser.find("#file").send_keys(str(tmp_path / "black.png"))
    browser.until(lambda: len(browser.all(".card")) == 2 and not browser.all(".card.busy"))
    assert browser.texts(".card .verdict")[0] == "Nothing found"
    assert len(browser.all(".outlines")) == 1
    assert browser.complaints() == []
