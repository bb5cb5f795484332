"""Many answers on the page, their downloads, what is refused before it is sent, pasted text, and the live camera."""

import base64
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import requests
from flask.testing import FlaskClient
from PIL import Image
from selenium.webdriver.common.keys import Keys

from flambeau.serving.service import BlockingService
from tests.support.browser import PHONE, Browser
from tests.support.page_models import application
from tests.support.page_site import Site
from tests.support.photographs import encoded
from tests.support.server import Serve

PASTE = """
const data = new DataTransfer();
data.setData("text", arguments[0]);
(arguments[1] ? document.querySelector(arguments[1]) : document.body).dispatchEvent(
  new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}));
return document.getElementById("hint").textContent;
"""
PIXEL = """
const context = document.createElement("canvas").getContext("2d");
context.drawImage(document.querySelector("#live video"), 0, 0);
return [...context.getImageData(100, 100, 1, 1).data];
"""


@pytest.fixture
def pictures(tmp_path: Path, cat: bytes) -> list[Path]:
    """Six files; the second is none that can be read."""
    files = [tmp_path / f"{name}.png" for name in "abcdef"]
    for file in files:
        file.write_bytes(cat if file.stem != "b" else b"no picture")
    return files


def table(browser: Browser, folder: Path) -> list[dict[str, str]]:
    browser.find("#save-csv").click()
    return list(csv.DictReader(io.StringIO(browser.saved(folder, "*.csv").decode(), newline="")))


# Many answers


def test_many_pictures_are_a_grid_with_details_on_demand_and_one_table(
    browser: Browser, site: Site, pictures: list[Path], tmp_path: Path
) -> None:
    browser.save_into(tmp_path)
    browser.open(site.url)
    answer = requests.post(f"{site.url}/predict?top_k=5", files={"file": pictures[0].read_bytes()}).json()
    browser.all("#file")[0].send_keys("\n".join(map(str, pictures)))
    assert browser.verdicts(6) == ["Egyptian cat", "Not answered", *["Egyptian cat"] * 4]
    tops = browser.run("return [...document.querySelectorAll('.card')].map((e) => e.getBoundingClientRect().top)")
    assert len(set(tops)) == 2  # three beside each other
    assert browser.texts(".card:first-child .percent") == [f"{100 * answer['predictions'][0]['probability']:.1f} %"]
    browser.find(".unfold").click()
    assert len(browser.texts(".card:first-child .percent")) == 5
    assert browser.find(".unfold").get_attribute("aria-expanded") == "true"
    assert browser.violations() == []
    rows = table(browser, tmp_path)
    assert [row["item"] for row in rows] == [file.name for file in pictures]
    assert rows[0]["answer"] == answer["class_name"]
    for place, each in enumerate(answer["predictions"], 1):
        assert rows[0][f"class_{place}"] == each["class_name"]
        assert float(rows[0][f"probability_{place}"]) == each["probability"]
    assert rows[1]["answer"] == ""
    assert rows[1]["error"].startswith("This is text, and not an image")
    browser.find("#save-json").click()
    whole = json.loads(browser.saved(tmp_path, "answers*.json"))
    assert [each["item"] for each in whole] == [file.name for file in pictures]
    assert whole[2]["answer"]["predictions"] == answer["predictions"]
    assert whole[1].keys() == {"item", "error"}
    browser.find("#as-grid").click()
    assert len(browser.texts(".card:last-child .percent")) == 5
    browser.find("#clear").click()
    assert browser.texts(".card, #as-grid") == []
    assert browser.run("return document.activeElement.id") == "file"


def test_the_boxes_of_a_detector_are_saved_as_a_table_and_drawn(browser: Browser, site: Site, tmp_path: Path) -> None:
    (tmp_path / "=dark.png").write_bytes(encoded(Image.new("RGB", (600, 400), (3, 3, 3))))
    browser.save_into(tmp_path / "saved")
    browser.open(f"{site.url}/?model=detector")
    browser.all("#file")[0].send_keys(str(tmp_path / "=dark.png"))
    browser.verdicts(1)
    answer = requests.post(f"{site.url}/predict/detector", files={"file": (tmp_path / "=dark.png").read_bytes()}).json()
    rows = table(browser, tmp_path / "saved")
    assert len(rows) == len(answer["predictions"]) > 1
    assert rows[1]["item"] == "'=dark.png"  # no spreadsheet runs it
    assert rows[1]["label"] == answer["predictions"][1]["label"]
    for name, number in answer["predictions"][1]["box"].items():
        assert float(rows[1][f"box.{name}"]) == number
    browser.find(".json").click()
    assert json.loads(browser.saved(tmp_path / "saved", "*dark.json")) == answer
    browser.find(".png").click()
    drawn = Image.open(io.BytesIO(browser.saved(tmp_path / "saved", "*.png"))).convert("RGB")
    assert drawn.size == (600, 400)
    assert drawn.getpixel((0, 10)) != (3, 3, 3)  # the left side of the first box
    assert drawn.getpixel((300, 300)) == (3, 3, 3)


@pytest.mark.long
def test_what_a_network_made_is_saved(browser: Browser, site: Site, tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    (tmp_path / "a.png").write_bytes(encoded(picture))
    browser.save_into(tmp_path / "saved")
    for model, pattern in (("negative", "a-picture.png"), ("segmenter", "a-mask.png")):
        answer = requests.post(
            f"{site.url}/predict/{model}", files={"file": encoded(picture)}, headers={"Accept": "image/png"}
        )
        browser.open(f"{site.url}/?model={model}")
        browser.all("#file")[0].send_keys(str(tmp_path / "a.png"))
        browser.verdicts(1)
        browser.find(".png").click()
        assert browser.saved(tmp_path / "saved", pattern) == answer.content


# Before anything is sent


@pytest.mark.long
def test_a_file_that_is_too_large_is_refused_before_it_is_sent(browser: Browser, site: Site, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(60_200_000)
    browser.open(site.url)
    assert browser.find(".drop .quiet").text == "JPEG, PNG, WebP, GIF or BMP, each up to 33.5 MB"
    before = site.asked
    browser.all("#file")[0].send_keys(str(large))
    assert browser.verdicts(1) == ["Not answered"]
    assert browser.texts(".error") == ["large.png has 60.2 MB, and this service takes 33.5 MB in one request."]
    assert browser.find(".note").text.startswith("Nothing was sent.")
    assert site.asked == before


@pytest.mark.long
@pytest.mark.parametrize(("text", "sentence"), [
    ("a cat", "This is text, and the model takes pictures: copy a picture, or choose its file."),
    ("https://example.org/cat.jpg",
     "This is an address, and this page fetches nothing: copy the picture itself, or choose its file."),
])  # fmt: skip
def test_text_that_is_pasted_where_pictures_are_taken_is_said(
    browser: Browser, site: Site, text: str, sentence: str
) -> None:
    browser.open(site.url)
    assert browser.run(PASTE, text, None) == sentence
    browser.find(".sample").click()
    browser.verdicts(1)
    assert browser.texts("#cards .error") == []


def test_numbers_are_pasted_into_their_fields(browser: Browser, site: Site) -> None:
    browser.open(f"{site.url}/?model=iris")
    assert browser.run(PASTE, "5.1\t3.5\t1.4\t0.2\n", "#number-0") == "4 numbers were filled in."
    browser.find("button.primary").click()
    assert browser.verdicts(1) == ["4 numbers"]
    assert browser.texts(".card .source") == ["5.1, 3.5, 1.4, 0.2"]
    assert browser.texts(".card .text") == ["[10.2, 7, 2.8, 0.4]"]
    assert browser.texts(".card .note") == ["Rounded to six digits; the download has every one."]
    said = browser.run(PASTE, "1, 2, 3", "#number-2")
    assert said == "Nothing was filled in: 3 numbers were pasted, and there are 2 fields from here on."
    assert browser.run(PASTE, "1, two", "#number-0") == "Nothing was filled in, for “two” is not a number."
    assert browser.run("return document.getElementById('number-0').value") == "5.1"
    for text in ("5,1\t3,5", "1,5", "1,5\n2,5"):  # as spreadsheets of many languages have it: it became twice as many
        said = browser.run(PASTE, text, "#number-0")
        assert said.startswith(f"Nothing was filled in, for “{text[:3]}” may be one number or two: write a point in it")
    assert browser.run(PASTE, "0x10 1", "#number-0") == "Nothing was filled in, for “0x10” is not a number."
    assert browser.run(PASTE, "1.5,2,3", "#number-0") == "3 numbers were filled in."


NEXT = """
import flambeau


class Next(flambeau.PythonModel):
    def predict(self, batch):
        return [[item, item + 1] if isinstance(item, int) else str(item) for item in batch]
"""


def test_numbers_are_sent_shown_and_saved_as_they_are(browser: Browser, serve: Serve, tmp_path: Path) -> None:
    """JavaScript's numbers have 53 bits and no points: another was sent, answered, shown and saved, without a word."""
    (tmp_path / "following.py").write_text(NEXT)
    browser.save_into(tmp_path)
    with serve(f"{tmp_path / 'following.py'}:Next", "--allow-code") as server:
        browser.open(server.url)
        browser.find("#input").send_keys("9007199254740993")
        browser.find("button.primary").click()
        assert browser.verdicts(1) == ["2 numbers"]
        assert browser.texts(".card .source") == ["9007199254740993"]
        assert browser.texts(".card .text") == ["[9007199254740993, 9007199254740994]"]
        assert browser.texts(".card .note") == []
        assert """-d '{"input":9007199254740993}'""" in browser.find("#curl").text
        assert 'json={"input": 9007199254740993}' in browser.find("#python").text
        browser.find(".card .json").click()
        assert browser.saved(tmp_path, "*.json") == b'{"output":[9007199254740993,9007199254740994]}'
        browser.find("#input").clear()
        browser.find("#input").send_keys("1.0")
        browser.find("button.primary").click()
        assert browser.verdicts(2) == ["1.0", "2 numbers"]
        browser.open("about:blank")


def test_the_script_and_the_server_write_values_alike(browser: Browser, site: Site) -> None:
    from flambeau.ui import values

    browser.open(site.url)
    script = """
        const { written, title, rounds } = await import("/static/values.js");
        return arguments[0].map((value) => [title(value), written(value), rounds(value)]);
    """
    shown: list[object] = [
        1, 2.0, 0.1234567, 1234567.891, -0.5, True, None, "", "a", "b" * 61, [], {}, [1, 2.5], [[1, 2], [3, 4]],
        [[1], [2, 3]], [[]], {"a": [1, 0.3333333333], "b": {"c": []}}, [{"a": 1}, "x"], ["x", "y"],
    ]  # fmt: skip
    assert browser.run(script, shown) == [[values.title(x), values.written(x), values.rounds(x)] for x in shown]


# The live camera


@pytest.mark.long
def test_the_live_camera_shows_boxes_until_it_is_stopped(browser: Browser, site: Site) -> None:
    browser.open(f"{site.url}/?model=detector")
    assert browser.texts("#live") == []  # off by default
    before = site.asked
    browser.find("#go-live").send_keys(Keys.ENTER)
    browser.until(lambda: "answers per second" in "".join(browser.texts("#live-rate")))
    assert browser.find("#go-live").get_attribute("aria-pressed") == "true"
    assert browser.run("return document.activeElement.id") == "stop-live"
    assert re.fullmatch(r"\d+ × cat, \d+ × dog", browser.texts("#live .verdict")[0])
    video, drawn = (
        browser.run(f"const r = document.querySelector('#live {each}').getBoundingClientRect();"
                    "return [r.left, r.top, r.width, r.height]") for each in ("video", ".outlines")
    )  # fmt: skip
    assert drawn == pytest.approx(video, abs=1)
    assert video[3] / video[2] == pytest.approx(3 / 4, abs=0.01)
    assert browser.run(PIXEL)[1] > 100  # Chromium's camera is green
    assert browser.run("return document.getElementById('spoken').textContent") == "The live camera is on."
    assert browser.violations() == []
    assert site.asked > before + 1
    browser.press(Keys.ESCAPE)
    assert browser.texts("#live") == []
    assert browser.run("return document.querySelector('#live video').srcObject") is None
    assert browser.run("return document.activeElement.id") == "go-live"
    assert browser.run("return document.getElementById('spoken').textContent") == "The live camera is off."
    browser.until(lambda: site.running == 0)
    stopped = site.asked
    browser.run("await new Promise((done) => setTimeout(done, 300))")
    assert site.asked == stopped


@pytest.mark.long
def test_the_live_camera_fits_a_phone_and_shows_classes(browser: Browser, site: Site) -> None:
    browser.resize(PHONE)
    browser.open(site.url)
    browser.find("#go-live").click()
    browser.until(lambda: "answers per second" in "".join(browser.texts("#live-rate")))
    assert len(browser.texts("#live .bars .percent")) == 5
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    browser.find("#stop-live").click()
    assert browser.texts("#live") == []


@pytest.mark.long
@pytest.mark.parametrize(("name", "sentence"), [
    ("NotAllowedError", "The camera may not be used: allow it for this page in the browser, and try again."),
    ("NotFoundError", "No camera was found: connect one, and try again."),
])  # fmt: skip
def test_a_camera_that_may_not_be_used_is_said(browser: Browser, site: Site, name: str, sentence: str) -> None:
    browser.open(f"{site.url}/?model=detector")
    # the browser of the tests allows its camera to everybody, and has no dialog to refuse it in
    refuse = "async () => { throw new DOMException('no', name); }"
    browser.run(f"const [name] = arguments; navigator.mediaDevices.getUserMedia = {refuse}", name)
    browser.find("#go-live").click()
    browser.until(lambda: browser.texts("#hint") == [sentence])
    assert browser.find("#go-live").get_attribute("aria-pressed") == "false"
    assert browser.texts("#live") == []


# Without JavaScript


@pytest.fixture
def client(several_models: BlockingService) -> FlaskClient:
    return application(several_models).test_client()


def test_without_javascript_the_cards_have_names_pictures_and_downloads(client: FlaskClient, cat: bytes) -> None:
    names = ["cat & dog.png", "none.txt"]
    files = [(io.BytesIO(data), name) for data, name in zip((cat, b"none"), names, strict=True)]
    response = client.post("/", data={"file": files})
    page = response.text
    sources = re.findall(r'<p class="source quiet">([^<]*)</p>', page)
    assert sources == ["cat &amp; dog.png", "none.txt"]
    [address] = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="cat &amp; dog.png">', page)
    assert base64.b64decode(address) == cat
    assert "data:" in response.headers["Content-Security-Policy"].split("img-src")[1].split(";")[0]
    [(answer, name)] = re.findall(r'href="data:application/json;base64,([^"]+)" download="([^"]+)"', page)
    assert name == "cat &amp; dog.json"
    assert json.loads(base64.b64decode(answer))["class_name"] == "Egyptian_cat"


def test_the_script_is_not_sent_its_own_picture_back(client: FlaskClient, cat: bytes) -> None:
    response = client.post("/?model=detector&pictures=no", data={"file": (io.BytesIO(cat), "cat.png")})
    assert "data:image/" not in response.text
    assert "data:" not in response.headers["Content-Security-Policy"]


def test_what_is_no_picture_is_never_given_as_one(client: FlaskClient) -> None:
    """T-12: a page of a stranger's making is not reflected, whatever it calls itself."""
    hostile = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    page = client.post("/", data={"file": (io.BytesIO(hostile), "<script>.svg", "image/svg+xml")}).text
    assert "data:" not in page
    assert "<script>.svg" not in page


def test_the_camera_is_allowed_only_where_pictures_are_taken(client: FlaskClient) -> None:
    nothing = "camera=(), microphone=(), geolocation=()"
    for address, policy in (("/", nothing.replace("()", "(self)", 1)), ("/?model=iris", nothing),
                            ("/dashboard", nothing), ("/docs", nothing)):  # fmt: skip
        assert client.get(address).headers["Permissions-Policy"] == policy


def test_the_question_is_shown_beside_its_answer(client: FlaskClient) -> None:
    form = '--edge\r\nContent-Disposition: form-data; name="input"\r\n\r\n[0.1, 2,\n3, 4]\r\n--edge--\r\n'
    page = client.post("/?model=iris", data=form, content_type="multipart/form-data; boundary=edge").text
    assert re.findall(r'<p class="source quiet">([^<]*)</p>', page) == ["[0.1, 2, 3, 4]"]
    assert '<pre class="text" tabindex="0" aria-label="The answer">[0.2, 4, 6, 8]</pre>' in page
