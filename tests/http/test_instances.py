"""Detectors with masks or keypoints over HTTP: every body, their schemas, the page, clients, tables, KServe v2."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs as jsonschema
import numpy as np
import pytest
from PIL import Image

import flambeau
from flambeau.answers import instance_masks
from flambeau.protocols import torchserve_openapi
from flambeau.tasks import TASKS
from flambeau.tasks.classification import Classification
from flambeau.tasks.multi_label import MultiLabel
from flambeau.tasks.object_detection import ObjectDetection
from flambeau.types import InstanceSegmentation
from tests.support import detector_bundles
from tests.support.detector_bundles import DISCS, LOGITS, MOST, NAMES, PLACED, POINTS, TABLE
from tests.support.photographs import encoded
from tests.support.server import Serve, ServerProcess, answer_schema
from tests.support.warm import run_with_torch
from tests.unit.test_label_maps import decoded

WIDE, HIGH = 60, 40


def grey(level: int, size: tuple[int, int] = (WIDE, HIGH), mode: str = "RGB") -> bytes:
    """A picture of one colour, in which the detectors find `level` / 255 of their boxes."""
    return encoded(Image.new("RGB", size, (level,) * 3).convert(mode))


BLACK, DARK, FEW, WHITE = grey(0), grey(1), grey(5), grey(255)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of both."""
    made = tmp_path_factory.mktemp("instances")
    detector_bundles.detector(made / "masks", task="instance-segmentation")
    detector_bundles.detector(made / "points", task="keypoint-detection")
    return made


@pytest.fixture(scope="module")
def server(serve: Serve, folder: Path) -> Iterator[ServerProcess]:
    with serve(f"masks={folder / 'masks'}", f"points={folder / 'points'}", "--replicas", "1") as running:
        yield running


def asked(server: ServerProcess, model: str, data: bytes, query: str = "") -> Any:
    answer = server.post(f"/predict/{model}{query}", files={"file": data})
    assert answer.status_code == 200, answer.text
    return answer.json()


def opened(mask: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(mask))) as image:
        assert image.mode == "L"
        return np.asarray(image)


def drawn(rank: int, size: tuple[int, int] = (HIGH, WIDE)) -> np.ndarray:
    return instance_masks.whole(instance_masks.pasted(DISCS[rank], tuple(TABLE[rank].tolist()), size), size)


@pytest.mark.parametrize(("data", "count"), [(BLACK, 0), (DARK, 1), (WHITE, MOST)], ids=["none", "one", "many"])
def test_each_object_has_its_mask_in_the_size_of_the_picture(server: ServerProcess, data: bytes, count: int) -> None:
    body = asked(server, "masks", data)
    jsonschema.validate(answer_schema(server, "/predict/masks"), body)
    assert body["image"] == {"width": WIDE, "height": HIGH}
    assert len(body["predictions"]) == count
    for rank, each in enumerate(body["predictions"][:: max(count // 7, 1)]):
        rank *= max(count // 7, 1)
        mask = opened(each["mask"])
        assert mask.shape == (HIGH, WIDE)
        assert np.array_equal(mask == 255, drawn(rank))
        assert set(np.unique(mask)) <= {0, 255}
        assert (each["label"], each["pixels"]) == (NAMES[1 + rank % 2], drawn(rank).sum())
        assert list(each["box"].values()) == pytest.approx(TABLE[rank].tolist())


def test_masks_as_cocos_runs(server: ServerProcess) -> None:
    body = asked(server, "masks", WHITE, "?mask=rle&max_detections=9")
    jsonschema.validate(answer_schema(server, "/predict/masks"), body)
    assert len(body["predictions"]) == 9
    for rank, each in enumerate(body["predictions"]):
        assert each["mask"]["size"] == [HIGH, WIDE]
        assert np.array_equal(decoded(each["mask"]["counts"], (HIGH, WIDE)), drawn(rank))
    assert server.post("/predict/masks?mask=polygon", files={"file": DARK}).json()["code"] == "bad_request"


def test_each_object_has_its_points(server: ServerProcess) -> None:
    for data, count in ((BLACK, 0), (WHITE, MOST)):
        body = asked(server, "points", data)
        jsonschema.validate(answer_schema(server, "/predict/points"), body)
        assert len(body["predictions"]) == count
    for rank in (0, 1, MOST - 1):
        points = body["predictions"][rank]["keypoints"]
        assert [point["name"] for point in points] == list(POINTS)
        assert np.array([[point["x"], point["y"]] for point in points]) == pytest.approx(PLACED[rank])
        assert [point["score"] for point in points] == LOGITS[rank].tolist()


@pytest.mark.parametrize("model", ["masks", "points"])
@pytest.mark.parametrize(
    ("data", "size"),
    [
        (grey(5, mode="L"), (WIDE, HIGH)), (grey(5, mode="RGBA"), (WIDE, HIGH)), (grey(5, (1, 1)), (1, 1)),
        (grey(5, (1200, 900)), (1200, 900)),
    ],
    ids=["grey", "alpha", "one pixel", "large"],
)  # fmt: skip
def test_pictures_of_any_kind(server: ServerProcess, model: str, data: bytes, size: tuple[int, int]) -> None:
    body = asked(server, model, data)
    assert body["image"] == {"width": size[0], "height": size[1]}
    assert len(body["predictions"]) == 5
    for each in body["predictions"]:
        assert model == "points" or opened(each["mask"]).shape == size[::-1]


def test_a_picture_that_exif_turns_has_masks_of_the_turned_size(server: ServerProcess) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDE, HIGH), (5, 5, 5)).save(file, "PNG", exif=exif)
    body = asked(server, "masks", file.getvalue())
    assert body["image"] == {"width": HIGH, "height": WIDE}
    assert np.array_equal(opened(body["predictions"][0]["mask"]) == 255, drawn(0, (WIDE, HIGH)))


def test_a_picture_that_is_reduced_has_points_and_masks_in_its_own_pixels(folder: Path, tmp_path: Path) -> None:
    """One of more than `most_pixels` is reduced by a whole factor, here 2."""
    points = detector_bundles.detector(tmp_path / "points", task="keypoint-detection", most_pixels=WIDE * HIGH)
    masks = detector_bundles.detector(tmp_path / "masks", task="instance-segmentation", most_pixels=WIDE * HIGH)
    twice = grey(5, (2 * WIDE, 2 * HIGH))
    with flambeau.load(points.path) as model:
        found = np.array(model.predict(twice).found[1].keypoints)[:, :2]
    assert found == pytest.approx(2 * PLACED[1])
    with flambeau.load(masks.path) as model:
        answer = model.predict(twice)
    box = tuple((2 * TABLE[1]).tolist())
    size = (2 * HIGH, 2 * WIDE)
    assert np.array_equal(answer.mask(1), instance_masks.whole(instance_masks.pasted(DISCS[1], box, size), size))


def test_pictures_of_unlike_sizes_are_answered_as_each_alone(server: ServerProcess) -> None:
    pictures = [FEW, grey(9, (90, 20)), b"none", BLACK, FEW]
    for model in ("masks", "points"):
        alone = [server.post(f"/predict/{model}", files={"file": each}).json() for each in pictures]
        together = server.post(f"/predict/{model}", files=[("file", each) for each in pictures]).json()
        for one, other in zip(alone, together["predictions"], strict=True):
            assert {**one, "request_id": ""} == {**other, "request_id": ""}


def test_the_page_draws_masks_and_points(server: ServerProcess) -> None:
    page = server.post("/?model=masks/1", files={"file": ("few.png", FEW)}).text
    assert page.count('<i class="mask" data-png=') == 5
    assert page.count('<label class="switch">') == 5
    assert '<h3 class="verdict">3 × cat, 2 × dog</h3>' in page
    assert page.count("<rect x=") >= 5
    page = server.post("/?model=points/1", files={"file": ("few.png", FEW)}).text
    assert len(re.findall(r'<path d="M[\d.]+ [\d.]+h0"/>', page)) == 15
    assert "with 3 keypoints each" in page
    for model in ("masks", "points"):
        assert "Nothing found" in server.post(f"/?model={model}/1", files={"file": ("black.png", BLACK)}).text


def test_the_client_has_masks_and_points(server: ServerProcess) -> None:
    with flambeau.Client(server.url) as client:
        found = client.predict(FEW, model="masks").objects
        [first, *_] = client.predict(FEW, model="points").objects
    assert [each.label for each in found] == ["cat", "dog", "cat", "dog", "cat"]
    with Image.open(io.BytesIO(found[2].mask)) as mask:
        assert np.array_equal(np.asarray(mask) == 255, drawn(2))
    assert [(each.name, each.score) for each in first.keypoints] == list(zip(POINTS, LOGITS[0].tolist(), strict=True))
    assert (first.keypoints[1].x, first.keypoints[1].y) == pytest.approx(PLACED[0, 1].tolist())


def test_the_client_asks_for_cocos_runs(server: ServerProcess) -> None:
    with flambeau.Client(server.url) as client:
        alone = client.predict(FEW, model="masks", mask="rle").objects
        [many] = client.predict_many([FEW], model="masks", mask="rle")
        with pytest.raises(flambeau.client.Refused, match="mask"):
            client.predict(FEW, model="masks", mask="polygon")  # type: ignore[arg-type]
    assert isinstance(many, flambeau.client.Prediction)
    assert alone == many.objects
    for rank, each in enumerate(alone):
        assert each.rle is not None
        assert (each.mask, each.rle["size"]) == (b"", [HIGH, WIDE])
        assert np.array_equal(decoded(each.rle["counts"], (HIGH, WIDE)), drawn(rank))


def test_hugging_faces_client_gets_masks_and_boxes(serve: Serve, folder: Path) -> None:
    with serve(folder / "masks", "--replicas", "1", "--platform", "huggingface", "--host", "127.0.0.1") as server:
        client = server.hugging_face()
        segments = client.image_segmentation(FEW)
        assert [each.label for each in segments] == ["cat", "dog", "cat", "dog", "cat"]
        mask = segments[1].mask
        shown = np.asarray(mask) if isinstance(mask, Image.Image) else opened(mask)
        assert np.array_equal(shown == 255, drawn(1))
        [first, *_] = client.object_detection(FEW)
        assert [first.box.xmin, first.box.ymin, first.box.xmax, first.box.ymax] == pytest.approx(TABLE[0].tolist())


@pytest.mark.long
def test_pictures_are_scored_into_tables_and_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name, data in (("a", BLACK), ("b", FEW), ("c", b"none")):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(data)
    options = ("--pictures", tmp_path / "maps")
    done = run_with_torch("predict", folder / "masks", tmp_path / "pictures", "-o", tmp_path / "masks.jsonl", *options)
    assert done.returncode == 3, done.stderr
    none, few, bad = [json.loads(line) for line in (tmp_path / "masks.jsonl").read_text().splitlines()]
    assert (none["objects"], none["masks"], bad["masks"]) == (0, [], None)
    assert [np.array_equal(decoded(each, (HIGH, WIDE)), drawn(rank)) for rank, each in enumerate(few["masks"])] == [
        True
    ] * 5
    assert few["pixels"] == [int(drawn(rank).sum()) for rank in range(5)]
    with Image.open(few["file"]) as image:
        assert image.mode == "P"
        numbers = np.asarray(image)
    best = np.select([drawn(rank) for rank in range(5)], range(1, 6))
    assert np.array_equal(numbers, best)
    done = run_with_torch("predict", folder / "points", tmp_path / "pictures", "-o", tmp_path / "points.jsonl")
    assert done.returncode == 3, done.stderr
    _, few, _ = [json.loads(line) for line in (tmp_path / "points.jsonl").read_text().splitlines()]
    assert np.array(few["keypoints"])[:, :, :2] == pytest.approx(PLACED[:5])
    refused = run_with_torch("predict", folder / "points", tmp_path / "pictures", "-o", tmp_path / "x.jsonl", *options)
    assert "--pictures has no effect" in refused.stderr


def outputs_of(server: ServerProcess, model: str) -> dict[str, tuple[str, list[int]]]:
    """What the metadata of KServe v2 says of its outputs."""
    told = server.get(f"/v2/models/{model}").json()["outputs"]
    return {each["name"]: (each["datatype"], each["shape"]) for each in told}


def over_v2(server: ServerProcess, model: str, *files: bytes) -> dict[str, np.ndarray]:
    data = [base64.b64encode(each).decode() for each in files]
    given = {"name": "images", "shape": [len(files)], "datatype": "BYTES", "data": data}
    answer = server.post(f"/v2/models/{model}/infer", json={"inputs": [given]})
    assert answer.status_code == 200, answer.text
    return {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in answer.json()["outputs"]}


def test_torchserves_answers_are_described_for_every_task(server: ServerProcess) -> None:
    """In the form of TorchServe's handlers where it has one: boxes by the names of their classes."""
    document = server.get("/openapi.json").json()
    for model in ("masks", "points"):
        answered = document["paths"][f"/predictions/{model}"]["post"]["responses"]["200"]
        told = {"components": document["components"], **answered["content"]["application/json"]["schema"]}
        found = server.post(f"/predictions/{model}", data=FEW).json()
        assert set(found[0]) == {NAMES[1], "score"}
        jsonschema.validate(told, found)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(told, [{"cat": [1, 2], "score": 0.5}])
    for task in TASKS.values():
        kinds = (Classification, MultiLabel, ObjectDetection)
        assert bool(torchserve_openapi.schema_of(task.answer)) == issubclass(task.answer, kinds), task.name


def test_masks_and_points_are_tensors_over_v2(server: ServerProcess) -> None:
    told = {
        each["name"]: (each["datatype"], each["shape"]) for each in server.get("/v2/models/masks").json()["outputs"]
    }
    assert {name: told[name] for name in ("masks", "height", "width")} == {
        "masks": ("BYTES", [-1, -1]), "height": ("INT64", [-1]), "width": ("INT64", [-1]),
    }  # fmt: skip
    found = over_v2(server, "masks", BLACK, grey(2, (20, 30)), FEW)
    assert found["count"].tolist() == [0, 2, 5]
    assert (found["width"].tolist(), found["height"].tolist()) == ([WIDE, 20, WIDE], [HIGH, 30, HIGH])
    assert found["masks"].shape == (3, 5)
    assert found["masks"][0].tolist() == [""] * 5
    assert np.array_equal(decoded(found["masks"][1, 1], (30, 20)), drawn(1, (30, 20)))
    assert np.array_equal(decoded(found["masks"][2, 4], (HIGH, WIDE)), drawn(4))
    told = {
        each["name"]: (each["datatype"], each["shape"]) for each in server.get("/v2/models/points").json()["outputs"]
    }
    assert told["keypoints"] == ("FP32", [-1, -1, 3, 3])
    found = over_v2(server, "points", BLACK, FEW)
    assert found["keypoints"].shape == (2, 5, 3, 3)
    assert found["keypoints"][1, :, :, :2] == pytest.approx(PLACED[:5])
    assert not found["keypoints"][0].any()


def test_a_mask_that_is_none_of_the_picture_is_not_drawn(folder: Path) -> None:
    with flambeau.load(folder / "masks") as model:
        answer = model.predict(FEW)
    assert isinstance(answer, InstanceSegmentation)
    for counts in ("", "0", answer.found[0].rle[:-1], answer.found[0].rle + "1", "\x7f", "oooooooooooo"):
        with pytest.raises(ValueError, match="the mask is"):
            instance_masks.unpacked(counts, (HIGH, WIDE))
