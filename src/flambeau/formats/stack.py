"""The stack, the memo and the containers of the pickle machine: what its operations do that name nothing."""

from typing import Any

from flambeau.formats.budget import Budget
from flambeau.formats.keys import charge, key, kind
from flambeau.formats.refusals import Refusal
from flambeau.formats.values import Foreign, Mapping, Plain

_MOST_PLACES = 2**32
"""In the memo, as the operations with binary arguments can name them."""


class Stack:
    """What operations push, take and fill. `value` is what the last one, STOP, leaves.

    Operations raise `Refusal` for what no honest pickle does, and `ValueError`, `IndexError` or `KeyError` where they
    do not find what they need.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.value: Any = None
        self.oddity: Refusal | None = None
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def odd(self, refusal: Refusal) -> None:
        """Keep the first thing that weights never have, and go on."""
        self.oddity = self.oddity or refusal

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def text(self, value: str) -> None:
        if not value.isascii():
            value.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
        self._stack.append(value)

    def old_text(self, value: str) -> None:
        """A string of Python 2: torch takes it for UTF-8, and pickletools has taken it for Latin-1."""
        raw = value.encode("latin-1")
        try:
            self._stack.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self.odd(Refusal("holds bytes as Python 2 wrote them, which torch does not read as weights"))
            self._stack.append(raw)

    def mark(self, _: None) -> None:
        self._below.append(self._stack)
        self._stack = []

    def pop(self, _: None = None) -> Any:
        if not self._stack and self._below:  # POP right after MARK takes the mark
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
        if not 0 <= index < _MOST_PLACES:  # larger ones could all have one hash
            raise ValueError(index)
        self._memo[index] = self._stack[-1]

    def memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def stop(self, _: None) -> None:
        self.value = self._stack.pop()

    def nothing(self, _: Any) -> None:
        pass

    # containers

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
        self._stack.append(Plain("frozenset", tuple(items)))

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
            raise Refusal(f"appends to {kind(target)} as if it were a list, as the attack of CVE-2026-24747 does")

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
            raise Refusal(f"sets an item of {kind(target)} as if it were a dict, as the attack of CVE-2026-24747 does")
        for given, value in zip(items[::2], items[1::2], strict=True):
            charge(given, self.budget)
            try:
                target[key(given)] = value
            except Refusal as refusal:
                self.odd(refusal)
