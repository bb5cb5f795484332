"""The report on an untrusted file, the error for one that is refused, and the budget for examining it."""

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
"""`torch-zip`, `torch-legacy` and `torch-tar` are the formats of `torch.save` since 1.6, before 1.6, and before 0.2."""

Safety = Literal["data", "code", "refused"]
"""`data` can be read without running anything; `code` runs its author's code when loaded, and is loaded only with
`--allow-code`; `refused` is damaged, contradicts itself, or is in an unknown format, and is never loaded."""


class TensorInfo(msgspec.Struct, frozen=True):
    """A tensor as its file describes it: torch's name of its dtype (`float32`, `bfloat16`), and its shape."""

    dtype: str
    shape: tuple[int, ...]


class TensorMapping(msgspec.Struct, frozen=True):
    """A mapping of names to tensors inside a file.

    `where` is its path, as keys of nested mappings: `()` is the file itself, `("state_dict",)` the value under that
    key. `aside` are the names of its members that are not tensors. `module`: it is not a mapping but a pickled network,
    with its tensors named as its `state_dict()` would name them.
    """

    where: tuple[str, ...]
    tensors: dict[str, TensorInfo]
    aside: tuple[str, ...] = ()
    module: bool = False


class Global(msgspec.Struct, frozen=True):
    """A class or function that a pickle names. `danger` is a short phrase for what it could have done."""

    name: str
    harmless: bool
    danger: str = ""


class Report(msgspec.Struct, frozen=True):
    """What `examine` found out about a file of `size` bytes.

    `reason` and `remedy` are set unless the verdict is `data`; `reason` is a phrase that follows the file's name.
    `entries` are the mappings of tensors in it, outermost first. `classes` are class names stored beside the weights,
    in the order of the outputs. `stated` are the arguments with which the file says that its network was made, by the
    key under which it has them. `prepares` are constants by which inputs were prepared (`checkpoints.prepared`).
    `facts` are other facts worth showing, by name: producer, inputs, handler.
    """

    format: Format
    verdict: Safety
    size: int
    reason: str = ""
    remedy: str = ""
    globals: tuple[Global, ...] = ()
    entries: tuple[TensorMapping, ...] = ()
    classes: tuple[str, ...] | None = None
    stated: dict[str, dict[str, Any]] = {}
    prepares: dict[str, dict[str, tuple[float, ...] | None]] = {}
    facts: dict[str, str] = {}


class ScanError(Exception):
    """The file must not be loaded: it is damaged, contradicts itself, or is in a format that is not supported.

    `reason` is a phrase that follows the file's name ("is cut short"), `remedy` a sentence of its own. It never leaves
    this package: `examine` turns it into a report.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy or UNTRUSTED


UNTRUSTED = "get the file again from where it was made, best as safetensors, and do not load this one"
DOWNLOAD_AGAIN = "download or copy it again, and compare its size with the original"

_LONGEST = 120


def plain(text: str) -> str:
    """Untrusted text made safe to print: no control characters, no surrogates, at most 120 characters."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[: _LONGEST + 1])
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


# What examining one file may cost, whatever it contains (A4).


MOST_OPERATIONS = 600_000
"""Operations in a pickle. A tensor takes about 22, at one to two microseconds each."""

_UNITS = 96 * 2**20
_OF_A_MEMBER = 100
_OF_AN_ELEMENT = 64

MOST_TENSORS = 32_768
"""Tensors in one mapping. Finding the architecture looks at each of their names more than once."""
_LONGEST_NAME = 400
_MOST_OF_NAMES = 2 * 2**20  # characters


def refuse_too_many(names: Collection[str]) -> None:
    """Raise `ScanError` for more tensors, or longer names in total, than any network has."""
    if len(names) > MOST_TENSORS:
        raise ScanError(f"has {len(names):,} tensors, more than the {MOST_TENSORS:,} that a network may have")
    longest, total = max(map(len, names), default=0), sum(map(len, names))
    if longest > _LONGEST_NAME or total > _MOST_OF_NAMES:
        raise ScanError(f"names its tensors by {total:,} characters, one of them by {longest:,}, which no network does")


class ScanBudget:
    """What may still be spent on a file, in units. The pickle machine counts down `operations` itself."""

    __slots__ = ("_units", "operations")

    def __init__(self) -> None:
        self.operations = MOST_OPERATIONS
        self._units = _UNITS

    def charge(self, units: int) -> None:
        """Spend `units`. Raises `ScanError` when too few are left."""
        self._units -= units
        if self._units < 0:
            raise ScanError("repeats its parts so often that reading it would fill the memory")

    def charge_for(self, value: Any) -> None:
        """Spend what visiting each part of `value` once costs, or copying it."""
        kind = type(value)
        if kind is str or kind is bytes:
            self.charge(len(value))
        elif kind is tuple or kind is list:
            self.charge(_OF_AN_ELEMENT * len(value))
        elif isinstance(value, dict):
            self.charge(_OF_A_MEMBER * len(value))

    def charge_for_each(self, values: Any) -> None:
        """Spend what a call with these arguments costs; only a tuple counts."""
        if type(values) is tuple:
            self.charge_for(values)
            for value in values:
                self.charge_for(value)
