"""A segmenter over HTTP: masks for every body that carries a picture; their schema, the page, clients, a table."""

import base64
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs as jsonschema
import numpy as np
import pytest
from PIL import Image

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.types import SemanticSegmentation
from tests.support import segmenter_bundles
from tests.support.photographs import encoded
from tests.support.server import Serve, ServerProcess, answer_schema
from tests.support.warm import run_with_torch
from tests.unit.test_label_maps import decoded

WIDE, HIGH = 61, 42  # neither is a multiple of what the network takes
SPLIT = 20


def coloured(width: int = WIDE, height: int = HIGH) -> Image.Image:
    """Green on the left, blue on the right."""
    image = Image.new("RGB", (width, height), (0, 0, 255))
    image.paste((0, 255, 0), (0, 0, SPLIT, height))
    return image


PICTURE = encoded(coloured())
RED = encoded(Image.new("RGB", (50, 30), (255, 0, 0)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return segmenter_bundles.segmenter(tmp_path_factory.mktemp("segmenter") / "bundle")


@pytest.fixture(scope="module")
def server(serve: Serve, bundle: Bundle) -> Iterator[ServerProcess]:
    with serve(bundle.path, "--replicas", "1") as running:
        yield running


def opened(mask: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(mask))) as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_a_mask_for_each_class_in_the_size_of_the_picture(server: ServerProcess) -> None:
    body = server.post(files={"file": PICTURE}).json()
    jsonschema.validate(answer_schema(server), body)
    assert body["image"] == {"width": WIDE, "height": HIGH}
    grass, sky = body["predictions"]
    assert (grass["label"], grass["class_index"], grass["pixels"]) == ("grass", 1, SPLIT * HIGH)
    assert (sky["label"], sky["class_index"], sky["pixels"]) == ("sky", 2, (WIDE - SPLIT) * HIGH)
    left = np.arange(WIDE)[None] < SPLIT
    for each, expected in ((grass, left), (sky, ~left)):
        assert each["score"] == pytest.approx(1, abs=1e-6)
        assert np.array_equal(opened(each["mask"]), np.where(expected, 255, 0).repeat(HIGH, 0))


def test_every_body_that_carries_a_picture_gets_the_same_masks(server: ServerProcess) -> None:
    expected = server.post(files={"file": PICTURE}).json()
    text = base64.b64encode(PICTURE).decode()
    for answered in (
        server.post(data=PICTURE, headers={"Content-Type": "image/png"}),
        server.post(json={"image": text}),
        server.post(files={"image": PICTURE}),
    ):
        assert (answered.status_code, answered.json()) == (200, expected)


def test_pictures_of_unlike_sizes_are_answered_as_each_alone(server: ServerProcess) -> None:
    pictures = [PICTURE, RED, encoded(coloured(90, 20)), b"none", RED]
    alone = [server.post(files={"file": each}).json() for each in pictures]
    together = server.post(files=[("file", each) for each in pictures]).json()
    jsonschema.validate(answer_schema(server), together)
    for one, other in zip(alone, together["predictions"], strict=True):
        assert {**one, "request_id": ""} == {**other, "request_id": ""}
    assert alone[3]["code"] == "unsupported_image_format"


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 8  # it lies on its right side
    file = io.BytesIO()
    coloured().transpose(Image.Transpose.ROTATE_270).save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (turned(), (WIDE, HIGH)),
        (encoded(coloured().convert("RGBA")), (WIDE, HIGH)),
        (encoded(Image.new("L", (30, 40), 9)), (30, 40)),
        (encoded(Image.new("RGB", (1, 1), (0, 0, 255))), (1, 1)),
        (encoded(coloured(3000, 2000)), (3000, 2000)),
    ],
    ids=["turned", "alpha", "grey", "one pixel", "large"],
)
def test_pictures_of_all_kinds_are_answered_upright(server: ServerProcess, data: bytes, size: tuple[int, int]) -> None:
    body = server.post(files={"file": data}).json()
    assert (body["image"]["width"], body["image"]["height"]) == size
    assert sum(each["pixels"] for each in body["predictions"]) == size[0] * size[1]
    if size == (WIDE, HIGH):
        assert [each["pixels"] for each in body["predictions"]] == [SPLIT * HIGH, (WIDE - SPLIT) * HIGH]


def test_what_is_too_thin_is_refused(server: ServerProcess) -> None:
    answered = server.post(files={"file": encoded(Image.new("RGB", (1, 300)))})
    assert (answered.status_code, answered.json()["code"]) == (400, "input_rejected")


def test_the_whole_map_as_a_picture_with_a_palette(server: ServerProcess) -> None:
    answered = server.post(files={"file": PICTURE}, headers={"Accept": "image/png"})
    assert answered.headers["Content-Type"] == "image/png"
    with Image.open(io.BytesIO(answered.content)) as image:
        assert (image.mode, image.size) == ("P", (WIDE, HIGH))
        labels, shown = np.asarray(image), np.asarray(image.convert("RGB"))
    assert np.array_equal(labels, np.where(np.arange(WIDE) < SPLIT, 1, 2)[None].repeat(HIGH, 0))
    assert shown[0, 0].tolist() == [128, 0, 0]
    assert shown[0, -1].tolist() == [0, 128, 0]
    two = server.post(files=[("file", PICTURE)] * 2, headers={"Accept": "image/png"}).json()
    assert (two["code"], "one by one" in two["error"]) == ("bad_request", True)
    assert server.post(files={"file": b"none"}, headers={"Accept": "image/png"}).json()["code"].startswith("unsupp")


def test_masks_in_cocos_runs(server: ServerProcess) -> None:
    body = server.post("/predict?mask=rle", files={"file": PICTURE}).json()
    jsonschema.validate(answer_schema(server), body)
    grass, _ = body["predictions"]
    assert grass["mask"]["size"] == [HIGH, WIDE]
    assert np.array_equal(decoded(grass["mask"]["counts"], (HIGH, WIDE))[0], np.arange(WIDE) < SPLIT)


@pytest.mark.parametrize("query", ["mask=rubbish", "mask=", "mask=rle&mask=png", "mask=RLE", "threshold=2"])
def test_what_is_no_form_of_a_mask_is_refused(server: ServerProcess, query: str) -> None:
    answered = server.post(f"/predict?{query}", files={"file": PICTURE})
    assert (answered.status_code, answered.json()["code"]) == (400, "bad_request")


def test_masks_with_little_certainty_can_be_left_out(server: ServerProcess) -> None:
    faint = encoded(Image.new("RGB", (40, 30), (0, 4, 0)))
    [one] = server.post(files={"file": faint}).json()["predictions"]
    assert 0.34 < one["score"] < 0.5
    assert server.post("/predict?threshold=0.5", files={"file": faint}).json()["predictions"] == []


def test_the_document_tells_of_masks(server: ServerProcess) -> None:
    operation = server.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert operation["description"].startswith("Semantic segmentation.")
    named = {each.get("name"): each for each in operation["parameters"]}
    assert named["mask"]["schema"] == {"type": "string", "enum": ["png", "rle"]}
    assert "top_k" not in named
    assert "image/png" in operation["responses"]["200"]["content"]


def test_the_page_lists_the_classes(server: ServerProcess) -> None:
    page = server.post("/", files={"file": ("a.png", PICTURE)}).text
    assert '<h3 class="verdict">sky, grass</h3>' in page
    assert f"the share of the picture&#39;s {WIDE} × {HIGH} pixels" in page
    assert page.count('class="mask" data-png="') == 2
    assert 'type="checkbox" checked> <svg class="swatch"' in page


def test_the_client_has_segments(server: ServerProcess) -> None:
    with flambeau.Client(server.url) as client:
        answer = client.predict(PICTURE)
    assert [each.label for each in answer.segments] == ["grass", "sky"]
    assert (answer.size, answer.objects, answer.top) == ((WIDE, HIGH), (), ())
    with Image.open(io.BytesIO(answer.segments[0].mask)) as image:
        assert np.count_nonzero(np.asarray(image)) == answer.segments[0].pixels == SPLIT * HIGH
    with flambeau.Client(server.url) as client:
        [grass, _] = client.predict(PICTURE, mask="rle").segments
    assert grass.rle is not None
    assert (grass.mask, grass.rle["size"]) == (b"", [HIGH, WIDE])
    assert decoded(grass.rle["counts"], (HIGH, WIDE)).sum() == grass.pixels


def test_a_replica_in_this_process_answers_the_same(bundle: Bundle) -> None:
    with flambeau.load(bundle.path) as model:
        answer = model.predict(PICTURE)
    assert isinstance(answer, SemanticSegmentation)
    assert np.array_equal(answer.labels[0], np.where(np.arange(WIDE) < SPLIT, 1, 2))


def test_kserves_protocol_has_the_map_by_name(server: ServerProcess) -> None:
    outputs = {each["name"]: each for each in server.get("/v2/models/segmenter").json()["outputs"]}
    assert outputs["mask"] == {"name": "mask", "datatype": "UINT8", "shape": [-1, -1, -1]}
    tensor = {
        "name": "images", "datatype": "BYTES", "shape": [1], "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(PICTURE).decode()],
    }  # fmt: skip
    [found] = server.post("/v2/models/segmenter/infer", json={"inputs": [tensor]}).json()["outputs"]
    assert (found["name"], found["shape"]) == ("mask", [1, HIGH, WIDE])
    assert found["data"][:WIDE] == [1] * SPLIT + [2] * (WIDE - SPLIT)
    asked = {"inputs": [tensor], "outputs": [{"name": "answer"}]}
    [told] = server.post("/v2/models/segmenter/infer", json=asked).json()["outputs"]
    assert json.loads(told["data"][0])["predictions"][0]["label"] == "grass"


@pytest.mark.long
def test_pictures_are_scored_into_tables(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name, data in (("a", PICTURE), ("b", RED), ("c", b"none")):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(data)
    for kind in ("jsonl", "csv"):
        table = ("-o", tmp_path / f"table.{kind}", *(("--pictures", tmp_path / "masks") if kind == "jsonl" else ()))
        done = run_with_torch("predict", bundle.path, tmp_path / "pictures", *table)
        assert done.returncode == 3, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert rows[0]["labels"] == ["grass", "sky"]
    assert rows[0]["pixels"] == [SPLIT * HIGH, (WIDE - SPLIT) * HIGH]
    assert decoded(rows[0]["masks"][0], (HIGH, WIDE)).sum() == SPLIT * HIGH
    assert rows[1]["labels"] == ["background"]
    with Image.open(rows[0]["file"]) as image:
        assert np.array_equal(np.asarray(image)[0], np.where(np.arange(WIDE) < SPLIT, 1, 2))
    assert [Path(row["file"]).name[:6] for row in rows[:2]] == ["a.png.", "b.png."]
    assert rows[2]["file"] is None
    assert all(tmp_path / "masks" in Path(row["file"]).parents for row in rows[:2])
    lines = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert json.loads(lines[0]["masks"]) == rows[0]["masks"]
    assert lines[2]["code"] == "unsupported_image_format"


def test_hugging_faces_client_gets_its_own_masks(serve: Serve, bundle: Bundle) -> None:
    with serve(bundle.path, "--replicas", "1", "--platform", "huggingface", "--host", "127.0.0.1") as server:
        grass, sky = server.hugging_face().image_segmentation(PICTURE)
    assert (grass.label, sky.label) == ("grass", "sky")
    assert grass.score == pytest.approx(1, abs=1e-6)
    mask: Any = grass.mask
    assert (mask.size, np.count_nonzero(np.asarray(mask))) == ((WIDE, HIGH), SPLIT * HIGH)
