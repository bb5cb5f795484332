"""The real TorchServe and Flambeau beside each other: equal answers to the same requests, of the same archives.

`make test-torchserve` runs it: it installs TorchServe, and needs Java.
"""

import base64
from typing import Any

import numpy as np
import pytest
import requests

from benchmarks.torchserve_servers import Running
from tests.support.photographs import encoded, photograph

pytestmark = [pytest.mark.torchserve, pytest.mark.timeout(900, func_only=True)]  # servers have a limit of their own

PICTURES = {
    "cat.png": encoded(photograph("chelsea")),
    "coffee.jpg": encoded(photograph("coffee"), "JPEG", quality=95),
    "rocket.png": encoded(photograph("rocket").resize((200, 310))),
}
NEAR = 2e-4  # of probabilities, and of pixels: two engines, and the order of their sums
NEAR_SCORES = 3e-3  # of boxes: a millionth in the pixels changes some of eager PyTorch's own by 3e-4


def _asked(server: Running, model: str, **request: Any) -> requests.Response:
    return requests.put(f"{server.url}/predictions/{model}", timeout=200, **request)


def _same(theirs: Running, ours: Running, model: str, **request: Any) -> tuple[Any, Any]:
    """Both answers to a request, which both have to give: JSON as its value, anything else as it is."""
    both = [_asked(each, model, **request) for each in (theirs, ours)]
    assert [each.status_code for each in both] == [200, 200], [each.text[:500] for each in both]
    try:
        return both[0].json(), both[1].json()
    except ValueError:
        return both[0].content, both[1].content


@pytest.mark.parametrize("form", ["raw", "form", "base64"])
@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("model", ["classifier", "scripted"])
def test_image_classifier(theirs: Running, ours: Running, model: str, picture: str, form: str) -> None:
    data = PICTURES[picture]
    text = base64.b64encode(data).decode()
    requests: dict[str, dict[str, Any]] = {
        "raw": {"data": data}, "form": {"files": {"data": data}},
        "base64": {"files": {"data": ("a.txt", text, "text/plain")}},
    }  # fmt: skip
    expected, found = _same(theirs, ours, model, **requests[form])
    assert len(expected) == 5
    assert list(found) == list(expected)
    assert list(found.values()) == pytest.approx(list(expected.values()), abs=NEAR)


@pytest.mark.parametrize("picture", PICTURES)
def test_object_detector(theirs: Running, ours: Running, picture: str) -> None:
    expected, found = _same(theirs, ours, "detector", data=PICTURES[picture])
    assert len(expected) > 2
    # in the order of the scores; of two boxes whose scores are as near as the engines are, either may be the first
    assert [each["score"] for each in found] == pytest.approx([each["score"] for each in expected], abs=NEAR_SCORES)
    left = list(found)
    for real in expected:
        [name] = real.keys() - {"score"}
        same = [
            mine for mine in left
            if mine.get(name) == pytest.approx(real[name], abs=0.05)
            and mine["score"] == pytest.approx(real["score"], abs=NEAR_SCORES)
        ]  # fmt: skip
        assert same, f"{real} is not among {left}"
        left.remove(same[0])
    assert min(each["score"] for each in expected) >= 0.5


@pytest.mark.parametrize("picture", PICTURES)
def test_image_segmenter(theirs: Running, ours: Running, picture: str) -> None:
    expected, found = (np.asarray(each) for each in _same(theirs, ours, "segmenter", data=PICTURES[picture]))
    assert expected.shape == found.shape == (224, 224, 2)
    assert len(np.unique(expected[..., 0])) > 2
    assert (expected[..., 0] != found[..., 0]).mean() < 1e-3
    assert np.abs(expected[..., 1] - found[..., 1]).max() < NEAR


@pytest.mark.parametrize("request_", [
    {"json": [1, 2, 3]}, {"data": b"[1, 2, 3]"}, {"files": {"data": b"[1, 2, 3]"}},
    {"files": {"data": ("a.json", b"[1, 2, 3]", "application/json")}},
])  # fmt: skip
def test_a_subclass_of_the_base(theirs: Running, ours: Running, request_: dict[str, Any]) -> None:
    expected, found = _same(theirs, ours, "rows", **request_)
    assert found.pop("scores") == pytest.approx(expected.pop("scores"), abs=1e-6)
    assert found == expected


@pytest.mark.parametrize("request_", [
    {"files": {"a": b"1", "b": (None, "2", "text/plain"), "c": ("c.json", "[1]", "application/json")}},
    {"data": {"x": "1"}}, {"json": {"x": 1}}, {"data": b"raw"},
    {"data": "text", "headers": {"Content-Type": "text/csv"}},
    {"files": {"text": (None, "bold", "text/plain")}}, {"files": {"d": ("d.txt", "2", "text/plain")}},
])  # fmt: skip
def test_a_function(theirs: Running, ours: Running, request_: dict[str, Any]) -> None:
    request_ = {"headers": {"User-Agent": "old"}, **request_}
    request_["headers"] = {"User-Agent": "old", **request_["headers"]}
    expected, found = _same(theirs, ours, "functions", **request_)
    if isinstance(expected, dict):
        assert (found.pop("loaded"), expected.pop("loaded")) == (1, 1)
    assert found == expected


def test_statuses_and_media_types_that_a_handler_chooses(theirs: Running, ours: Running) -> None:
    for request in ({"files": {"bytes": b"abc"}}, {"files": {"text": (None, "bold", "text/plain")}}):
        real, mine = (_asked(each, "functions", **request) for each in (theirs, ours))
        assert (mine.status_code, mine.content) == (real.status_code, real.content)
        assert real.headers.get("content-type") in (None, mine.headers["content-type"])


def test_a_class_of_nobodys_counts_on(theirs: Running, ours: Running) -> None:
    for _ in range(2):
        expected, found = _same(theirs, ours, "plain", data=b"x")
        assert found == expected


@pytest.mark.parametrize("picture", PICTURES)
def test_a_handler_of_pictures_with_a_transform_of_its_own(theirs: Running, ours: Running, picture: str) -> None:
    expected, found = _same(theirs, ours, "bright", data=PICTURES[picture])
    assert found == expected
    assert found["floor"] == 0.25


@pytest.mark.parametrize("picture", PICTURES)
def test_a_subclass_of_the_classifier(theirs: Running, ours: Running, picture: str) -> None:
    expected, found = _same(theirs, ours, "two", data=PICTURES[picture])
    assert list(found["best"]) == list(expected["best"])
    assert list(found["best"].values()) == pytest.approx(list(expected["best"].values()), abs=NEAR)
    assert found["rest"] == pytest.approx(expected["rest"], abs=2 * NEAR)


@pytest.mark.parametrize("path", ["GET /ping", "PUT /predictions/nobody", "PUT /predictions/plain/9.0"])
def test_health_and_refusals(theirs: Running, ours: Running, path: str) -> None:
    method, path = path.split()
    real, mine = (requests.request(method, each.url + path, data=b"x", timeout=60) for each in (theirs, ours))
    assert (mine.status_code, set(mine.json())) == (real.status_code, set(real.json()))
    assert mine.json().get("type") == real.json().get("type")


def test_the_archives_code_that_is_not_needed_is_not_run(ours: Running) -> None:
    log = ours.log.read_text()
    assert "model=classifier" in log
    for name, task in (("classifier", "classification"), ("detector", "object-detection"), ("segmenter", "handler")):
        assert f"model={name} version=1.0 task={task}" in log
