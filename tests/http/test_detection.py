"""A detector over HTTP: boxes for every body that carries a picture; their schema, the page, the client, a table."""

import base64
import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs as jsonschema
import numpy as np
import pytest
import requests
from PIL import Image

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.client import Prediction
from flambeau.types import ObjectDetection
from tests.support import detector_bundles
from tests.support.detector_bundles import MOST, NAMES, STRENGTHS, TABLE
from tests.support.photographs import encoded
from tests.support.server import Serve, ServerProcess, answer_schema
from tests.support.warm import run_with_torch

SIZE = {"width": 60, "height": 40}


def grey(level: int) -> bytes:
    """A picture of one colour, in which the detector finds `level` / 255 of its boxes."""
    return encoded(Image.new("RGB", (SIZE["width"], SIZE["height"]), (level,) * 3))


BLACK, DARK, WHITE = grey(0), grey(1), grey(255)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return detector_bundles.detector(tmp_path_factory.mktemp("detector") / "bundle")


@pytest.fixture(scope="module")
def server(serve: Serve, bundle: Bundle) -> Iterator[ServerProcess]:
    with serve(bundle.path, "--replicas", "1") as running:
        yield running


@pytest.mark.parametrize(("data", "count"), [(BLACK, 0), (DARK, 1), (WHITE, MOST)], ids=["none", "one", "many"])
def test_no_box_one_and_three_hundred(server: ServerProcess, data: bytes, count: int) -> None:
    body = server.post(files={"file": data}).json()
    assert body["image"] == SIZE
    assert len(body["predictions"]) == count
    for rank, each in enumerate(body["predictions"][:3]):
        assert each["label"] == NAMES[each["class_index"]]
        assert each["class_index"] == 1 + rank % 2
        assert each["score"] == pytest.approx(STRENGTHS[rank])
        assert list(each["box"].values()) == pytest.approx(TABLE[rank].tolist())
        assert list(each["box"]) == ["xmin", "ymin", "xmax", "ymax"]
    jsonschema.validate(answer_schema(server), body)


def test_every_body_that_carries_a_picture_gets_the_same_boxes(server: ServerProcess) -> None:
    expected = server.post(files={"file": DARK}).json()
    text = base64.b64encode(DARK).decode()
    for answered in (
        server.post(data=DARK, headers={"Content-Type": "image/png"}),
        server.post(data=DARK),
        server.post(json={"image": text}),
        server.post(json={"inputs": text}),
        server.post(files={"image": DARK}),
    ):
        assert (answered.status_code, answered.json()) == (200, expected)


def test_pictures_of_unlike_sizes_are_answered_as_each_alone(server: ServerProcess) -> None:
    wide = encoded(Image.new("RGB", (90, 20), (2, 2, 2)))
    pictures = [WHITE, wide, DARK, b"none", BLACK, wide, DARK]
    alone = [server.post(files={"file": each}).json() for each in pictures]
    together = server.post(files=[("file", each) for each in pictures]).json()
    jsonschema.validate(answer_schema(server), together)
    for one, other in zip(alone, together["predictions"], strict=True):
        assert {**one, "request_id": ""} == {**other, "request_id": ""}
    assert alone[1]["image"] == {"width": 90, "height": 20}
    assert alone[3]["code"] == "unsupported_image_format"


@pytest.mark.parametrize(
    ("query", "count"),
    [("threshold=0.9", int((STRENGTHS >= 0.9).sum())), ("threshold=1", 0), ("max_detections=7", 7),
     ("max_detections=7&threshold=0.985", int((STRENGTHS >= 0.985).sum())), ("threshold=0", MOST)],
)  # fmt: skip
def test_the_client_says_how_sure_and_how_many(server: ServerProcess, query: str, count: int) -> None:
    assert len(server.post(f"/predict?{query}", files={"file": WHITE}).json()["predictions"]) == count


def test_what_is_no_number_of_detections_is_refused(server: ServerProcess) -> None:
    for query in ("max_detections=0", "max_detections=1001", "max_detections=two", "threshold=2"):
        assert server.post(f"/predict?{query}", files={"file": DARK}).json()["code"] == "bad_request"


def test_the_document_tells_of_boxes(server: ServerProcess) -> None:
    operation = server.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert operation["description"].startswith("Object detection.")
    named = {each.get("name"): each for each in operation["parameters"]}
    assert {"threshold", "max_detections"} <= named.keys()
    assert "top_k" not in named
    one, _ = operation["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
    found = one["properties"]["predictions"]
    assert found["maxItems"] == MOST
    assert found["items"]["properties"]["class_index"]["maximum"] == 2
    assert "in pixels" in found["items"]["properties"]["box"]["description"].lower()
    wrong: dict[str, Any]
    for wrong in ({"predictions": []}, {"image": SIZE}, {"predictions": [{"label": "cat"}], "image": SIZE}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(one, wrong)


def test_the_page_lists_the_boxes_and_draws_them(server: ServerProcess) -> None:
    page = server.post("/", files={"file": ("dark.png", DARK)}).text
    assert '<h3 class="verdict">cat</h3>' in page
    assert "cat, 0 to 30 across, 0 to 20 down" in page
    assert "Shown are objects whose score is 50 % or more, in a picture of 60 × 40 pixels." in page
    assert '<svg class="outlines" viewBox="0 0 60 40" aria-hidden="true">' in page
    assert re.search(r'<rect x="0.0" y="0.0" width="30.0" height="20.0"/>', page)
    many = server.post("/", files={"file": ("white.png", WHITE)}).text
    assert "150 × cat, 150 × dog" in many
    assert "The first 20 of 300 are listed." in many
    assert many.count("<rect x=") >= MOST
    nothing = server.post("/", files={"file": ("black.png", BLACK)}).text
    assert '<h3 class="verdict">Nothing found</h3>' in nothing
    assert 'class="outlines"' not in nothing


def test_the_client_has_objects(server: ServerProcess) -> None:
    with flambeau.Client(server.url) as client:
        one, none = client.predict(DARK), client.predict(BLACK)
        assert len(client.predict(WHITE, max_detections=2).objects) == 2
        [few] = client.predict_many([WHITE], max_detections=3)
        assert isinstance(few, Prediction)
        assert len(few.objects) == 3
    [found] = one.objects
    assert (found.label, found.class_index) == ("cat", 1)
    assert found.score == pytest.approx(STRENGTHS[0])
    assert (found.xmin, found.ymin, found.xmax, found.ymax) == pytest.approx(TABLE[0].tolist())
    assert (one.size, one.top) == ((60, 40), ())
    assert (none.objects, none.size) == ((), (60, 40))


def test_a_replica_in_this_process_answers_the_same(bundle: Bundle) -> None:
    with flambeau.load(bundle.path) as model:
        found = model.predict(WHITE, threshold=0.9)
        with pytest.raises(flambeau.errors.RequestError, match="too thin"):
            model.predict(encoded(Image.new("RGB", (1, 300))))
    assert isinstance(found, ObjectDetection)
    assert len(found.found) == int((STRENGTHS >= 0.9).sum())
    assert np.array_equal(found.tensors()["boxes"][0], TABLE[: len(found.found)])


@pytest.mark.long
def test_pictures_are_scored_into_tables(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name, data in (("a", BLACK), ("b", DARK), ("c", WHITE), ("d", b"none")):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(data)
    for kind in ("jsonl", "csv"):
        done = run_with_torch("predict", bundle.path, tmp_path / "pictures", "-o", tmp_path / f"table.{kind}")
        assert done.returncode == 3, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert [row["objects"] for row in rows] == [0, 1, MOST, None]
    assert rows[1]["labels"] == ["cat"]
    assert rows[1]["boxes"] == [pytest.approx(TABLE[0].tolist())]
    assert (rows[1]["width"], rows[1]["height"]) == (60, 40)
    table = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["objects"] for row in table] == ["0", "1", str(MOST), ""]
    assert json.loads(table[1]["boxes"]) == rows[1]["boxes"]
    assert table[3]["code"] == "unsupported_image_format"


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_probabilities_of_a_detector_are_refused_once(bundle: Bundle, tmp_path: Path, name: str) -> None:
    """And not first for the format of the file, and then in the format that was proposed, for having no effect."""
    (tmp_path / "a.png").write_bytes(BLACK)
    done = run_with_torch("predict", bundle.path, tmp_path / "a.png", "-o", tmp_path / name, "--probabilities")
    assert done.returncode == 1
    assert "--probabilities has no effect on" in done.stderr
    assert not (tmp_path / name).exists()


def test_hugging_faces_client_gets_its_own_objects(serve: Serve, bundle: Bundle) -> None:
    with serve(bundle.path, "--replicas", "1", "--platform", "huggingface", "--host", "127.0.0.1") as server:
        client = server.hugging_face()
        assert client.object_detection(BLACK) == []
        first, *_ = client.object_detection(WHITE)
        assert (first.label, first.score) == (NAMES[1], pytest.approx(float(STRENGTHS[0])))
        box = [first.box.xmin, first.box.ymin, first.box.xmax, first.box.ymax]
        assert box == pytest.approx(TABLE[0].tolist())
        fewer = client.object_detection(WHITE, threshold=0.9)
        assert len(fewer) == int((STRENGTHS >= 0.9).sum())


def over_v2(server: ServerProcess, *files: bytes, name: str | None = None, **parameters: Any) -> dict[str, Any]:
    """The outputs for these images by name: the usual ones, or one that is asked for."""
    data = [base64.b64encode(each).decode() for each in files]
    given = {"name": "images", "shape": [len(files)], "datatype": "BYTES", "data": data}
    wanted = {} if name is None else {"outputs": [{"name": name}]}
    answer = server.post("/v2/models/detector/infer", json={"inputs": [given], "parameters": parameters, **wanted})
    assert answer.status_code == 200, answer.text
    return {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in answer.json()["outputs"]}


def test_boxes_are_tensors_over_v2_padded_to_the_longest(server: ServerProcess) -> None:
    told = server.get("/v2/models/detector").json()
    assert {each["name"]: (each["datatype"], each["shape"]) for each in told["outputs"]} == {
        "boxes": ("FP32", [-1, -1, 4]), "scores": ("FP32", [-1, -1]), "labels": ("INT64", [-1, -1]),
        "names": ("BYTES", [-1, -1]), "count": ("INT64", [-1]), "answer": ("BYTES", [-1]),
    }  # fmt: skip
    found = over_v2(server, BLACK, DARK, WHITE)
    assert found["count"].tolist() == [0, 1, MOST]
    assert {name: each.shape for name, each in found.items() if name != "count"} == {
        "boxes": (3, MOST, 4), "scores": (3, MOST), "labels": (3, MOST), "names": (3, MOST)
    }  # fmt: skip
    for row, data in enumerate((BLACK, DARK, WHITE)):
        count = found["count"][row]
        native = server.post(files={"file": data}).json()["predictions"]
        assert found["names"][row].tolist() == [each["label"] for each in native] + [""] * (MOST - count)
        np.testing.assert_allclose(found["scores"][row, :count], [each["score"] for each in native], rtol=1e-5)
        boxes = [[each["box"][name] for name in ("xmin", "ymin", "xmax", "ymax")] for each in native]
        np.testing.assert_allclose(found["boxes"][row, :count], np.reshape(boxes, (-1, 4)), rtol=1e-5)
        assert not found["boxes"][row, count:].any()
    assert over_v2(server, WHITE, max_detections=2)["names"].tolist() == [list(NAMES[1:])]
    assert over_v2(server, BLACK)["boxes"].shape == (1, 0, 4)
    answers = over_v2(server, DARK, WHITE, name="answer")["answer"]
    assert [len(json.loads(each)["predictions"]) for each in answers] == [1, MOST]
    assert over_v2(server, WHITE, threshold=0.98)["count"].tolist() == [int((STRENGTHS >= 0.98).sum())]


def test_rows_of_the_networks_own_input_that_find_unlike_numbers_are_refused_with_a_way(server: ServerProcess) -> None:
    """Their boxes are no tensor. It was answered with 500."""

    def asked(*levels: float) -> requests.Response:
        rows = np.array(levels, np.float32).repeat(3 * 4 * 4).reshape(-1, 3, 4, 4)
        tensor = {"name": "image", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
        return server.post("/v2/models/detector/infer", json={"inputs": [tensor]})

    refused = asked(0.5, 1)
    assert refused.status_code == 400
    sentence = "'boxes' of unlike shapes ([150, 4] and [300, 4]), which no tensor can hold: send them one by one"
    assert sentence in refused.json()["error"]
    assert [each["shape"] for each in asked(0.5, 0.5).json()["outputs"]] == [[2, 150, 4], [2, 150], [2, 150]]
    assert asked(1).json()["outputs"][0]["shape"] == [1, MOST, 4]
