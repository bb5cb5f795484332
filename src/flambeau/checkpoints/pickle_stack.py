"""The stack, the memo and the containers of the pickle machine: its operations that name no global."""

from dataclasses import dataclass, field
from typing import Any

from flambeau.checkpoints.report import ScanBudget, ScanError, TensorInfo, plain

# Descriptions that stand for the objects of a pickle; none of them can do anything. Numbers, strings, tuples, lists and
# dicts stand for themselves.


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A class or function that the pickle names."""

    name: str
    harmless: bool


@dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """A storage in the file: `size` bytes of elements of `dtype`."""

    key: str
    dtype: str
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor, and the bytes that it takes when stored by itself."""

    info: TensorInfo
    size: int


class Mapping(dict[Any, Any]):
    """An `OrderedDict` or `Counter`. Attributes that `BUILD` sets are not kept."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False)
class PlainObject:
    """A harmless object of no further interest: a device, a numpy scalar, a set, a path."""

    name: str
    members: tuple[Any, ...] = ()


@dataclass(slots=True, eq=False)
class Namespace:
    """An `argparse.Namespace`. `state` are its attributes."""

    state: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Foreign:
    """An object of a class that is not allowed, or the result of a function that is not allowed.

    `state` is what `BUILD` would have set, and `items` are the items that would have been put into it.
    """

    name: str
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)


# What may be a key of a dict. An attacker who chooses the keys chooses their hashes too: all multiples of 2**61 - 1
# hash to 0, and filling a dict with 100,000 of them takes minutes. So such large integers are refused, and the budget
# limits tuples to about a thousand.


_LONGEST = 2048
_NUMBERS_BELOW = 2**61 - 1
"""Integers below this are their own hash."""
_OF_A_TUPLE = 100_000
"""Units of the budget per tuple: a thousand tuples with the same hash are compared half a million times."""
_PLAIN_PARTS = (str, int, float, bool, bytes, type(None))


def charge(value: Any, budget: ScanBudget) -> None:
    """Spend what a key costs. Raises `ScanError` when too little of the budget is left."""
    budget.charge_for(value)
    if type(value) is tuple:
        budget.charge(_OF_A_TUPLE)


def key(value: Any) -> Any:
    """The value, if it may be a key. Raises `ScanError` for a key that no dict of weights has."""
    of = type(value)
    if of is str or of is bytes:
        if len(value) > _LONGEST:
            raise ScanError(f"holds a dict with a key of {len(value):,} characters, which weights never have")
        return value
    if of is int and not -_NUMBERS_BELOW < value < _NUMBERS_BELOW:
        raise ScanError("holds a dict with a number of more than 60 bits as a key, which weights never have")
    # nested tuples are not allowed: torch hashes them, and hashing recurses without a limit
    if of is tuple and all(type(part) in _PLAIN_PARTS for part in value):
        return value
    if isinstance(value, Named | Foreign) or of in (int, float, bool, type(None)):
        return value
    if isinstance(value, PlainObject) and value.name in ("numpy scalar", "torch.device", "complex"):
        return value
    raise ScanError(f"holds a dict with {kind(value)} as a key, which weights never have")


def kind(value: Any) -> str:
    """A value's type in words, for an error message."""
    if isinstance(value, Named | PlainObject | Foreign):
        return plain(value.name)
    return "an OrderedDict" if isinstance(value, Mapping) else f"a {type(value).__name__.lower()}"


_MOST_PLACES = 2**32
"""Places in the memo: as many as operations with binary arguments can address."""


class Stack:
    """The pickle machine's state. `value` is the result, which the last operation, STOP, sets.

    Operations raise `ScanError` for what no honest pickle does, and `ValueError`, `IndexError` or `KeyError` when they
    do not find what they need.
    """

    def __init__(self, budget: ScanBudget) -> None:
        self.budget = budget
        self.value: Any = None
        self.oddity: ScanError | None = None
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def odd(self, refusal: ScanError) -> None:
        """Note the first thing that weights never have, and go on."""
        self.oddity = self.oddity or refusal

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def text(self, value: str) -> None:
        if not value.isascii():
            value.encode()  # raises for a lone surrogate: UnicodeEncodeError is a ValueError
        self._stack.append(value)

    def old_text(self, value: str) -> None:
        """A string of Python 2: torch decodes it as UTF-8, where pickletools has decoded it as Latin-1."""
        raw = value.encode("latin-1")
        try:
            self._stack.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self.odd(ScanError("holds bytes as Python 2 wrote them, which torch does not read as weights"))
            self._stack.append(raw)

    def mark(self, _: None) -> None:
        self._below.append(self._stack)
        self._stack = []

    def pop(self, _: None = None) -> Any:
        if not self._stack and self._below:  # POP right after MARK removes the mark
            self._stack = self._below.pop()
            return None
        return self._stack.pop()

    def pop_mark(self, _: None = None) -> list[Any]:
        items, self._stack = self._stack, self._below.pop()
        return items

    def dup(self, _: None) -> None:
        self._stack.append(self._stack[-1])

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def put(self, index: int) -> None:
        if not 0 <= index < _MOST_PLACES:  # larger indices could all have the same hash
            raise ValueError(index)
        self._memo[index] = self._stack[-1]

    def memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def stop(self, _: None) -> None:
        self.value = self._stack.pop()

    def nothing(self, _: Any) -> None:
        pass

    # Containers.

    def tuple_(self, _: None) -> None:
        items = self.pop_mark()
        self._stack.append(tuple(items))

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def list_(self, _: None) -> None:
        items = self.pop_mark()
        self._stack.append(items)

    def dict_(self, _: None) -> None:
        items = self.pop_mark()
        self._stack.append({})
        self._put(items)

    def frozenset_(self, _: None) -> None:
        items = self.pop_mark()
        self._stack.append(PlainObject("frozenset", tuple(items)))

    def add_items(self, _: None) -> None:
        self.pop_mark()

    def append(self, _: None) -> None:
        item = self._stack.pop()
        self._extend([item])

    def appends(self, _: None) -> None:
        items = self.pop_mark()
        self._extend(items)

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Foreign):
            raise ScanError(f"appends to {kind(target)} as if it were a list, as the attack of CVE-2026-24747 does")

    def set_item(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._put([key, value])

    def set_items(self, _: None) -> None:
        items = self.pop_mark()
        self._put(items)

    def _put(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Foreign):
            target = target.items
        elif type(target) not in (dict, Mapping):
            raise ScanError(
                f"sets an item of {kind(target)} as if it were a dict, as the attack of CVE-2026-24747 does"
            )
        for given, value in zip(items[::2], items[1::2], strict=True):
            charge(given, self.budget)
            try:
                target[key(given)] = value
            except ScanError as refusal:
                self.odd(refusal)
