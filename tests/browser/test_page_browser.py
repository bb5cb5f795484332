"""The page in a real browser: Chromium against a real server. No complaint of its console or its policy is accepted."""

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.support.browser import DESKTOP, PHONE, Browser, Screen
from tests.support.page_models import HOSTILE
from tests.support.page_site import Site
from tests.support.photographs import encoded, photograph
from tests.support.server import ServerProcess

pytestmark = pytest.mark.timeout(400)  # on a fresh machine the first test installs Chromium
SCREENS = [
    pytest.param(DESKTOP, False, id="desktop, light"),
    pytest.param(DESKTOP, True, id="desktop, dark", marks=pytest.mark.slow),
    pytest.param(PHONE, False, id="phone, light", marks=pytest.mark.slow),
    pytest.param(PHONE, True, id="phone, dark"),
]


# Pictures


def test_a_sample_is_answered_with_bars_times_and_commands(browser: Browser, cat_server: ServerProcess) -> None:
    browser.open(cat_server.url)
    browser.find(".sample").click()
    assert browser.verdicts(1) == ["Egyptian cat"]
    names, percents = browser.texts(".card .name"), browser.texts(".card .percent")
    assert names[:2] == ["Egyptian cat", "Tabby"]
    assert len(names) == len(percents) == 5
    widths = [float((each.get_attribute("width") or "").rstrip("%")) for each in browser.all(".card .bar rect")]
    assert [f"{width:.1f} %" for width in widths] == percents
    assert browser.texts(".part") == []  # times are there on demand
    assert browser.find(".time summary").text.endswith(" ms")
    browser.find(".time summary").click()
    stages = ["queue", "preprocess", "inference", "postprocess"]
    assert [each.split()[0] for each in browser.texts(".part")][:4] == stages
    assert all(each.endswith(" ms") for each in browser.texts(".part"))
    assert browser.find("#curl").text == f"curl -F 'file=@chelsea.jpg' '{cat_server.url}/predict?top_k=5'"
    assert f'"{cat_server.url}/predict?top_k=5",' in browser.find("#python").text
    assert browser.all("#spoken")[0].get_attribute("textContent") == "chelsea.jpg: Egyptian cat"
    assert browser.complaints() == []


def test_several_pictures_are_cards_of_their_own_and_a_bad_one_fails_alone(
    browser: Browser, cat_server: ServerProcess, picture: Path
) -> None:
    coffee, text = picture.with_name("coffee.jpg"), picture.with_name("notes.jpg")
    coffee.write_bytes(encoded(photograph("coffee"), "JPEG"))
    text.write_text("no picture")
    browser.open(cat_server.url)
    browser.all("#file")[0].send_keys("\n".join(map(str, (picture, text, coffee))))
    assert browser.verdicts(3) == ["Egyptian cat", "Not answered", "Espresso"]
    assert browser.texts(".source") == [picture.name, text.name, coffee.name]
    [error] = browser.texts(".error")
    assert error == "This is text, and not an image that this model reads: send an image (JPEG, PNG, WEBP, GIF or BMP)."
    assert browser.run("return [...document.querySelectorAll('.card img')].filter((i) => i.naturalWidth).length") == 2
    browser.find("#clear").click()
    assert browser.texts(".card") == []
    assert browser.find("#nothing").is_displayed()


def _copied(button: WebElement) -> bool:
    return button.text.startswith("Copied")


@pytest.mark.long
def test_the_copied_commands_are_real_ones(browser: Browser, cat_server: ServerProcess, picture: Path) -> None:
    browser.open(cat_server.url)
    browser.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.all("#file")[0].send_keys(str(picture))
    browser.verdicts(1)
    for button, shell in zip(browser.all(".copy"), (["bash", "-c"], [sys.executable, "-c"]), strict=True):
        button.click()
        browser.until(functools.partial(_copied, button))
        command = browser.run("return navigator.clipboard.readText()")
        done = subprocess.run([*shell, command], cwd=picture.parent, capture_output=True, text=True, check=False)
        assert "Egyptian_cat" in done.stdout, (command, done.stderr)


def test_what_is_dropped_or_pasted_is_answered(browser: Browser, cat_server: ServerProcess) -> None:
    browser.open(cat_server.url)
    browser.run("""
        const picture = await (await fetch("static/samples/coffee.jpg")).blob();
        const data = new DataTransfer();
        data.items.add(new File([picture], "dropped.jpg", {type: "image/jpeg"}));
        document.querySelector(".drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
    """)
    assert browser.verdicts(2) == ["Espresso", "Espresso"]


@pytest.mark.long
def test_the_camera_takes_a_picture(browser: Browser, cat_server: ServerProcess) -> None:
    browser.open(cat_server.url)
    browser.find("#take").click()
    browser.until(lambda: browser.run("return document.querySelector('#viewfinder video').videoWidth"))
    browser.find("#shutter").click()
    browser.verdicts(1)
    assert browser.texts(".source") == ["camera.jpg"]
    assert browser.run("return document.querySelector('#viewfinder video').srcObject") is None


@pytest.mark.long
def test_what_is_not_recognised_is_said(browser: Browser, cat_server: ServerProcess) -> None:
    browser.open(cat_server.url)
    browser.all(".sample")[2].click()
    assert browser.verdicts(1) == ["Not recognised"]
    assert browser.find(".note").text.startswith("Nothing was recognised: the top probability ")
    assert len(browser.texts(".card .name")) == 5


def test_the_keyboard_is_enough(browser: Browser, cat_server: ServerProcess) -> None:
    browser.open(cat_server.url)
    order: list[str] = []
    while order[-2:] != ["sample", "sample"]:
        browser.press(Keys.TAB)
        focused = browser.driver.switch_to.active_element
        order.append(focused.get_attribute("id") or focused.get_attribute("class") or focused.text)
        if order[-1] == "file":
            assert browser.run("return getComputedStyle(document.querySelector('.drop')).outlineStyle") == "solid"
        assert len(order) < 20
    assert order[0] == "brand"
    assert order[-4:] == ["take", "go-live", "sample", "sample"]
    browser.press(Keys.ENTER)
    assert browser.verdicts(1) == ["Espresso"]


@pytest.mark.parametrize("model", ["efficientnet_lite0", "detector"])
def test_a_server_that_takes_no_more_for_now_says_so_and_is_asked_again(
    browser: Browser, site: Site, picture: Path, model: str
) -> None:
    """Of a model whose cards the server makes, too: it is refused before a card could be made."""
    browser.open(f"{site.url}/?model={model}")
    site.doorway.busy = True
    try:
        browser.find("#file").send_keys(str(picture))
        browser.until(lambda: browser.texts(".card .error") == ["Too many requests for now."])
    finally:
        site.doorway.busy = False
    browser.find(".again").click()
    browser.until(lambda: not browser.all(".card.busy") and not browser.texts(".card .error"))


@pytest.mark.long
def test_the_page_fits_the_narrowest_screens(browser: Browser, site: Site) -> None:
    """320 CSS pixels: WCAG 2.2, 1.4.10."""
    browser.resize(Screen("narrow", 320, 640, phone=True))
    for path in ("?model=iris", "?model=detector", "dashboard", "docs", "no-such-page"):
        browser.open(f"{site.url}/{path}")
        assert browser.run("return innerWidth") == 320, path


@pytest.mark.long
def test_a_server_that_is_gone_is_said_and_the_picture_can_be_sent_again(browser: Browser, site: Site) -> None:
    browser.open(site.url)
    browser.command("Network.enable")
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    contents = "new File([await (await fetch('static/samples/chelsea.jpg')).blob()], 'cat.jpg')"
    browser.run(f"const data = new DataTransfer(); data.items.add({contents}); window.data = data")
    browser.command("Network.emulateNetworkConditions", offline=True, **offline)
    browser.run("document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: window.data, bubbles: true}))")
    assert browser.verdicts(1) == ["Not answered"]
    assert browser.texts(".error") == ["The server cannot be reached."]
    browser.command("Network.emulateNetworkConditions", offline=False, **offline)
    browser.find(".again").click()
    browser.until(lambda: browser.texts(".verdict") == ["Egyptian cat"])


# Every task over pictures


@pytest.mark.long
def test_labels_are_marked_where_they_are_present_w4(browser: Browser, site: Site, picture: Path) -> None:
    browser.open(f"{site.url}/?model=findings")
    answer = requests.post(f"{site.url}/predict/findings?top_k=5", files={"file": picture.read_bytes()}).json()
    browser.all("#file")[0].send_keys(str(picture))
    present = [each["label"] for each in answer["labels"]]
    [verdict] = browser.verdicts(1)
    assert verdict.lower() == ", ".join(present)
    marked = browser.run("return [...document.querySelectorAll('#cards li.present .name')].map((e) => e.textContent)")
    assert marked == [f"{name}, present" for name in present]
    names = browser.run("return [...document.querySelectorAll('#cards .name')].map((e) => e.firstChild.data)")
    assert names == [each["class_name"] for each in answer["predictions"]]
    assert browser.find(".note").text == "Marked are the labels whose score is 50 % or more."
    assert browser.complaints() == []


@pytest.mark.long
def test_a_vector_can_be_copied_and_saved_w5(browser: Browser, site: Site, picture: Path, tmp_path: Path) -> None:
    browser.open(f"{site.url}/?model=features")
    browser.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.save_into(tmp_path)
    vector = requests.post(f"{site.url}/predict/features", files={"file": picture.read_bytes()}).json()["embedding"]
    browser.all("#file")[0].send_keys(str(picture))
    assert browser.verdicts(1) == [f"A vector of 512 numbers, length {np.linalg.norm(vector):.6g}"]
    shown = browser.find(".card .text").text
    assert [float(each) for each in shown.removesuffix(", …").split(", ")] == pytest.approx(vector[:8], rel=1e-5)
    browser.find(".copy-all").click()
    browser.until(lambda: browser.find(".copy-all").text.startswith("Copied"))
    assert json.loads(browser.run("return navigator.clipboard.readText()")) == vector
    browser.find(".json").click()
    assert json.loads(browser.saved(tmp_path, "*.json"))["embedding"] == vector


def test_a_regression_shows_its_numbers(browser: Browser, site: Site, picture: Path) -> None:
    for model, count in (("age", 1), ("ages", 3)):
        browser.open(f"{site.url}/?model={model}")
        output = requests.post(f"{site.url}/predict/{model}", files={"file": picture.read_bytes()}).json()["output"]
        browser.all("#file")[0].send_keys(str(picture))
        [verdict] = browser.verdicts(1)
        if count == 1:
            assert float(verdict) == pytest.approx(output, rel=1e-5)
        else:
            assert verdict == "3 numbers"
            shown = browser.find(".card .text").text.split()
            assert [float(each) for each in shown] == pytest.approx(output, rel=1e-5)


# Hostile names, other models


def test_a_hostile_class_is_shown_as_text(browser: Browser, site: Site, picture: Path) -> None:
    """T-12."""
    browser.open(f"{site.url}/?model=hostile")
    browser.all("#file")[0].send_keys(str(picture))
    assert browser.verdicts(1) == [HOSTILE]
    assert browser.texts(".source") == [picture.name]
    assert browser.all(".card b") == browser.all(".card .whole")
    assert not browser.all(".card [onerror]")


@pytest.mark.long
def test_a_model_is_chosen_from_the_list_and_takes_numbers(browser: Browser, site: Site) -> None:
    browser.open(site.url)
    browser.all("#model option[value='iris/1']")[0].click()
    browser.until(lambda: browser.driver.title.startswith("iris"))
    for index, field in enumerate(browser.all("[name=number]")):
        field.clear()
        field.send_keys(str(index + 0.5))
    browser.find("button.primary").click()
    assert browser.verdicts(1) == ["4 numbers"]
    assert browser.find(".card .source").text == "0.5, 1.5, 2.5, 3.5"
    assert browser.find(".card .text").text == "[1, 3, 5, 7]"
    assert browser.find("#curl").text == (
        "curl -H 'Content-Type: application/json' -d '{\"input\":[0.5,1.5,2.5,3.5]}' "
        f"'{site.url}/predict/iris/1'"
    )  # fmt: skip
    browser.find("#ask summary").click()
    browser.find("#input").send_keys("[[1, 2, 3]]")
    browser.find("button.primary").click()
    browser.verdicts(2)
    assert browser.texts(".error") == [
        "Input must be a list of 4 numbers, or a list of such lists, but its shape is [1, 3]."
    ]


def test_a_python_model_takes_json(browser: Browser, site: Site) -> None:
    browser.open(f"{site.url}/?model=Double")
    browser.find("#input").send_keys("21")
    browser.find("button.primary").click()
    assert browser.verdicts(1) == ["42"]
    assert browser.texts(".card .source") == ["21"]
    assert browser.texts(".card .text") == []


@pytest.mark.long
def test_the_page_works_below_a_prefix_that_it_is_not_told(browser: Browser, site: Site) -> None:
    browser.open(f"{site.url}/below/")
    browser.find(".sample").click()
    assert browser.verdicts(1) == ["Egyptian cat"]
    assert f"'{site.url}/below/predict?top_k=5'" in browser.find("#curl").text
    browser.find("nav a[href=dashboard]").click()
    browser.until(lambda: browser.texts("#state") == ["Live"])


# Tokens


@pytest.fixture
def locked(site: Site) -> Iterator[Site]:
    site.doorway.token = "opensesame"
    yield site
    site.doorway.token = ""


@pytest.mark.parametrize("given", ["“opensesame”", "opensesame\u200b", "open sesame"])
def test_what_no_header_can_carry_is_no_token(browser: Browser, locked: Site, given: str) -> None:
    """As it comes out of a chat. It was kept, and from then on no request left the browser."""
    browser.open(locked.url)
    browser.find(".sample").click()
    browser.find("#token").send_keys(given, Keys.ENTER)
    browser.until(lambda: browser.texts("#access-why")[0].startswith("This is no token: copy it alone"))
    browser.find("#token").send_keys("opensesame", Keys.ENTER)  # in the place of the other, which is selected
    assert browser.verdicts(1) == ["Egyptian cat"]
    browser.run("sessionStorage.clear()")


@pytest.mark.long
def test_a_token_is_asked_for_once_and_never_written_on_the_page(browser: Browser, locked: Site) -> None:
    browser.open(locked.url)
    for sample in browser.all(".sample")[:2]:
        sample.click()
    browser.find("#token").send_keys("wrong", Keys.ENTER)
    browser.until(lambda: browser.texts("#access-why") == ["This token is not known here."])
    browser.find("#token").send_keys("opensesame", Keys.ENTER)
    assert browser.verdicts(2) == ["Espresso", "Egyptian cat"]
    assert not browser.texts("#access")
    assert '-H "Authorization: Bearer $FLAMBEAU_TOKEN"' in browser.find("#curl").text
    assert "opensesame" not in browser.driver.page_source
    browser.open(f"{locked.url}/dashboard")  # of the same tab
    browser.until(lambda: browser.texts("#state") == ["Live"])
    browser.run("sessionStorage.clear()")


# Without JavaScript, and for everybody


def test_a_picture_is_answered_without_javascript(browser: Browser, cat_server: ServerProcess, picture: Path) -> None:
    with browser.without_scripts():
        browser.open(cat_server.url)
        browser.all("#file")[0].send_keys(str(picture))
        browser.find("button.primary").click()
        assert browser.until(lambda: browser.texts(".verdict")) == ["Egyptian cat"]
        assert browser.texts("#take, .sample, .copy, #clear") == []


@pytest.mark.long
@pytest.mark.parametrize(("screen", "dark"), SCREENS)
def test_the_page_and_the_dashboard_are_accessible_and_fit(
    browser: Browser, site: Site, screen: Screen, dark: bool
) -> None:
    browser.resize(screen)
    browser.darken(dark)
    browser.open(site.url)
    for sample in browser.all(".sample"):
        browser.driver.execute_script("arguments[0].click()", sample)
    browser.verdicts(3)
    for address in (
        "",
        "?model=iris",
        "?model=Double",
        "?model=findings",
        "?model=features",
        "?model=ages",
        "dashboard",
    ):
        if address:
            browser.open(f"{site.url}/{address}")
        if address in ("?model=findings", "?model=features", "?model=ages"):
            browser.driver.execute_script("arguments[0].click()", browser.all(".sample")[0])
            browser.verdicts(1)
        if address == "dashboard":
            browser.until(lambda: browser.texts("#models tr"))
        assert browser.violations() == []
        assert browser.run("return document.documentElement.scrollWidth - innerWidth") <= 0
