"""What stands for the objects of a pickle while it is read: descriptions, of which none can do anything.

Numbers, strings, tuples, lists and dicts stand for themselves.
"""

from dataclasses import dataclass, field
from typing import Any

from flambeau.formats.report import TensorInfo


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A class or function that the pickle names."""

    name: str
    harmless: bool


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A stretch of bytes in the file: `size` bytes of elements of `dtype`."""

    key: str
    dtype: str
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor, and the bytes that it takes when it is stored by itself."""

    info: TensorInfo
    size: int


class Mapping(dict[Any, Any]):
    """An `OrderedDict` or `Counter`. What `BUILD` gives it beside its members is not kept."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class Plain:
    """Something harmless of no further interest: a device, a numpy scalar, a set, a path."""

    name: str
    members: tuple[Any, ...] = ()


@dataclass(slots=True, eq=False)
class Foreign:
    """An object of a class that is not allowed, or what a function that is not allowed would have returned.

    `state` is what `BUILD` would have filled it with, and `items` what would have been put into it.
    """

    name: str
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
