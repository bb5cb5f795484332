"""The examples of the OpenAPI document, sent as they stand: people press the button under them, and get an answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import detector_bundles, picture_bundles, segmenter_bundles, task_models, tensor_bundles
from tests.support.server import Serve, ServerProcess, answer_examples

ROUTES = {"/predict/{}/1", "/predictions/{}", "/v1/models/{}:predict", "/v2/models/{}/infer"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A model of each task over pictures and numbers; texts and sounds are with their own builds."""
    folder = tmp_path_factory.mktemp("models")
    for task in detector_bundles.KINDS:
        detector_bundles.detector(folder / task, task=task)
    segmenter_bundles.segmenter(folder / "segmenter")
    picture_bundles.negative(folder / "negative")
    for make in (
        task_models.softmax_inside,
        task_models.sigmoid_outside,
        task_models.embedding,
        task_models.regression,
    ):
        make(folder / make.__name__)
    tensor_bundles.several(folder / "several")
    tensor_bundles.doubling(folder / "double")
    tensor_bundles.looking_up(folder / "places")
    return folder, {each.name for each in folder.iterdir()}


@pytest.fixture(scope="module")
def server(serve: Serve, repository: tuple[Path, set[str]]) -> Iterator[ServerProcess]:
    with serve(repository[0], "--replicas", "1", "--runner", "threads") as running:
        yield running


def test_every_example_is_answered(server: ServerProcess, repository: tuple[Path, set[str]]) -> None:
    assert len(repository[1]) > 8
    shown = answer_examples(server)
    assert {route.format(name) for route in ROUTES for name in repository[1]} <= shown


def test_a_number_without_an_example_is_shown_as_zero(server: ServerProcess) -> None:
    """Pages make an example of the least number that a schema allows, and that is -3.4e38."""
    paths: dict[str, Any] = server.get("/openapi.json").json()["paths"]
    schema = paths["/predict/double/1"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    row = schema["properties"]["input"]["anyOf"][0]
    assert row["items"]["examples"] == [0.0]
