"""Networks of one's own over numbers, as training scripts leave them: answered as PyTorch answers, or asked about."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.errors import SourceError

pytestmark = pytest.mark.usefixtures("warm_builds")

CODE = """
import torch
from torch import nn


class Tagger(nn.Module):  # (steps, rows, 2), as an LSTM takes it unless batch_first=True is said
    def __init__(self):
        super().__init__()
        self.lstm, self.last = nn.LSTM(2, 4), nn.Linear(4, 3)

    def forward(self, steps):
        return self.last(self.lstm(steps)[0])


class Last(Tagger):
    def forward(self, steps):
        return super().forward(steps)[-1]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.TransformerEncoderLayer(4, 2, 8, 0.0), nn.Linear(4, 3)

    def forward(self, steps):
        return self.last(self.layer(steps))


class OverTheRows(nn.Module):  # its rows depend on each other, and so do its steps
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, steps):
        found = self.layer(steps)
        return (found - found.mean(0)) * found.mean(1, keepdim=True)
"""
STEPS = [[1.0, 2.0], [3.0, -4.0], [0.5, 6.0]]


def saved(
    folder: Path, name: str, state: dict[str, Any] | None = None, code: str = ""
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of that name with random weights, and the source with the options that name it."""
    (folder / "net.py").write_text(CODE + code)
    within: dict[str, Any] = {}
    exec(CODE + code, within)  # as `net.py` is imported by a build
    torch.manual_seed(1)
    network: nn.Module = within[name]().eval()
    torch.save(network.state_dict() if state is None else state, folder / "saved.pth")
    return network, {"source": folder / "saved.pth", "arch": f"{folder / 'net.py'}:{name}", "allow_code": True}


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
