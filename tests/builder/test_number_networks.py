"""Networks of one's own over numbers, as training scripts leave them: answered as PyTorch answers, or asked about."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.errors import RequestError, SourceError
from tests.networks import number_nets

pytestmark = pytest.mark.usefixtures("warm_builds")

NETWORKS = Path(number_nets.__file__)
STEPS = [[1.0, 2.0], [3.0, -4.0], [0.5, 6.0]]


def saved(
    folder: Path, name: str, state: dict[str, Any] | None = None, code: str = ""
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of that name with random weights, and the source with the options that name it.

    `code` is added to that of the networks. `state` is saved in the place of the weights.
    """
    file = folder / "net.py"
    file.write_text(NETWORKS.read_text() + code)
    torch.manual_seed(1)
    network = getattr(number_nets, name)().eval() if hasattr(number_nets, name) else nn.Identity()
    torch.save(network.state_dict() if state is None else state, folder / "saved.pth")
    return network, {"source": folder / "saved.pth", "arch": f"{file}:{name}", "allow_code": True}


def answers(made: Bundle, item: Any) -> Any:
    with flambeau.load(made.path, allow_code=True) as model:
        return model.predict(item)


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
    assert "user and item take whole numbers, for they are looked up in tables" in notes
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


# Masks.


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


# What a file keeps beside its weights.


@pytest.mark.parametrize(
    "beside",
    [
        {"x_mean": torch.zeros(3), "x_std": torch.ones(3)},
        {"scaler": {"mean_": [1.0, 2.0, 3.0], "scale_": [1.0, 1.0, 2.0]}},
        {"data": {"min": [0, 0, 0], "max": [1, 9, 9]}},
    ],
)
def test_constants_beside_the_weights_are_told(
    built: Callable[..., Bundle], notes: list[str], cache: Path, tmp_path: Path, beside: dict[str, Any]
) -> None:
    state = {"state_dict": number_nets.Decides().state_dict(), "epoch": 3, "lr_min": 0.1, "lr_max": 1.0, **beside}
    _, given = saved(tmp_path, "Decides", state=state)
    built(**given, input_shape=(3,))
    [told] = [note for note in notes if "beside the weights" in note]
    [(key, value)] = [*beside.items()][:1]
    assert (f"{key}.{next(iter(value))}" if isinstance(value, dict) else key) in told
    assert "are not applied" in told
    assert "lr_min" not in told


IMAGES = """

class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.line = nn.Conv2d(3, 4, 3, stride=8), nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))

    def forward(self, images):
        return self.line(self.conv(images).relu().mean((2, 3)))
"""


def images(folder: Path, beside: dict[str, Any]) -> dict[str, Any]:
    state = {
        "conv.weight": torch.randn(4, 3, 3, 3), "conv.bias": torch.zeros(4), "line.weight": torch.randn(3, 4),
        "line.bias": torch.zeros(3), "mean": torch.zeros(1), "std": torch.ones(1),
    }  # fmt: skip
    _, given = saved(folder, "Images", state={"model": state, **beside}, code=IMAGES)
    return {**given, "input_shape": (3, 32, 32)}


@pytest.mark.parametrize(
    ("beside", "asked"),
    [
        ({"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}, r"say --mean 0.5,0.5,0.5 and --std 0.25,0.25,0.25 if"),
        (
            {"config": {"mean": [127.5], "std": [51.0]}},
            r"config.mean and config.std .* --mean 0.5,0.5,0.5 and --std 0.2,",
        ),
        ({"img_mean": torch.zeros(3), "img_std": torch.ones(3)}, r"img_mean and img_std .* say --mean and --std"),
    ],
)
def test_constants_of_images_are_asked_about(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path, beside: dict[str, Any], asked: str
) -> None:
    given = images(tmp_path, beside)
    with pytest.raises(SourceError, match=asked):
        built(**given)
    assert built(**given, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).manifest.task == "classification"


def test_the_constants_that_would_be_taken_anyway_are_not_asked_about(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    beside = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "acc_mean": 0.9, "acc_std": 0.1}
    assert built(**images(tmp_path, beside)).manifest.task == "classification"


def test_weights_of_another_size_name_the_arguments_of_the_class(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    made = "    def __init__(self, hidden=3, bias=True):\n        super().__init__(hidden, 2, bias)\n"
    code = f"\n\nclass Wide(nn.Linear):\n{made}"
    _, given = saved(tmp_path, "Wide", state={"weight": torch.zeros(2, 5), "bias": torch.zeros(2)}, code=code)
    told = r"do not fit Wide: 1 of another shape: .*--arch-args, such as {\"hidden\": \"...\"}.* takes hidden, bias"
    with pytest.raises(SourceError, match=told):
        built(**given)
    assert built(**given, arch_args={"hidden": 5}, input_shape=(5,)).manifest.outputs[0].shape == (2,)


def test_weights_of_float64_are_told(
    built: Callable[..., Bundle], notes: list[str], cache: Path, tmp_path: Path
) -> None:
    state = {key: each.double() for key, each in number_nets.Decides().state_dict().items()}
    _, given = saved(tmp_path, "Decides", state=state)
    built(**given, input_shape=(3,))
    assert any("the weights are float64, and Decides computes in float32" in note for note in notes)


def test_what_forward_does_without_is_told(
    built: Callable[..., Bundle], notes: list[str], cache: Path, tmp_path: Path
) -> None:
    line = "    def forward(self, rows, mask=None):\n        return super().forward(rows)\n"
    code = f"\n\nclass Masked(OverTheRows):\n{line}"
    _, given = saved(tmp_path, "Masked", state=dict(number_nets.OverTheRows().state_dict()), code=code)
    built(**given, input_shape=(3, 2))
    assert any("forward() of Masked is called without mask" in note for note in notes)
    with pytest.raises(SourceError, match=r"names mask, which Masked does without .* whose forward.. needs it"):
        built(**given, input_shape={"rows": (3, 2), "mask": (3,)})
