"""What is known of a file before anything in it is believed: values only, without behaviour."""

from typing import Literal

import msgspec

Format = Literal[
    "torch-zip",
    "torch-legacy",
    "torch-tar",
    "safetensors",
    "torchscript",
    "pt2",
    "onnx",
    "mar",
    "bundle",
    "repository",
    "unknown",
]
"""`torch-zip`, `torch-legacy` and `torch-tar` are what `torch.save` wrote since 1.6, before it, and before 0.2."""

Verdict = Literal["data", "code", "refused"]
"""`data` can be read without running anything; `code` runs code of its author's when it is loaded, and is loaded with
`--allow-code` only; `refused` is damaged, lies about itself, or is nothing we know, and is never loaded."""


class TensorInfo(msgspec.Struct, frozen=True):
    """A tensor as its file describes it: dtype by torch's name (`float32`, `bfloat16`), and shape."""

    dtype: str
    shape: tuple[int, ...]


class Entry(msgspec.Struct, frozen=True):
    """A mapping of names to tensors inside a file.

    `where` is the way to it, as keys of nested mappings: `()` is the file itself, `("state_dict",)` what lies under
    that key. `aside` names its members that are no tensors. `module`: it is no mapping but a pickled network, whose
    tensors are named as its `state_dict()` would name them.
    """

    where: tuple[str, ...]
    tensors: dict[str, TensorInfo]
    aside: tuple[str, ...] = ()
    module: bool = False


class Global(msgspec.Struct, frozen=True):
    """A class or function that a pickle names. `danger` says in a few words what it could have done."""

    name: str
    harmless: bool
    danger: str = ""


class Report(msgspec.Struct, frozen=True):
    """What a file is.

    `reason` and `remedy` are set unless the verdict is `data`; `reason` reads on from the file's name. `entries` are
    the mappings of tensors found in it, outermost first. `classes` are class names that lie beside the weights, in
    the order of the outputs. `facts` are further things worth showing, by name: producer, inputs, handler.
    """

    format: Format
    verdict: Verdict
    size: int
    reason: str = ""
    remedy: str = ""
    globals: tuple[Global, ...] = ()
    entries: tuple[Entry, ...] = ()
    classes: tuple[str, ...] | None = None
    facts: dict[str, str] = {}
