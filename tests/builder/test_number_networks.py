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
from flambeau.errors import SourceError
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
