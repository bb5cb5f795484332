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

Safety = Literal["data", "code", "refused"]
"""`data` can be read without running anything; `code` runs code of its author's when it is loaded, and is loaded with
`--allow-code` only; `refused` is damaged, lies about itself, or is nothing we know, and is never loaded."""


class TensorInfo(msgspec.Struct, frozen=True):
    """A tensor as its file describes it: dtype by torch's name (`float32`, `bfloat16`), and shape."""

    dtype: str
    shape: tuple[int, ...]


class TensorMapping(msgspec.Struct, frozen=True):
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
    verdict: Safety
    size: int
    reason: str = ""
    remedy: str = ""
    globals: tuple[Global, ...] = ()
    entries: tuple[TensorMapping, ...] = ()
    classes: tuple[str, ...] | None = None
    facts: dict[str, str] = {}


# How a look into a file ends when the file is not to be loaded. It knows no format.


class ScanError(Exception):
    """The file is damaged, lies about itself, or is nothing we read.

    `reason` reads on from the file's name ("is cut short"), and `remedy` is a sentence of its own. It never leaves this
    package: `examine` makes a report of it.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy or UNTRUSTED


UNTRUSTED = "get the file again from where it was made, best as safetensors, and do not load this one"
DOWNLOAD_AGAIN = "download or copy it again, and compare its size with the original"

_LONGEST = 120


def plain(text: str) -> str:
    """A text out of a file, fit to be printed: no control characters, no surrogates, at most 120 characters."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[: _LONGEST + 1])
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"
