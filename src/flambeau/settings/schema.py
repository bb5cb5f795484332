"""One setting: a flag, a variable, a key of flambeau.toml and a line of the documentation are made from it.

This module reads a setting's value from text and from TOML; its errors say what would be right. It does not know where
a value came from, nor which of several wins.
"""

import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

ValueKind = Literal["text", "whole", "number", "switch", "choice", "list", "shape", "numbers", "object"]
"""`list`: several strings. `shape`: several whole numbers from 1, or words, or a mapping of such shapes by name.
`numbers`: one number or three. `object`: a mapping."""

OTHERS = "Others"
"""The group of settings that do not name one."""

_ON, _OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_PATHS = ("FILE", "DIR")
_UNITS = {"_ms": "MS", "_bytes": "BYTES", "_memory": "BYTES", "_pixels": "PIXELS"}
_METAVARS: dict[ValueKind, str] = {
    "text": "TEXT", "whole": "N", "number": "X", "list": "A,B", "shape": "N,N", "numbers": "R,G,B", "object": "JSON",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting. `name` is the keyword; the flag and the variable follow from it.

    `meaning` is one line for `--help`; `long`, if given, replaces it in the documentation. Bounds are inclusive. A
    setting whose `metavar` is FILE or DIR is a path. `unset` is the word that means "not set" (`None`).
    """

    name: str
    kind: ValueKind
    default: Any
    meaning: str
    long: str = ""
    group: str = OTHERS
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    metavar: str | None = None
    unset: str | None = None

    @property
    def flag(self) -> str:
        """The command-line flag: --max-items."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable: FLAMBEAU_MAX_ITEMS."""
        return "FLAMBEAU_" + self.name.upper()

    @property
    def is_path(self) -> bool:
        """Whether its value is always the path of a file or a folder."""
        return self.metavar in _PATHS

    @property
    def placeholder(self) -> str:
        """The placeholder for the value in `--help`: its choices, its unit or its kind."""
        if self.metavar or self.choices:
            return self.metavar or "|".join(self.choices)
        if self.kind in ("whole", "number"):
            if self.name == "deadline" or self.name.endswith("_timeout"):
                return "SECONDS"
            return next((unit for ending, unit in _UNITS.items() if self.name.endswith(ending)), _METAVARS[self.kind])
        return _METAVARS.get(self.kind, "")

    def from_text(self, text: str) -> Any:
        """Read the text of a flag or a variable. Raises `ValueError` with the end of a sentence: "is not ..."."""
        if text == self.unset:
            return None
        try:
            value = _TEXTS[self.kind](text)
        except ValueError:
            raise ValueError(self._wanted(as_toml=False)) from None
        self.check(value)
        return value

    def from_toml(self, value: Any) -> Any:
        """Read a TOML value, in which numbers are numbers, not text. Raises `ValueError` as `from_text` does."""
        if value is not None and value == self.unset:
            return None
        if not _TOML_FORMS[self.kind](value):
            raise ValueError(self._wanted(as_toml=True))
        if self.kind == "shape" and isinstance(value, dict):
            return {name: tuple(each) if isinstance(each, list) else (each,) for name, each in value.items()}
        taken = tuple(value) if isinstance(value, list) else float(value) if self.kind == "number" else value
        if self.kind in ("shape", "numbers") and not isinstance(taken, tuple):
            taken = (taken,)
        self.check(taken)
        return taken

    def check(self, value: Any) -> None:
        """Raise `ValueError`, with the end of a sentence, for a value out of bounds."""
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise ValueError(f"is not one of {', '.join(self.choices)}")
        # `not (a <= b)`, not `a > b`: NaN compares false with everything and must not slip through
        if self.minimum is not None and not (self.minimum <= value):
            raise ValueError(f"is too small: the least is {self.minimum}")
        if self.maximum is not None and not (value <= self.maximum):
            raise ValueError(f"is too large: the most is {self.maximum}")

    def _wanted(self, *, as_toml: bool) -> str:
        """The error for a value of another kind: what is wrong, and what would be right."""
        lists, one = ("[3, 32, 32]", "[0.485, 0.456, 0.406]"), ("3,32,32", "0.485,0.456,0.406")
        shape, numbers = lists if as_toml else one
        least = "" if self.minimum is None else f", {self.minimum} or more"
        bounds = least if self.maximum is None else f", {self.minimum} to {self.maximum}"
        return {
            "text": 'is not text: write it in quotes, "..."',
            "whole": f"is not a whole number{bounds}{f', nor {self.unset}' if self.unset else ''}",
            "number": f"is not a number{bounds}",
            "switch": "is neither true nor false",
            "choice": f"is not one of {', '.join(self.choices)}",
            "list": 'is not a list of texts such as ["a", "b"]',
            "shape": f"is not a shape such as 4 or {shape}",
            "numbers": f"is not three numbers such as {numbers}, nor one for grey",
            "object": "is not a table such as {num_classes = 10}"
            if as_toml
            else "is not a JSON object such as '{\"num_classes\": 10}'",
        }[self.kind]


def kind_of(hint: Any) -> ValueKind:
    """The setting's kind for a type hint: `whole` for `int | None`, `choice` for a Literal."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    origin = typing.get_origin(hint)
    if origin in (tuple, list, frozenset):
        return "list"
    kinds: dict[Any, ValueKind] = {bool: "switch", int: "whole", float: "number"}
    return "choice" if origin is Literal else kinds.get(hint, "text")


def _switch(text: str) -> bool:
    if text.lower() not in (*_ON, *_OFF):
        raise ValueError(text)
    return text.lower() in _ON


def _shape(text: str) -> tuple[int | str, ...] | dict[str, tuple[int | str, ...]]:
    """Read `3,32,32`; `steps,8`, where a word is a free length; or several inputs by name: `a=4,b=steps,8`."""
    if "=" not in text:
        sizes = tuple(_size(size) for size in text.split(","))
        if not _is_shape(list(sizes)):
            raise ValueError(text)
        return sizes
    named: dict[str, tuple[int | str, ...]] = {}
    for part in text.split(","):
        name, begins, size = part.rpartition("=")
        if begins:
            if not (name := name.strip()) or name in named:
                raise ValueError(text)
            named[name] = ()
        elif not named:
            raise ValueError(text)
        last = next(reversed(named))
        named[last] += (_size(size),)
    if not all(_is_shape(list(sizes)) for sizes in named.values()):
        raise ValueError(text)
    return named


def _size(text: str) -> int | str:
    return text.strip() if text.strip().isidentifier() else int(text)


def _numbers(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if len(values) not in (1, 3):
        raise ValueError(text)
    return values


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(text)
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(size.isidentifier() if isinstance(size, str) else _is_whole(size) and size > 0 for size in value)
    )


_TEXTS: dict[ValueKind, Callable[[str], Any]] = {
    "text": str, "choice": str, "whole": int, "number": float, "switch": _switch, "shape": _shape,
    "numbers": _numbers, "object": _object,
    "list": lambda text: tuple(part.strip() for part in text.split(",") if part.strip()),
}  # fmt: skip

_TOML_FORMS: dict[ValueKind, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "choice": lambda value: isinstance(value, str),
    "whole": _is_whole,
    "number": _is_number,
    "switch": lambda value: isinstance(value, bool),
    "list": lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    "shape": lambda value: all(
        _is_shape(each if isinstance(each, list) else [each])
        for each in (value.values() if isinstance(value, dict) and value else [value])
    ),
    "numbers": lambda value: (
        len(each := value if isinstance(value, list) else [value]) in (1, 3) and all(map(_is_number, each))
    ),
    "object": lambda value: isinstance(value, dict),
}


def to_toml(value: Any) -> str:
    """A setting's value, written as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {to_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str | PurePath):
        return json.dumps(str(value), ensure_ascii=False)  # JSON's escapes are TOML's too
    return repr(value)
