"""The corpus: the kinds of files that people have, each written with torch, and with torch's own numbers for a probe.

A kind is `path` where its file alone is served right, `options` where documented options are needed, and `refused`
where it cannot be served as it is; then the sentence that says so names a way out, and `Made.way` is what a user who
follows it has at hand.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from flambeau.architectures import torchvision_compat
from tests.support import ROOT

torchvision_compat.declare_missing()

NETS = ROOT / "tests" / "networks" / "corpus_nets.py"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Expect = Literal["path", "options", "refused"]


@dataclass(frozen=True)
class Made:
    """A written file. `options` are those with which it is served right (for `path`: with which it is, too).

    `probe` is what is sent, the bytes of a picture or the value of "input"; `None` where nothing answers. `answer` is
    what PyTorch itself gives: probabilities where the task is classification, in the order of the outputs, else the
    network's numbers as lists. `raw` are the network's own numbers for an image, which another task than `task` makes
    another answer of.
    `own` stands for `file.py:Class` in a sentence, and `shape` for the value of `--input-shape`. `python` is the Python
    model (`file.py:Class`) that serves the file where a sentence names `PythonModel` and none is printed, and `around`
    its answer, where that is another than `answer`. `convert`
    turns the file into another as its sentence says, and returns that.
    """

    file: Path
    probe: Any = None
    answer: Any = None
    raw: list[float] | None = None
    options: tuple[str, ...] = ()
    own: str = ""
    shape: str = ""
    python: str = ""
    around: Any = None
    convert: Callable[[], "Made"] | None = None
    task: str = "classification"


@dataclass(frozen=True)
class Kind:
    """One kind of file. `ids` are the faults of which it is the example. `end` are words of a sentence that ends the
    way: the file is no model, or is damaged, and another has to be got. Not `exported` are other files of a network
    that the corpus exports once: then PyTorch serves them, and a build takes seconds less."""

    name: str
    write: Callable[[Path], Made]
    expect: Expect
    ids: str = ""
    end: str = ""
    exported: bool = True


def picture(side: int = 256, *, grey: bool = False) -> bytes:
    """A picture with something in it, the same every time, as a PNG."""
    down, across = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(9 * down + 5 * across * number) for number in (1, 2, 3)]
    pixels = (127 + 120 * np.stack(waves, 2)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if grey else pixels).save(file, "PNG")
    return file.getvalue()


def pixels(file: bytes) -> torch.Tensor:
    """The picture as it is, (3, height, width), in 0 to 1."""
    from torchvision.transforms.functional import to_tensor

    tensor: torch.Tensor = to_tensor(Image.open(io.BytesIO(file)).convert("RGB"))
    return tensor


def prepared(file: bytes, *, resize: int = 255, crop: int = 224, interpolation: str = "bilinear") -> torch.Tensor:
    """The picture as torchvision's own transforms prepare it, (1, 3, crop, crop)."""
    from torchvision import transforms

    resized = transforms.Resize(resize, transforms.InterpolationMode(interpolation))
    steps = transforms.Compose(
        [resized, transforms.CenterCrop(crop), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    tensor: torch.Tensor = steps(Image.open(io.BytesIO(file)).convert("RGB"))[None]
    return tensor


def alive(network: nn.Module, *, variance: float = 0.5) -> nn.Module:
    """The network in evaluation mode, with norms whose answers differ from picture to picture.

    The deeper a network without training is, the larger its `variance` has to be, or its answers are all 0 and 1.
    """
    generator = torch.Generator().manual_seed(11)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_var is not None:
            module.running_var.fill_(variance)
            assert module.running_mean is not None
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 0.05)
    return network.eval()


def classified(network: nn.Module, rows: torch.Tensor) -> list[float]:
    """Probabilities of the first row."""
    with torch.inference_mode():
        answer: list[float] = network(rows).softmax(1)[0].tolist()
    return answer


def numbers(network: nn.Module, rows: torch.Tensor) -> list[float]:
    """The network's own numbers for the first row."""
    with torch.inference_mode():
        answer: list[float] = network(rows)[0].tolist()
    return answer


def saved(folder: Path, name: str, contents: Any) -> Path:
    """The file of `torch.save`, with the corpus's classes beside it: a pickled network is imported from there."""
    torch.save(contents, folder / name)
    beside(folder)
    return folder / name


def beside(folder: Path) -> Path:
    """The corpus's own code, in the folder of a file."""
    place = folder / NETS.name
    if not place.exists():
        place.write_text(NETS.read_text().replace("Path(__file__).parent", f"Path({str(folder)!r})"))
    return place


def own(folder: Path, name: str) -> str:
    """A class of `corpus_nets`, as `--arch` names it."""
    return f"{beside(folder)}:{name}"


def kinds() -> tuple[Kind, ...]:
    """All of them."""
    from tests.support import corpus_images, corpus_numbers, corpus_others

    return (*corpus_images.KINDS, *corpus_numbers.KINDS, *corpus_others.KINDS)
