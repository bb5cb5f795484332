"""Networks of one's own that do not compute every number: masks, lengths, categories. Each answers as PyTorch does, or
refuses what PyTorch refuses."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.errors import RequestError, SourceError
from flambeau.types import TensorSpec
from tests.support.number_networks import saved
from tests.support.tensor_bundles import save

pytestmark = pytest.mark.usefixtures("warm_builds")

Built = Callable[..., Bundle]
SERIES = [[1.0, 2.0], [3.0, -4.0], [0.5, 6.0], [-1.0, 0.25]]


def alike(made: Bundle, network: torch.nn.Module, *items: Any) -> None:
    """Each item has the answer of the network alone, and that of all of them together is theirs."""
    several = isinstance(items[0], dict)
    with torch.inference_mode():
        expected = torch.cat(
            [network(*map(torch.tensor, ([each] for each in (item.values() if several else [item])))) for item in items]
        )
    together = {name: [item[name] for item in items] for name in items[0]} if several else list(items)
    with flambeau.load(made.path, allow_code=True) as model:
        np.testing.assert_allclose([model.predict(item) for item in items], expected, atol=1e-5)
        np.testing.assert_allclose(model.predict(together), expected, atol=1e-5)


# Places that PyTorch refuses, and a graph would count from the end.


@pytest.mark.parametrize("kind", ["weights", pytest.param("script", marks=pytest.mark.long)])
def test_no_operation_of_a_graph_counts_places_from_the_end(
    built: Built, cache: Path, tmp_path: Path, kind: str
) -> None:
    network, given = saved(tmp_path, "Places")
    if kind == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(network).save(tmp_path / "script.pt")
        given = {"source": tmp_path / "script.pt", "allow_code": True}
    made = built(**given, input_shape=(5,), input_dtype="int64")
    assert made.manifest.engine == "onnxruntime"
    alike(made, network, [-1, -1, -1, -1, -1], [3, 3, 3, 3, 3], [0, 1, 2, 3, -1])
    with flambeau.load(made.path, allow_code=True) as model, torch.inference_mode():
        for column in range(5):
            for place in (-2, 4):
                row = [0, 0, 0, 0, 0]
                row[column] = place
                try:
                    expected = network(torch.tensor([row]))[0].tolist()
                except (RuntimeError, IndexError):
                    with pytest.raises(RequestError):
                        model.predict(row)
                else:
                    assert model.predict(row) == pytest.approx(expected, abs=1e-5)


# Categories among decimal numbers.


@pytest.mark.long
@pytest.mark.parametrize("kind", ["weights", "script", "pt2"])
def test_categories_among_decimal_numbers_are_looked_up(
    built: Built, notes: list[str], cache: Path, tmp_path: Path, kind: str
) -> None:
    network, given = saved(tmp_path, "Mixed")
    if kind == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(network).save(tmp_path / "script.pt")
        given = {"source": tmp_path / "script.pt", "allow_code": True}
    elif kind == "pt2":
        axes = ({0: torch.export.Dim.DYNAMIC},)
        torch.export.save(torch.export.export(network, (torch.ones(2, 5),), dynamic_shapes=axes), tmp_path / "net.pt2")
        given = {"source": tmp_path / "net.pt2", "allow_code": True}
    made = built(**given, input_shape=(5,))
    assert "of a row of input, number 1 (7 places) and number 3 (4 places) are looked up in tables" in notes
    alike(made, network, [6.0, -1.5, 3.0, 0.5, 2.0], [0.0, 7.5, 0.0, -3.0, 9.0], [2.75, 0.0, 1.25, 1.0, 1.0])
    with flambeau.load(made.path, allow_code=True) as model:
        for place, number in ((0, -1.0), (0, 7.0), (2, 4.0)):
            row = [1.0] * 5
            row[place] = number
            with pytest.raises(RequestError, match=f"{number} as number {place + 1} of a row, and the network's table"):
                model.predict(row)


@pytest.mark.parametrize(
    "spec", [TensorSpec("x", "float32", (2,), tables=(3, 0)), TensorSpec("x", "float32", (2,), below=3)]
)
def test_what_is_no_number_is_no_place_in_a_table(spec: TensorSpec) -> None:
    assert spec.outside(np.array([[np.nan, 1]], np.float32)).startswith("nan")
    assert not spec.outside(np.array([[2, 1]], np.float32))


# Masks and lengths.


@pytest.mark.parametrize("name", [pytest.param("Tokens", marks=pytest.mark.long), "Added"])
def test_a_mask_that_has_no_answer_for_other_numbers_is_tried_with_0_and_1(
    built: Built, cache: Path, tmp_path: Path, name: str
) -> None:
    network, given = saved(tmp_path, name)
    made = built(**given, input_shape={"tokens": ("n",), "mask": ("n",)})
    assert [(spec.dtype, spec.known) for spec in made.manifest.inputs] == [("int64", ()), ("float32", (1, 0))]
    items = [{"tokens": [3, 19, 0, 7], "mask": mask} for mask in ([1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 0])]
    alike(made, network, *items)


@pytest.mark.long
@pytest.mark.parametrize("name", ["LastOf", "Packed"])
def test_a_length_is_tried_with_one_and_that_of_nothing_has_no_answer(
    built: Built, notes: list[str], cache: Path, tmp_path: Path, name: str
) -> None:
    network, given = saved(tmp_path, name)
    made = built(**given, input_shape={"steps": ("n", 2), "length": ()})
    assert any("length is tried with 1, for the network does not compute every number" in note for note in notes)
    alike(made, network, *({"steps": SERIES, "length": length} for length in (4, 1, 3)))
    with flambeau.load(made.path, allow_code=True) as model:
        for length in (0, 5):
            with pytest.raises(RequestError):
                model.predict({"steps": SERIES, "length": length})


@pytest.mark.long
def test_tokens_that_are_all_padding_are_no_example(built: Built, cache: Path, tmp_path: Path) -> None:
    network, given = saved(tmp_path, "Padded")
    made = built(**given)
    assert [(spec.least, spec.known) for spec in made.manifest.inputs] == [(1, (1, 0))]
    alike(made, network, [3, 19, 0, 0], [7, 7, 7, 1], [1, 0, 0, 0])


def test_a_flag_of_true_and_false_beside_a_category_is_asked_about(built: Built, cache: Path, tmp_path: Path) -> None:
    _, given = saved(tmp_path, "Flagged")
    with pytest.raises(SourceError, match=r"takes flag as true and false, .* begin with flag = flag\.bool\(\)"):
        built(**given, input_shape={"kind": (), "flag": (), "rows": (2,)})


def test_a_network_that_computes_no_length_says_why(built: Built, cache: Path, tmp_path: Path) -> None:
    _, given = saved(tmp_path, "Offsets")
    with pytest.raises(SourceError, match=r"free axes are 8 to 4096 long \(if input is 2D, .*, or a PythonModel"):
        built(**given, input_shape={"tokens": ("n",), "offsets": ()})


@pytest.mark.parametrize("counts", [1, pytest.param(0, marks=pytest.mark.long)])
def test_a_mask_of_an_onnx_graph_is_tried_as_a_mask(
    built: Built, notes: list[str], cache: Path, tmp_path: Path, counts: int
) -> None:
    """The mask is added to the scores, where it does not count as `counts`, as the least number that there is."""
    least = float(np.finfo(np.float32).min)
    nodes = [
        helper.make_node("Sub", ["one", "mask"] if counts else ["mask", "none"], ["left"]),
        helper.make_node("Mul", ["left", "least"], ["bias"]),
        helper.make_node("Add", ["x", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=1),
        helper.make_node("Mul", ["shares", "x"], ["parts"]),
        helper.make_node("ReduceSum", ["parts", "axis"], ["y"], keepdims=0),
    ]
    numbers = {"one": np.float32(1), "none": np.float32(0), "least": np.float32(least), "axis": np.array([1], np.int64)}
    file = save(tmp_path / "net.onnx", nodes, {"x": ["n", "t"], "mask": ["n", "t"]}, {"y": ["n"]}, **numbers)
    made = built(file)
    assert "mask is tried with 1, as masks are" in notes  # of all left out, too, there is an answer here
    rows, kept = np.array([[1, 2, 3], [4, 5, 6]], np.float32), np.array([[1, 1, 0], [0, 1, 1]], bool)
    weights = np.exp(rows) * kept
    with flambeau.load(made.path) as model:
        mask = (kept == bool(counts)).astype(int)
        found = model.predict({"x": rows.tolist(), "mask": mask.tolist()})
    np.testing.assert_allclose(found, (weights * rows).sum(1) / weights.sum(1), rtol=1e-4)
