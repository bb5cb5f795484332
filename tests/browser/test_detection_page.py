"""A detector's boxes on the page: over the picture, in its pixels, on a desktop and on a phone."""

import csv
import io
import json
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


LOADED = "return [...document.querySelectorAll('.card img')].every((each) => each.naturalWidth)"
CORNERS = """
return [...document.querySelectorAll(".card")].map((card) => {
  const image = card.querySelector(".picture img");
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: image.naturalWidth, height: image.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const at = (x, y) => {
    const [red, green, blue] = context.getImageData(x * canvas.width, y * canvas.height, 1, 1).data;
    return [red > 128, green > 128, blue > 128];
  };
  const { width, height } = card.querySelector(".outlines").viewBox.baseVal;
  return [[canvas.width, canvas.height], [width, height], at(0.25, 0.25), at(0.75, 0.25), at(0.25, 0.75)];
});
"""
"""Of each picture: its size as it is shown, that of what lies over it, and the colours of three quarters of it."""

LIES = {  # by EXIF orientation: how an upright picture becomes what the file has
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def test_a_picture_is_shown_as_the_model_saw_it_however_its_file_lies(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    """Boxes lie on the upright picture. Not every browser turns a WebP, as it does a JPEG and a PNG."""
    upright = Image.new("RGB", (64, 48), (255, 255, 255))
    for colour, place in (((255, 0, 0), (0, 0)), ((0, 255, 0), (32, 0)), ((0, 0, 255), (0, 24))):
        upright.paste(colour, (*place, place[0] + 32, place[1] + 24))
    files = []
    for kind in ("JPEG", "PNG", "WEBP"):
        for orientation, lying in LIES.items():
            tags = Image.Exif()
            tags[0x0112] = orientation
            files.append(tmp_path / f"{orientation}.{kind.lower()}")
            files[-1].write_bytes(encoded(upright.transpose(lying), kind, exif=tags, quality=95))
    browser.open(f"{site.url}/?model=detector")
    browser.find("#file").send_keys("\n".join(map(str, files)))
    browser.until(lambda: len(browser.all(".card .outlines")) == len(files) and not browser.all(".card.busy"))
    browser.until(
        lambda: browser.run("return [...document.querySelectorAll('.card img')].every((each) => each.naturalWidth)")
    )
    for shown in browser.run(CORNERS):
        red, green, blue = [True, False, False], [False, True, False], [False, False, True]
        assert shown == [[64, 48], [64, 48], red, green, blue]
    with browser.without_scripts():  # there its own picture is shown, or none
        browser.open(f"{site.url}/?model=detector")
        browser.find("#file").send_keys(str(tmp_path / "6.webp"))
        browser.find("button.primary").click()
        browser.until(lambda: browser.texts(".verdict"))
        assert not browser.texts(".picture")
    assert browser.complaints() == []


FITS = """
return [...document.querySelectorAll(".card .picture:has(.outlines)")].map((picture) => {
  const laid = [...picture.querySelectorAll("img, .outlines")];
  const places = laid.map((each) => JSON.stringify(each.getBoundingClientRect()));
  const fits = laid.filter((each) => each.matches("img")).map((each) => getComputedStyle(each).objectFit);
  return [new Set(places).size, ...new Set(fits)];
});
"""
"""Of each picture: in how many places it and what lies over it are, and how they are fitted into that."""


@pytest.mark.long
@pytest.mark.parametrize("model", ["detector", "masks", "points"])
def test_in_a_grid_whatever_lies_over_a_picture_has_the_pictures_place(
    browser: Browser, site: Site, tmp_path: Path, model: str
) -> None:
    sizes = [(60, 40), (600, 150), (150, 600), (900, 900), (300, 200)]
    for size in sizes:
        (tmp_path / f"{size[0]}x{size[1]}.png").write_bytes(encoded(Image.new("RGB", size, (5, 5, 5))))
    browser.open(f"{site.url}/?model={model}")
    browser.find("#file").send_keys("\n".join(str(file) for file in tmp_path.iterdir()))
    assert [each.lower() for each in browser.verdicts(5)] == ["3 × cat, 2 × dog"] * 5
    assert browser.run(FITS) == [[1, "contain"]] * 5  # as an svg is fitted by itself
    assert browser.complaints() == []


@pytest.mark.long
@pytest.mark.parametrize(("model", "marked"), [("masks", (15, 10)), ("points", (4, 4))])
def test_the_picture_that_is_saved_has_masks_and_points(
    browser: Browser, site: Site, tmp_path: Path, model: str, marked: tuple[int, int]
) -> None:
    """`marked`: a pixel that no line of a box covers."""
    (tmp_path / "dark.png").write_bytes(encoded(Image.new("RGB", (600, 400), (5, 5, 5))))
    browser.save_into(tmp_path / "saved")
    browser.open(f"{site.url}/?model={model}")
    browser.find("#file").send_keys(str(tmp_path / "dark.png"))
    browser.verdicts(1)
    browser.find(".png").click()
    drawn = Image.open(io.BytesIO(browser.saved(tmp_path / "saved", "*.png"))).convert("RGB")
    assert drawn.size == (600, 400)
    assert drawn.getpixel(marked) != (5, 5, 5)
    assert drawn.getpixel((300, 300)) == (5, 5, 5)


@pytest.mark.long
def test_a_table_says_which_answer_the_page_is_too_small_for(browser: Browser, site: Site, tmp_path: Path) -> None:
    """300 masks of 0.7 megapixels."""
    for name, level in (("many", 255), ("few", 5)):
        (tmp_path / f"{name}.png").write_bytes(encoded(Image.new("RGB", (1000, 700), (level,) * 3)))
    browser.save_into(tmp_path / "saved")
    browser.open(f"{site.url}/?model=masks")
    browser.find("#file").send_keys("\n".join(str(tmp_path / f"{name}.png") for name in ("many", "few")))
    browser.verdicts(2)
    browser.find("#save-csv").click()
    rows = list(csv.DictReader(io.StringIO(browser.saved(tmp_path / "saved", "*.csv").decode(), newline="")))
    told = "The answer is too large for the page: a program gets it from the service."
    assert [(row["item"], row["error"]) for row in rows] == [("many.png", told), *[("few.png", "")] * 5]
    browser.find("#save-json").click()
    many, few = json.loads(browser.saved(tmp_path / "saved", "*.json"))
    assert many == {"item": "many.png", "error": told}
    assert len(few["answer"]["predictions"]) == 5
