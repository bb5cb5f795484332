"""The stack, the memo and the containers of the pickle machine: what its operations do that name nothing."""

from typing import Any

from flambeau.formats.refusals import Refusal, plain
from flambeau.formats.values import Foreign, Mapping, Named, Plain


class Stack:
    """What operations push, take and fill. `value` is what the last one, STOP, leaves.

    Operations raise `Refusal` for what no honest pickle does, and `ValueError`, `IndexError` or `KeyError` where they
    do not find what they need.
    """

    def __init__(self) -> None:
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
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is str or _is_key(key):
                target[key] = value
            else:
                self.odd(Refusal(f"holds a dict with {kind(key)} as a key, which weights never have"))


def _is_key(value: Any) -> bool:
    """Whether torch may use it as a key. Nested tuples may not: hashing them recurses without a limit."""
    if type(value) is tuple:
        return all(type(part) in (str, int, float, bool, bytes, type(None)) for part in value)
    if isinstance(value, Plain):
        return value.name in ("numpy scalar", "torch.device", "complex")
    return isinstance(value, Named | Foreign) or type(value) in (int, float, bool, bytes, type(None))


def kind(value: Any) -> str:
    """What a value is, for a sentence."""
    if isinstance(value, Named | Plain | Foreign):
        return plain(value.name)
    return "an OrderedDict" if isinstance(value, Mapping) else f"a {type(value).__name__.lower()}"
