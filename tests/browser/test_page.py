"""The page over HTTP: what works without JavaScript, for models of every kind, and what it lets a browser do."""

import io
import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.datastructures import MultiDict
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from flambeau.serving.service import BlockingService, Service
from flambeau.settings.service import Settings
from tests.support.page_models import HOSTILE, application
from tests.support.photographs import encoded, photograph
from tests.support.tensor_bundles import several

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


@pytest.fixture(scope="module")
def app(several_models: BlockingService) -> Flask:
    return application(several_models)


@pytest.fixture
def client(app: Flask) -> Iterator[FlaskClient]:
    with app.test_client() as client:
        yield client


def fields(*pairs: tuple[str, str]) -> dict[str, object]:
    """A form with fields of these names, in this order, as a browser sends it."""
    form = "".join(f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in pairs)
    return {"data": form + "--edge--\r\n", "content_type": "multipart/form-data; boundary=edge"}


def shown(page: str) -> list[str]:
    """The verdicts of the cards, the empty one of the template left out."""
    return [unescape(each) for each in re.findall(r'<h3 class="verdict">(.+?)</h3>', page)]


def answers(page: str) -> list[str]:
    """The texts of the cards."""
    return [unescape(each) for each in re.findall(r"<pre class=\"text\"[^>]*>([^<]+)</pre>", page)]


def errors(page: str) -> list[str]:
    """The error sentences of the cards."""
    return [unescape(each) for each in re.findall(r'<p class="error">(.+?)</p>', page)]


# Models and their forms


def test_every_model_is_in_the_list_and_has_a_form_of_its_own(client: FlaskClient) -> None:
    page = client.get("/").text
    options = re.findall(r'<option value="([^"]+)"', page)
    names = (
        "efficientnet_lite0", "hostile", "iris", "wide", "Double", "findings", "features", "age", "ages", "detector",
        "masks", "points", "segmenter", "negative",
    )  # fmt: skip
    assert options == [f"{name}/1" for name in names]
    assert 'accept="image/jpeg,' in page
    assert client.get("/?model=iris").text.count('type="number"') == 4
    wide = client.get("/?model=wide/1").text
    assert 'type="number"' not in wide
    assert "x: float32 of shape [8, 8]" in wide
    assert 'type="file"' in client.get("/?model=Double").text


def test_several_inputs_are_told_one_from_the_other(tmp_path: Path) -> None:
    bundle = several(tmp_path / "several").bundle
    service = BlockingService(lambda: Service([bundle], Settings(runner="threads", replicas=1, threads=1)))
    try:
        with application(service).test_client() as client:
            assert "a: float32 of shape [4]; b: int64 of shape [2, 3]</span>" in client.get("/").text
    finally:
        service.close()


THERE = "efficientnet_lite0, hostile, iris, wide, Double and 9 more"


@pytest.mark.parametrize(("query", "sentence"), [
    ("nobody", f"There is no model of that name ('nobody'): name one of {THERE}."),
    ("iris/7", "The model has no such version ('7'): iris has 1."),
    (HOSTILE, f"There is no model of that name ('{HOSTILE}'): name one of {THERE}."),
])  # fmt: skip
def test_a_model_that_is_not_there_is_said_on_the_page(client: FlaskClient, query: str, sentence: str) -> None:
    response = client.get("/", query_string={"model": query})
    assert response.status_code == 404
    assert errors(response.text) == [sentence]
    assert HOSTILE not in response.text


def test_numbers_are_answered_from_their_fields_or_from_json(client: FlaskClient) -> None:
    numbers = [("number", text) for text in ("1", "-2.5", "0", ".5")]
    [answer] = answers(client.post("/?model=iris", **fields(*numbers)).text)
    assert answer == "[2, -5, 0, 1]"
    page = client.post("/?model=iris", **fields(*numbers, ("input", "[[1, 2, 3, 4], [5, 6, 7, 8]]"))).text
    assert answers(page)[0] == "[\n  [2, 4, 6, 8],\n  [10, 12, 14, 16]\n]"
    assert 'value="-2.5"' in page  # what was written is still there
    assert "[[1, 2, 3, 4], [5, 6, 7, 8]]</textarea>" in page


@pytest.mark.parametrize(("texts", "sentence"), [
    (["1", "2", "x", "4"], "X[2] is not a number: write one into every field."),
    (["1", "2", "3", "inf"], "X[3] is not finite: write a finite number."),
    (["1", "2"], "The form has 2 of 4 numbers."),
])  # fmt: skip
def test_numbers_that_are_none_are_refused_in_words(client: FlaskClient, texts: list[str], sentence: str) -> None:
    response = client.post("/?model=iris", **fields(*(("number", text) for text in texts)))
    assert response.status_code == 400
    assert errors(response.text) == [sentence]


def test_several_pictures_are_answered_in_order_and_a_bad_one_fails_alone(client: FlaskClient, cat: bytes) -> None:
    coffee = encoded(photograph("coffee"), "JPEG")
    pictures = MultiDict([("file", (io.BytesIO(data), "picture")) for data in (cat, b"none", coffee)])
    page = client.post("/", data=pictures, content_type="multipart/form-data").text
    assert shown(page) == ["Egyptian cat", "Not answered", "espresso"]
    assert len(errors(page)) == 1


# Every task over pictures, without JavaScript


def asked(client: FlaskClient, model: str, cat: bytes) -> str:
    return client.post(f"/?model={model}", data={"file": (io.BytesIO(cat), "cat.png")}).text


def test_labels_are_bars_and_those_that_are_present_are_marked_w4(client: FlaskClient, cat: bytes) -> None:
    answer = client.post("/predict/findings?top_k=5", data={"file": (io.BytesIO(cat), "cat.png")}).get_json()
    page = asked(client, "findings", cat)
    present = [each["label"] for each in answer["labels"]]
    assert 0 < len(present) < 5
    assert shown(page)[0] == ", ".join(present)
    bars = re.findall(r'<li( class="present")?><span class="name">(\w+)<.*?class="percent">([^<]+)<', page)
    assert [name for _, name, _ in bars] == [each["class_name"] for each in answer["predictions"]]
    assert [name for mark, name, _ in bars if mark] == present
    assert bars[0][2] == f"{100 * answer['predictions'][0]['probability']:.1f} %"
    assert "Marked are the labels whose score is 50 % or more." in page
    assert "says which of 5 labels it finds" in page
    assert "Multi-label classification. Sigmoid is applied by Flambeau (chosen at build)." in page
    assert "predict/findings/1?top_k=5" in page


def test_a_vector_is_shown_by_its_first_numbers_and_whole_on_demand_w5(client: FlaskClient, cat: bytes) -> None:
    vector = client.post("/predict/features", data={"file": (io.BytesIO(cat), "cat.png")}).get_json()["embedding"]
    page = asked(client, "features", cat)
    assert shown(page)[0] == f"A vector of 512 numbers, length {np.linalg.norm(vector):.6g}"
    assert answers(page)[0] == ", ".join(f"{number:.6g}" for number in vector[:8]) + ", …"
    [whole] = re.findall(r'<pre class="more"[^>]*>([^<]+)</pre>', page)
    assert json.loads(whole) == vector
    assert "top_k" not in page.replace('data-top-k=""', "")


def test_a_regression_is_its_number(client: FlaskClient, cat: bytes) -> None:
    answered = client.post("/predict/age", data={"file": (io.BytesIO(cat), "cat.png")})
    assert answered.status_code == 200, answered.text
    assert shown(asked(client, "age", cat))[0] == f"{answered.get_json()['output']:.6g}"
    outputs = client.post("/predict/ages", data={"file": (io.BytesIO(cat), "cat.png")}).get_json()["output"]
    page = asked(client, "ages", cat)
    assert shown(page)[0] == "3 numbers"
    assert answers(page)[0].split() == [f"{number:.6g}" for number in outputs]


def test_the_dashboard_says_what_every_model_does(client: FlaskClient) -> None:
    page = unescape(client.get("/dashboard").text)
    assert "Embedding. No activation is applied (a known architecture): the network's numbers are the answer." in page
    assert re.search(r'iris, version 1</a></dt>\s*<dd class="quiet">A network over numbers.</dd>', page)
    assert (
        "curl -H 'Content-Type: application/json' -d '{&#34;input&#34;: [0,0,0,0]}' 'http://localhost/predict/iris'"
        in (page.replace('"', "&#34;"))
    )
    assert "curl -F 'file=@picture.jpg' 'http://localhost/predict/findings'" in page


# What a browser may do


def test_the_policy_lets_only_our_own_files_be_loaded(client: FlaskClient) -> None:
    """T-12."""
    for address in ("/", "/dashboard", "/?model=Double"):
        response = client.get(address)
        assert response.headers["Content-Security-Policy"] == POLICY
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["X-Frame-Options"] == "DENY"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        loaded = re.findall(r'(?:src|href|action|data-address)="([^"]*)"', response.text)
        assert loaded
        assert not [each for each in loaded if re.match(r"/|\w+:", each)]  # relative: right below any prefix
        assert not re.findall(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", response.text)


def test_a_hostile_class_is_text(client: FlaskClient, cat: bytes) -> None:
    """T-12."""
    page = client.post("/?model=hostile", data={"file": (io.BytesIO(cat), "cat.png")}).text
    assert shown(page)[0] == HOSTILE
    assert HOSTILE not in page


def test_static_files_are_revalidated_and_not_sent_twice(client: FlaskClient) -> None:
    first = client.get("/static/page/main.js", buffered=True)
    assert first.headers["Content-Type"].startswith("text/javascript")
    assert first.headers["Cache-Control"] == "no-cache"
    again = client.get("/static/page/main.js", headers={"If-None-Match": first.headers["ETag"]}, buffered=True)
    assert (again.status_code, again.data) == (304, b"")


def test_below_a_prefix_the_page_is_found_with_and_without_its_last_slash(app: Flask) -> None:
    mounted = Client(DispatcherMiddleware(Flask("outer"), {"/models/cats": app}))
    page = mounted.get("/models/cats/")
    assert "http://localhost/models/cats/predict?top_k=5" in page.text
    moved = mounted.get("/models/cats")
    assert moved.status_code == 308
    assert moved.headers["Location"] == "http://localhost/models/cats/"


def test_a_browser_that_goes_astray_gets_a_page_that_leads_back(client: FlaskClient) -> None:
    response = client.get("/a/b", headers={"Accept": "text/html,*/*;q=0.8"})
    assert response.status_code == 404
    assert "This service has no page at <code>/a/b</code>." in response.text
    assert {"../dashboard", "../docs", "../static/frame.css"} <= set(
        re.findall(r'(?:href|src)="([^"]*)"', response.text)
    )
    assert response.headers["Content-Security-Policy"] == POLICY
    told = client.get("/a/b").json
    assert told is not None
    assert told["code"] == "not_found"  # a program gets what a program reads


def test_the_api_page_has_the_frame_of_the_others(client: FlaskClient) -> None:
    page = client.get("/docs").text
    assert '<a href="docs" aria-current="page">API</a>' in page
    assert {"static/frame.css", "static/docs.css", "docs/swagger-ui.css"} <= set(re.findall(r'href="([^"]*)"', page))
