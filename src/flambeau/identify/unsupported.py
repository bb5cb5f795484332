"""Networks of torchvision beside classifiers: detection, segmentation, video and optical flow. Object detection and
semantic segmentation are supported (`detectors`, `segmenters`).

The others are known by name, so that messages can name the network and offer a Python model that serves it. The list is
shipped beside the index of architectures, and written by the same script.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Literal

import msgspec

from flambeau.bundle.storage import HeadLayer
from flambeau.identify import index, naming
from flambeau.identify.index import COUNTER, Shape, Signature
from flambeau.identify.naming import Names

UnsupportedTask = Literal[
    "object detection", "instance segmentation", "keypoint detection", "semantic segmentation", "video classification",
    "optical flow",
]  # fmt: skip


class Other(msgspec.Struct, frozen=True, array_like=True):
    """One such network. `body` is its signature without `heads`, which depend on the number of classes, and `aux`.

    `classes` names a tensor whose first size is the number of classes times `each`; empty if nothing depends on it.
    """

    name: str
    task: UnsupportedTask
    body: int
    heads: tuple[str, ...] = ()
    aux: tuple[str, ...] = ()
    classes: str = ""
    each: int = 1


class Known(msgspec.Struct, frozen=True):
    """A file's network: `names` are all networks with such weights; `classes` is `None` if they have no such number."""

    names: tuple[str, ...]
    task: UnsupportedTask
    prefix: str
    classes: int | None


@cache
def known() -> tuple[Other, ...]:
    """All networks of the list."""
    return msgspec.json.decode(index.read("torchvision_others.json.gz"), type=tuple[Other, ...])


def find(names: Names) -> Known | None:
    """The networks that these tensors belong to, for any number of classes."""
    for prefix in sorted(names.prefixes, key=lambda prefix: not naming.is_averaged(prefix)):
        inside = names.within(prefix)
        marks = Signature(inside)
        found = [other for other in known() if marks.without((*other.heads, *other.aux)) == other.body]
        counts = {other.name: _classes(other, inside) for other in found}
        if fitting := [other for other in found if counts[other.name] != 0]:
            [first, *_] = fitting
            return Known(tuple(other.name for other in fitting), first.task, prefix, counts[first.name])
    return None


def _classes(other: Other, inside: dict[str, tuple[int, ...]]) -> int | None:
    """The number of classes; 0 if the file's head does not fit this network, `None` if it has no such number."""
    if not other.classes:
        return None
    shape = inside.get(other.classes, ())
    return shape[0] // other.each if len(shape) and shape[0] % other.each == 0 else 0


# The layers of an unknown network, in words: tables of vectors, recurrent layers, attention. A network with tables may
# take whole numbers, so the advice for it is another than for networks over decimal numbers.


_TABLE = re.compile(
    r"(\w*_)?(emb|embed|embeds|embedding|embeddings|embedder|wte|wpe|lookup|vocab|vectors)(_\w*|\d*)"
    r"|\w+_(emb|embeddings?)|embedding_\w+|embed_tokens|tok_\w+",
    re.IGNORECASE,
)
_RECURRENT = {4: "an LSTM", 3: "a GRU", 1: "a plain recurrent layer"}
_ATTENTION = re.compile(r"(\w*_)?(attn|attention|self_attn|mha)(_\w*)?|in_proj_weight|[qkv]_proj|query|c_attn")
_CONVOLUTIONS = {3: "convolutions over series", 5: "convolutions over volumes"}


def is_table(name: str, shape: Shape) -> bool:
    """Whether a tensor is named like a table of vectors (`nn.Embedding`). Embeddings of image patches may be, too."""
    return len(shape) == 2 and not name.endswith("bias") and any(map(_is_of_tables, name.split(".")))


@lru_cache(maxsize=4096)
def _is_of_tables(part: str) -> bool:
    return _TABLE.fullmatch(part) is not None


def tables(names: Names) -> list[str]:
    """The tensors that are named like tables of vectors and have no bias beside them, as a linear layer would."""
    return [
        name
        for name, shape in names.shapes.items()
        if is_table(name, shape) and f"{name.rpartition('.')[0]}.bias" not in names.shapes
    ]


def nothing_but_tables(names: Names) -> str:
    """The message for a file with tables of vectors and no network; empty if it has other tensors."""
    found = tables(names)
    if not found or len(found) < len(names.shapes):
        return ""
    told = ", ".join(_table(names.shapes, name) for name in found[:3])
    return f"the file holds {told}, and a table of vectors is no network: {AROUND}"


def words(names: Names) -> tuple[str, bool]:
    """The characteristic layers, in words, and whether there are tables; no words if no layer is characteristic."""
    shapes = names.shapes
    found = tables(names)
    told = [_table(shapes, name) for name in found[:2]]
    told += list(dict.fromkeys(_recurrent(shapes, name) for name in shapes if name.endswith("weight_ih_l0")))[:2]
    parts = {part for name in shapes for part in name.split(".")}
    if any(_ATTENTION.fullmatch(part) for part in parts):
        told.append("attention")
    dimensions = {len(shape) for name, shape in shapes.items() if name.endswith("weight") and COUNTER not in name}
    told += [kind for count, kind in _CONVOLUTIONS.items() if count in dimensions]
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told), bool(found)


def bare_table(found: list[HeadLayer]) -> bool:
    """Whether a single table could be a linear layer without bias as well as an embedding."""
    return len(found) == 1 and found[0].kind == "linear" and not found[0].bias


def _table(shapes: Mapping[str, Shape], name: str) -> str:
    rows, width = shapes[name]
    return f"a table of {rows} vectors of {width} numbers ({name})"


def _recurrent(shapes: Mapping[str, Shape], name: str) -> str:
    inner = shapes.get(name.replace("weight_ih", "weight_hh"), ())
    rows, *width = shapes[name]
    kind = _RECURRENT.get(rows // inner[-1] if inner and inner[-1] else 0, "a recurrent layer")
    return f"{kind} over steps of {width[0]} numbers" if width else kind


# Python models as text, for files that cannot be served directly: `flambeau inspect` prints them. Names from a file go
# into the text as literals: nothing of a file becomes code.


AROUND = (
    "a PythonModel of your own serves it, as in docs/sources.md#a-python-model-around-a-network: "
    "flambeau serve file.py:Model --allow-code"
)
"""The remedy for everything that computes in PyTorch but is no network from one tensor to one tensor."""

PRINTED = "save the Python model below as file.py, and flambeau serve file.py:Model --allow-code"
"""The remedy if `flambeau inspect` prints a Python model."""


def ask(file: str) -> str:
    """The remedy in commands that do not print the Python model themselves."""
    return f"flambeau inspect {file} prints a Python model that serves it"


_IMAGES = '''\
import io

import torch
from PIL import Image
from torchvision import models
from torchvision.transforms.functional import to_tensor

import flambeau


class Model(flambeau.PythonModel):
    """{what}: pictures to boxes."""

    def load(self):
        self.net = models.get_model({arguments}).eval()
{read}
        self.net.load_state_dict({state})

    def predict(self, batch):
        with torch.inference_mode():
            return [self.answer(Image.open(io.BytesIO(item)).convert("RGB")) for item in batch]

    def answer(self, picture):
        [found] = self.net([to_tensor(picture)])
        return {{name: value.tolist() for name, value in found.items()}}
'''

_GRAPH = '''\
import numpy as np
import onnxruntime

import flambeau


class Model(flambeau.PythonModel):
    """The graph as it is: an item is {{"input": {{{example}}}}}, rows included."""

    def load(self):
        self.session = onnxruntime.InferenceSession({file!r})

    def predict(self, batch):
        return [self.answer(item) for item in batch]

    def answer(self, item):
        kinds = {kinds!r}
        given = {{name: np.array(item[name], kind) for name, kind in kinds.items()}}
        names = [each.name for each in self.session.get_outputs()]
        found = dict(zip(names, self.session.run(None, given)))
        return {{name: each.tolist() if isinstance(each, np.ndarray) else each for name, each in found.items()}}
'''


TEXT = "string"
"""The dtype of texts in a graph."""


def image_sketch(known: Known, file: str, where: Sequence[str]) -> str:
    """A Python model for a detector whose weights lie in `file` under the keys of `where`.

    Empty for a task that needs more than one picture.
    """
    if known.task not in ("object detection", "instance segmentation", "keypoint detection"):
        return ""
    arguments = f"{known.names[0]!r}, weights=None, weights_backbone=None, num_classes={known.classes}"
    if file.endswith(".safetensors"):
        read = f"        from safetensors.torch import load_file\n\n        held = load_file({file!r})"
    else:
        held = "".join(f"[{key!r}]" for key in where)
        read = f"        held = torch.load({file!r}, map_location={'cpu'!r}, weights_only=True){held}"
    inner = f"key.removeprefix({known.prefix!r}): value"
    state = (
        f"{{{inner} for key, value in held.items() if key.startswith({known.prefix!r})}}" if known.prefix else "held"
    )
    return _IMAGES.format(
        what=known.names[0],
        arguments=arguments,
        read=read,
        state=state,
    )


def graph_sketch(file: str, inputs: Sequence[tuple[str, str, str]]) -> str:
    """A Python model for an ONNX graph with these inputs, each (name, dtype, sizes in words)."""
    kinds = {name: "object" if dtype == TEXT else dtype for name, dtype, _ in inputs}
    example = ", ".join(f'"{name}": ...' if name.isidentifier() else "..." for name in kinds)
    return _GRAPH.format(file=file, kinds=kinds, example=example)
