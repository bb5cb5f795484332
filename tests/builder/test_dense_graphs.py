"""ONNX graphs that answer for every pixel: served as classes or as a picture, with free sides and with fixed ones."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import flambeau
from flambeau.bundle.storage import Bundle, DenseConfig
from flambeau.errors import SourceError
from flambeau.pipelines import dense
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.request import Note
from flambeau.types import ImageToImage, SemanticSegmentation
from tests.support.photographs import encoded, photograph

pytestmark = [pytest.mark.usefixtures("warm_builds"), pytest.mark.timeout(300)]

CLASSES = 4
FIXED = (48, 64)


def graph(
    file: Path, sides: tuple[str | int, str | int], *, channels: int = 3, planes: int = CLASSES, ends: str = ""
) -> Path:
    """One that halves the sides and doubles them again, so that they have to be even."""
    numbers = np.random.default_rng(3)
    held = {
        "down": numbers.standard_normal((8, channels, 2, 2), np.float32),
        "up": numbers.standard_normal((8, planes, 2, 2), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "down"], ["small"], strides=[2, 2]),
        helper.make_node("Relu", ["small"], ["kept"]),
        helper.make_node("ConvTranspose", ["kept", "up"], ["whole" if ends else "y"], strides=[2, 2]),
        *([helper.make_node(ends, ["whole"], ["y"])] if ends else []),
    ]
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes, "net", [value("x", TensorProto.FLOAT, ["n", channels, *sides])],
        [value("y", TensorProto.FLOAT, ["n", planes, *sides])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return file


def build(source: Path, notes: list[str] | None = None, **options: Any) -> Bundle:
    def hear(event: object) -> None:
        if isinstance(event, Note) and notes is not None:
            notes.append(event.text)

    return build_cache.open_source(SourceOptions(source=str(source), **options), progress=hear)


def own(file: Path, data: bytes, config: DenseConfig) -> np.ndarray:
    """What the graph itself answers to a picture: (planes, height, width)."""
    with Image.open(io.BytesIO(data)) as image:
        pixels = dense.prepared(image.convert("RGB"), config)
    [found] = onnxruntime.InferenceSession(file).run(None, {"x": pixels})
    answer: np.ndarray = found[0]
    return answer


def picture(width: int, height: int) -> bytes:
    return encoded(photograph("chelsea").resize((width, height)))


def test_classes_of_a_graph_with_free_sides(tmp_path: Path, cache: Path) -> None:
    file = graph(tmp_path / "net.onnx", ("h", "w"))
    notes: list[str] = []
    made = build(file, notes, task="semantic-segmentation")
    config = made.manifest.pipeline
    assert config == DenseConfig(multiple=2, classes=CLASSES)
    assert (made.manifest.task, made.manifest.engine) == ("semantic-segmentation", "onnxruntime")
    said = "\n".join(notes)
    assert "multiples of 2" in said
    assert f"each pixel gets the class with the largest of its {CLASSES} numbers" in said
    with flambeau.load(made.path) as model:
        for width, height in ((80, 60), (61, 43), (1, 1)):
            answer = model.predict(picture(width, height))
            assert isinstance(answer, SemanticSegmentation)
            expected = own(file, picture(width, height), config).argmax(axis=0)
            assert np.array_equal(answer.labels, expected[:height, :width])


@pytest.mark.long
def test_classes_of_a_graph_with_fixed_sides(tmp_path: Path, cache: Path) -> None:
    file = graph(tmp_path / "net.onnx", FIXED)
    notes: list[str] = []
    made = build(file, notes, task="semantic-segmentation")
    config = made.manifest.pipeline
    assert config == DenseConfig(fixed=FIXED, classes=CLASSES)
    assert "takes images of 64 × 48 pixels and no others: every image is stretched" in "\n".join(notes)
    assert str(config).startswith("stretched to 64 × 48")
    with flambeau.load(made.path) as model:
        exact = model.predict(picture(64, 48))
        assert isinstance(exact, SemanticSegmentation)
        assert np.array_equal(exact.labels, own(file, picture(64, 48), config).argmax(axis=0))
        for width, height in ((20, 300), (2000, 1500)):
            answer = model.predict(picture(width, height))
            assert isinstance(answer, SemanticSegmentation)
            assert answer.labels.shape == (height, width)
    with pytest.raises(SourceError, match="--resize has no effect"):
        build(file, task="semantic-segmentation", resize=100)


@pytest.mark.long
def test_a_picture_of_a_graph(tmp_path: Path, cache: Path) -> None:
    for sides in (("h", "w"), FIXED):
        file = graph(tmp_path / f"{sides[0]}.onnx", sides, planes=3, ends="Sigmoid")
        made = build(file, task="image-to-image")
        config = made.manifest.pipeline
        assert isinstance(config, DenseConfig)
        assert (config.levels, config.fixed) == ((0.0, 1.0), None if sides[0] == "h" else FIXED)
        with flambeau.load(made.path) as model:
            answer = model.predict(picture(64, 48))
            assert isinstance(answer, ImageToImage)
            expected = own(file, picture(64, 48), config).transpose(1, 2, 0) * 255
            assert np.abs(answer.pixels - expected).max() <= 0.51
            large = model.predict(picture(300, 200))
            assert isinstance(large, ImageToImage)
            assert (large.width, large.height) == (300, 200)


@pytest.mark.parametrize("sides", [("h", "w"), (64, 64)])
def test_what_its_numbers_are_is_asked(tmp_path: Path, cache: Path, sides: tuple[str | int, str | int]) -> None:
    with pytest.raises(SourceError, match=r"4 numbers for each pixel, and a picture has 1 or 3: .* scores of classes$"):
        build(graph(tmp_path / "net.onnx", sides), crop=64 if sides[0] == "h" else None)


@pytest.mark.long
def test_what_is_no_map_of_an_image_is_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(SourceError, match=r"takes x float32 \[N, 2, .* one image of 1 or 3 channels"):
        build(graph(tmp_path / "two.onnx", FIXED, channels=2), task="semantic-segmentation")
    with pytest.raises(SourceError, match=r"one side of the images .* is 64 pixels long, and the other is free"):
        build(graph(tmp_path / "half.onnx", ("h", 64)), task="semantic-segmentation")
    value, float_ = helper.make_tensor_value_info, TensorProto.FLOAT
    pooled = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["y"])], "pool", [value("x", float_, ["n", 3, *FIXED])],
        [value("y", float_, ["n", 3, 1, 1])],
    )  # fmt: skip
    onnx.save(helper.make_model(pooled, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "p.onnx")
    with pytest.raises(SourceError, match="which is no map of its pixels"):
        build(tmp_path / "p.onnx", task="image-to-image")


def test_a_graph_that_has_chosen_the_classes_itself_is_refused(tmp_path: Path, cache: Path) -> None:
    """Their numbers as floats look like the scores of one class: all pixels from the second class on would be of it."""
    file = graph(tmp_path / "net.onnx", ("h", "w"))
    model = onnx.load(file)
    model.graph.node.append(helper.make_node("ArgMax", ["y"], ["best"], axis=1))
    model.graph.node.append(helper.make_node("Cast", ["best"], ["map"], to=TensorProto.FLOAT))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, ["n", 1, "h", "w"]))
    onnx.save(model, file)
    with pytest.raises(SourceError, match=r"net answers with whole numbers from 0 to 3, one for each pixel.*ArgMax"):
        build(file, task="semantic-segmentation")
