"""A network that makes pictures over HTTP: PNG or JSON, large ones in tiles, the page, clients, files."""

import base64
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
from flambeau.types import ImageToImage
from tests.support import picture_bundles
from tests.support.photographs import encoded, photograph
from tests.support.server import Serve, ServerProcess
from tests.support.warm import run_with_torch

SMALL = photograph("coffee").resize((61, 42))
PICTURE = encoded(SMALL)
NEGATIVE = 255 - np.asarray(SMALL)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return picture_bundles.negative(tmp_path_factory.mktemp("negative") / "bundle", most_pixels=300_000)


@pytest.fixture(scope="module")
def server(serve: Serve, bundle: Bundle) -> Iterator[ServerProcess]:
    with serve(bundle.path, "--replicas", "1") as running:
        yield running


def opened(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def test_a_picture_in_json_and_as_a_file(server: ServerProcess) -> None:
    body = server.post(files={"file": PICTURE}).json()
    document = server.get("/openapi.json").json()
    answered = document["paths"]["/predict"]["post"]["responses"]["200"]["content"]
    assert "image/png" in answered
    jsonschema.validate({"components": document["components"], **answered["application/json"]["schema"]}, body)
    assert (body["width"], body["height"], body["range"]) == (61, 42, {"black": 0.0, "white": 1.0})
    assert np.array_equal(opened(base64.b64decode(body["picture"])), NEGATIVE)
    file = server.post(data=PICTURE, headers={"Accept": "image/png", "Content-Type": "image/png"})
    assert file.headers["Content-Type"] == "image/png"
    assert np.array_equal(opened(file.content), NEGATIVE)


def test_a_large_picture_is_made_in_tiles(server: ServerProcess) -> None:
    large = photograph("coffee").resize((901, 555))
    file = server.post(data=encoded(large), headers={"Accept": "image/png"})
    assert np.array_equal(opened(file.content), 255 - np.asarray(large))


def test_pictures_of_unlike_sizes_are_answered_as_each_alone(server: ServerProcess) -> None:
    pictures = [PICTURE, encoded(SMALL.resize((30, 90))), b"none", PICTURE]
    alone = [server.post(files={"file": each}).json() for each in pictures]
    together = server.post(files=[("file", each) for each in pictures]).json()["predictions"]
    for one, other in zip(alone, together, strict=True):
        assert {**one, "request_id": ""} == {**other, "request_id": ""}


@pytest.mark.parametrize("query", ["bits=12", "bits=", "bits=8&bits=8"])
def test_what_is_no_number_of_bits_is_refused(server: ServerProcess, query: str) -> None:
    assert server.post(f"/predict?{query}", files={"file": PICTURE}).json()["code"] == "bad_request"


def test_sixteen_bits_on_request(server: ServerProcess) -> None:
    file = server.post("/predict?bits=16", data=PICTURE, headers={"Accept": "image/png"}).content
    assert file[24] == 16


def test_the_page_has_the_picture_before_and_after(server: ServerProcess) -> None:
    page = server.post("/", files={"file": ("a.png", PICTURE)}).text
    assert "A picture of 61 × 42 pixels" in page
    assert 'class="mask" data-png="' in page
    assert "Before <input" in page
    assert 'download="picture.png"' in page


def test_clients_have_the_file(server: ServerProcess, bundle: Bundle) -> None:
    with flambeau.Client(server.url) as client:
        answer = client.predict(PICTURE)
        assert client.predict(PICTURE, bits=16).picture[24] == 16
    assert (answer.size, answer.top, answer.objects) == ((61, 42), (), ())
    assert np.array_equal(opened(answer.picture), NEGATIVE)
    with flambeau.load(bundle.path) as model:
        here = model.predict(PICTURE)
    assert isinstance(here, ImageToImage)
    assert np.array_equal(here.pixels, NEGATIVE)


def test_kserves_protocol_has_the_pixels_by_name(server: ServerProcess) -> None:
    tensor = {
        "name": "images", "datatype": "BYTES", "shape": [1], "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(PICTURE).decode()],
    }  # fmt: skip
    [found] = server.post("/v2/models/negative/infer", json={"inputs": [tensor]}).json()["outputs"]
    assert (found["name"], found["datatype"], found["shape"]) == ("picture", "UINT8", [1, 42, 61, 3])
    assert found["data"] == NEGATIVE.ravel().tolist()


@pytest.mark.long
def test_pictures_go_into_a_folder(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(PICTURE)
    refused = run_with_torch("predict", bundle.path, tmp_path / "in", "-o", tmp_path / "table.jsonl")
    assert (refused.returncode, "--pictures DIR" in refused.stderr) == (1, True)
    within = run_with_torch("predict", bundle.path, tmp_path / "in", "--pictures", tmp_path / "in" / "out")
    assert "lies below the input" in within.stderr
    done = run_with_torch(
        "predict", bundle.path, tmp_path / "in", "-o", tmp_path / "table.jsonl", "--pictures", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    [row] = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert (row["width"], row["height"]) == (61, 42)
    assert np.array_equal(opened(Path(row["file"]).read_bytes()), NEGATIVE)


def test_hugging_faces_client_gets_an_image(serve: Serve, tmp_path: Path) -> None:
    bundle = picture_bundles.negative(tmp_path / "bundle", enlarge=2, planes=1)
    with serve(bundle.path, "--replicas", "1", "--platform", "huggingface", "--host", "127.0.0.1") as server:
        made: Any = server.hugging_face().image_to_image(PICTURE)
    assert (made.size, made.mode) == ((122, 84), "L")
    assert np.asarray(made).min() == 0
    assert np.asarray(made).max() == 255
