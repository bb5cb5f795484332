"""What a checkpoint says its network was made with, and the weights do not show: used, or asked about."""

import argparse
import json
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
from torch import nn


class Net(nn.Module):
    def __init__(self, hidden=8, activation="relu", classes=3, lr=0.1):
        super().__init__()
        self.first, self.last = nn.Linear(4, hidden), nn.Linear(hidden, classes)
        self.activation = {"relu": nn.ReLU, "gelu": nn.GELU}[activation]()

    def forward(self, row):
        return self.last(self.activation(self.first(row)))


class Lit(Net):
    @classmethod
    def load_from_checkpoint(cls, path):
        raise NotImplementedError


class Together(nn.Module):
    def __init__(self, settings):
        super().__init__()
        self.net = Net(**settings)

    def forward(self, row):
        return self.net(row)

    load_from_checkpoint = Lit.load_from_checkpoint
"""
STATED = {"hidden": 8, "activation": "gelu"}
ROW = [1.0, -2.0, 3.0, 0.5]


def weights(prefix: str = "") -> tuple[dict[str, torch.Tensor], list[float]]:
    """Those of a `Net` with a GELU, and its answer to the row."""
    torch.manual_seed(1)
    first, last = nn.Linear(4, 8), nn.Linear(8, 3)
    layers = (("first", first), ("last", last))
    found = {f"{prefix}{name}.{key}": each for name, layer in layers for key, each in layer.state_dict().items()}
    with torch.inference_mode():
        answer: list[float] = last(nn.functional.gelu(first(torch.tensor([ROW]))))[0].tolist()
    return found, answer


def saved(folder: Path, contents: Any, name: str) -> dict[str, Any]:
    """The source and the options that name the class."""
    (folder / "net.py").write_text(CODE)
    torch.save(contents, folder / "saved.ckpt")
    return {"source": folder / "saved.ckpt", "arch": f"{folder / 'net.py'}:{name}", "allow_code": True}


def answers(made: Bundle) -> Any:
    with flambeau.load(made.path, allow_code=True) as model:
        return model.predict(ROW)


@pytest.mark.parametrize(
    ("name", "prefix", "beside"),
    [
        ("Lit", "", {"hyper_parameters": {**STATED, "optimizer": "adam"}, "hparams_name": "kwargs"}),
        ("Together", "net.", {"hyper_parameters": STATED, "hparams_name": "settings"}),
    ],
)
def test_a_lightning_module_is_made_as_lightning_makes_it(
    built: Callable[..., Bundle], notes: list[str], cache: Path, tmp_path: Path, name: str, prefix: str, beside: Any
) -> None:
    state, expected = weights(prefix)
    made = built(**saved(tmp_path, {"state_dict": state, **beside}, name))
    assert answers(made) == pytest.approx(expected, abs=1e-5)
    assert any("as Lightning makes it" in note and "gelu" in note for note in notes)


@pytest.mark.long
@pytest.mark.parametrize(
    "beside",
    [
        {"hyper_parameters": STATED},
        {"config": STATED},
        {"args": argparse.Namespace(**STATED, classes=["a", "b", "c"])},
        {"activation": "gelu", "classes": ["a", "b", "c"], "epoch": 3},
    ],
    ids=["lightning", "a config", "a namespace", "beside the weights"],
)
def test_another_class_is_asked_about_and_the_command_that_is_told_answers_right(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path, beside: Any
) -> None:
    state, expected = weights()
    asked = saved(tmp_path, {"state_dict": state, **beside}, "Net")
    with pytest.raises(SourceError, match=r"activation: 'gelu'.*'relu' otherwise: say --arch-args '\{.*\}'") as refused:
        built(**asked)
    args = json.loads(str(refused.value).partition("--arch-args '")[2].partition("'")[0])
    assert args == {"activation": "gelu"}
    if "config" in beside:
        assert answers(built(**asked, arch_args=args)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.long
def test_what_the_user_says_and_what_is_as_usual_is_not_asked_about(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    state, expected = weights()
    stated = {"activation": "relu", "hidden": 8, "lr": 0.1, "classes": ["a", "b", "c"], "dropout": 0.5}
    made = built(**saved(tmp_path, {"model": state, "config": stated}, "Net"), arch_args={"activation": "gelu"})
    assert answers(made) == pytest.approx(expected, abs=1e-5)
