"""What is known of a file before anything in it is believed, how a look at it fails, and what one may cost."""

from collections.abc import Collection
from typing import Any, Literal

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


# What looking into one file may cost, whatever it holds (A4).


MOST_OPERATIONS = 600_000
"""Of a pickle. A tensor takes some 22 of them, and they take one to two microseconds each."""

_UNITS = 96 * 2**20
_OF_A_MEMBER = 100
_OF_AN_ELEMENT = 64

MOST_TENSORS = 32_768
"""In one mapping. Whoever finds out which network it is looks at each of their names, more than once."""
_LONGEST_NAME = 400
_MOST_OF_NAMES = 2 * 2**20  # characters


def refuse_too_many(names: Collection[str]) -> None:
    """Raise `ScanError` for more tensors, or more text in their names, than any network has."""
    if len(names) > MOST_TENSORS:
        raise ScanError(f"has {len(names):,} tensors, more than the {MOST_TENSORS:,} that a network may have")
    longest, total = max(map(len, names), default=0), sum(map(len, names))
    if longest > _LONGEST_NAME or total > _MOST_OF_NAMES:
        raise ScanError(f"names its tensors by {total:,} characters, one of them by {longest:,}, which no network does")


class ScanBudget:
    """What is left for a file. `operations` are counted by whoever plays them."""

    __slots__ = ("_units", "operations")

    def __init__(self) -> None:
        self.operations = MOST_OPERATIONS
        self._units = _UNITS

    def charge(self, units: int) -> None:
        """Take so many. Raises `ScanError` when none are left."""
        self._units -= units
        if self._units < 0:
            raise ScanError("repeats its parts so often that it would fill the memory of whoever reads it")

    def charge_for(self, value: Any) -> None:
        """Take what one look at each part of `value` costs, or one copy of it."""
        kind = type(value)
        if kind is str or kind is bytes:
            self.charge(len(value))
        elif kind is tuple or kind is list:
            self.charge(_OF_AN_ELEMENT * len(value))
        elif isinstance(value, dict):
            self.charge(_OF_A_MEMBER * len(value))

    def charge_for_each(self, values: Any) -> None:
        """Take what a call with these arguments costs; only a tuple is looked into."""
        if type(values) is tuple:
            self.charge_for(values)
            for value in values:
                self.charge_for(value)
