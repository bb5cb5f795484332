"""Networks of one's own over numbers, as training scripts leave them: answered as PyTorch answers, or asked about."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.errors import RequestError, SourceError
from tests.networks import number_nets
from tests.support.number_networks import answers, saved
from tests.support.warm import run_with_torch

pytestmark = pytest.mark.usefixtures("warm_builds")

STEPS = [[1.0, 2.0], [3.0, -4.0], [0.5, 6.0]]


# Rows along the second axis.


@pytest.mark.parametrize(
    ("name", "shape"), [("Tagger", ("steps", 2)), ("Tagger", (3, 2)), ("Last", ("steps", 2)), ("Attention", (5, 4))]
)
def test_a_network_that_takes_the_sequence_first_is_asked_about(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path, name: str, shape: tuple[Any, ...]
) -> None:
    _, given = saved(tmp_path, name)
    with pytest.raises(SourceError, match=rf"takes the second axis .* class Turned\({name}\): def forward\(self, inp"):
        built(**given, input_shape=shape)


@pytest.mark.long
@pytest.mark.parametrize(("name", "line"), [("Tagger", "(0, 1)).transpose(0, 1)"), ("Last", "(0, 1))")])
def test_the_class_that_the_question_proposes_answers_as_pytorch_does(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path, name: str, line: str
) -> None:
    of_its_own, given = saved(tmp_path, name)
    with pytest.raises(SourceError) as told:
        built(**given, input_shape=("steps", 2))
    proposed = f"return super().forward(input.transpose{line}"
    assert f"{proposed};" in str(told.value)
    code = f"\n\nclass Turned({name}):\n    def forward(self, input):\n        {proposed}\n"
    _, given = saved(tmp_path, "Turned", state=dict(of_its_own.state_dict()), code=code)
    with torch.inference_mode():
        expected = of_its_own(torch.tensor(STEPS)[:, None])
    expected = expected[:, 0] if name == "Tagger" else expected[0]
    found = answers(built(**given, input_shape=("steps", 2)), STEPS)
    assert torch.allclose(torch.tensor(found), expected, atol=1e-5)


def test_rows_that_depend_on_each_other_otherwise_are_computed_one_at_a_time(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    _, given = saved(tmp_path, "OverTheRows")
    assert built(**given, input_shape=(3, 2)).manifest.one_row is not None


# Decisions by the numbers of a whole batch.


@pytest.mark.parametrize("source", ["saved.pth", "script.pt", "graph.onnx"])
def test_no_row_decides_for_the_others_of_its_batch(
    built: Callable[..., Bundle], notes: list[str], cache: Path, tmp_path: Path, source: str
) -> None:
    network, given = saved(tmp_path, "Decides")
    scripted = torch.jit.script(network)
    if source == "script.pt":
        scripted.save(tmp_path / source)
        given = {"source": tmp_path / source, "allow_code": True, "input_shape": (3,)}
    elif source == "graph.onnx":
        axes = {"rows": {0: "n"}, "found": {0: "n"}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # this exporter says that it is the older one
            torch.onnx.export(
                scripted, (torch.zeros(2, 3),), tmp_path / source,
                dynamo=False, input_names=["rows"], output_names=["found"], dynamic_axes=axes,
            )  # fmt: skip
        given = {"source": tmp_path / source}
    made = built(**given)
    small, large = [1.0, 2.0, 3.0], [200.0, 2.0, 3.0]
    with torch.inference_mode():
        expected = torch.cat([network(torch.tensor([row])) for row in (small, large)])
    assert torch.allclose(torch.tensor(answers(made, [small, large])), expected, atol=1e-4)
    assert any("one row at a time" in note and "decides by its numbers" in note for note in notes)


def test_a_parameter_that_python_reads_decides_nothing(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    line = "return self.last(steps) * self.last.bias[0].item()"
    code = f"\n\nclass Item(Tagger):\n    def forward(self, steps):\n        {line}\n"
    _, given = saved(tmp_path, "Item", state=dict(number_nets.Tagger().state_dict()), code=code)
    assert built(**given, input_shape=(4,)).manifest.one_row is None


# Numbers that are places in tables.


def refused(model: Any, item: Any) -> str:
    with pytest.raises(RequestError) as told:
        model.predict(item)
    assert told.value.code == "invalid_tensor"
    return told.value.message


@pytest.mark.long
def test_each_column_has_the_places_of_its_own_table(built: Callable[..., Bundle], cache: Path, tmp_path: Path) -> None:
    network, given = saved(tmp_path, "Columns")
    made = built(**given, input_shape=(3,), input_dtype="int64")
    with flambeau.load(made.path, allow_code=True) as model, torch.inference_mode():
        for row in ([9, 1999, 4], [0, -3, 0]):
            assert model.predict(row) == pytest.approx(network(torch.tensor([row]))[0].tolist(), abs=1e-5)
        assert "7 as number 3 of a row, and the network's table has the places 0 to 4" in refused(model, [1, 1999, 7])
        assert "has -1 as number 1 of a row" in refused(model, [[1, 2, 3], [-1, 2, 3]])


def test_of_several_inputs_each_has_its_dtype_and_its_table(
    built: Callable[..., Bundle], notes: list[str], cache: Path, tmp_path: Path
) -> None:
    network, given = saved(tmp_path, "Rating")
    made = built(**given, input_shape={"user": (), "item": (), "known": (2,)})
    assert [spec.dtype for spec in made.manifest.inputs] == ["int64", "int64", "float32"]
    assert "user and item take whole numbers, for Rating computes no others there" in notes
    with flambeau.load(made.path, allow_code=True) as model, torch.inference_mode():
        expected = network(torch.tensor([9]), torch.tensor([19]), torch.tensor([[0.5, -1.5]]))[0].tolist()
        assert model.predict({"user": 9, "item": 19, "known": [0.5, -1.5]}) == pytest.approx(expected, abs=1e-5)
        assert "'user' must be" in refused(model, {"user": -1, "item": 3, "known": [1, 1]})
        assert "places 0 to 19" in refused(model, {"user": 1, "item": 20, "known": [1, 1]})


def test_a_graph_counts_no_place_from_the_end_of_its_table(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    network, given = saved(tmp_path, "Shifted")
    made = built(**given, input_shape=(1,), input_dtype="int64")
    assert made.manifest.engine == "onnxruntime"
    with flambeau.load(made.path, allow_code=True) as model, torch.inference_mode():
        for row in ([-1], [3]):
            assert model.predict(row) == pytest.approx(network(torch.tensor([row]))[0].tolist(), abs=1e-6)
        with pytest.raises(RequestError, match="out of data bounds"):
            model.predict([-2])


@pytest.mark.parametrize("kind", ["scripted", "traced", "frozen"])
def test_the_tables_of_a_script_have_their_places(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path, kind: str
) -> None:
    network = number_nets.Columns().eval()
    made = (
        torch.jit.trace(network, torch.zeros(2, 3, dtype=torch.int64))
        if kind == "traced"
        else torch.jit.script(network)
    )
    (torch.jit.freeze(made) if kind == "frozen" else made).save(tmp_path / "script.pt")
    given = {"source": tmp_path / "script.pt", "allow_code": True, "input_shape": (3,), "input_dtype": "int64"}
    with flambeau.load(built(**given).path, allow_code=True) as model, torch.inference_mode():
        row = [9, -1999, 4] if kind != "frozen" else [4, 1, 4]
        assert model.predict(row) == pytest.approx(network(torch.tensor([row]))[0].tolist(), abs=1e-5)
        assert "has -1" in refused(model, [-1, 1, 1])


# Masks.


@pytest.mark.long
@pytest.mark.parametrize(("name", "told"), [("Masked", "otherwise where mask is true"), ("Filled", "mask as true and")])
def test_a_mask_of_true_and_false_is_asked_about_and_the_class_that_is_proposed_takes_it(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path, name: str, told: str
) -> None:
    network, given = saved(tmp_path, name)
    shapes = {"steps": ("n", 4), "mask": ("n",)}
    with pytest.raises(SourceError, match=rf"{told} .*mask = mask\.bool\(\)"):
        built(**given, input_shape=shapes)
    line = "    def forward(self, steps, mask):\n        return super().forward(steps, mask.bool())\n"
    _, given = saved(tmp_path, "Said", state=dict(network.state_dict()), code=f"\n\nclass Said({name}):\n{line}")
    steps, mask = torch.randn(1, 3, 4), torch.tensor([[True, True, False]])
    with torch.inference_mode():
        expected = network(steps, mask)[0]
    found = answers(built(**given, input_shape=shapes), {"steps": steps[0].tolist(), "mask": [1, 1, 0]})
    assert torch.allclose(torch.tensor(found), expected, atol=1e-5)


def test_numbers_that_may_be_true_and_false_as_well_are_not_asked_about(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    line = "    def forward(self, steps, weight):\n        return super().forward(steps * weight[..., None])\n"
    code = f"\n\nclass Weighted(OverTheRows):\n{line}"
    _, given = saved(tmp_path, "Weighted", state=dict(number_nets.OverTheRows().state_dict()), code=code)
    assert len(built(**given, input_shape={"steps": (3, 2), "weight": (3,)}).manifest.inputs) == 2


@pytest.mark.long
def test_a_line_of_csv_is_not_for_several_inputs(built: Callable[..., Bundle], cache: Path, tmp_path: Path) -> None:
    _, given = saved(tmp_path, "Rating")
    made = built(**given, input_shape={"user": (), "item": (), "known": (2,)})
    (tmp_path / "in.csv").write_text("user,item,known\n1,2,3\n")
    done = run_with_torch("predict", made.path, tmp_path / "in.csv")
    assert done.returncode == 1
    assert "takes user, item, known by their names, and a line of CSV is one list of numbers: give it" in done.stderr
    (tmp_path / "in.jsonl").write_text('{"user": 1, "item": 2, "known": [3, 4]}\n')
    assert run_with_torch("predict", made.path, tmp_path / "in.jsonl").returncode == 0
