"""Values as people read them: numbers with as many digits as they mean, and lists of them on one line.

`static/values.js` writes the same. What a program reads is the answer itself, which has every digit.
"""

import math
from typing import Any

import msgspec

DIGITS = 6
"""How many digits a number has, unless it has more before its point: a float32 is known to about seven."""

_DEEPEST = 32  # levels that are written one below the other
_LONGEST_TITLE = 60  # characters


def digits(number: float | None) -> str:
    """A number as text, to six digits or to its point: "0.333333", "1234568"."""
    if number is None or not math.isfinite(number):
        return "not a number"
    if number == int(number) and abs(number) < 1e15:
        return str(int(number))
    return f"{number:.{max(DIGITS, _before_point(number))}g}"


def rounds(value: Any) -> bool:
    """Whether a number somewhere in a value has more digits than are shown."""
    if isinstance(value, float):
        return math.isfinite(value) and float(digits(value)) != value
    if isinstance(value, dict):
        return any(map(rounds, value.values()))
    return isinstance(value, list | tuple) and any(map(rounds, value))


def title(value: Any) -> str:
    """An answer in a few words: the value itself if it is short, or how many numbers it has."""
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_TITLE:
        return value
    if value is None or isinstance(value, bool | int | float):
        return written(value)
    shape = _shape(value)
    if not shape:
        return "Answer"
    return counted(shape[0]) if len(shape) == 1 else " × ".join(map(str, shape)) + " numbers"


def counted(count: int) -> str:
    """A count of numbers as text: "512 numbers"."""
    return f"{count:,} number{'' if count == 1 else 's'}"


def written(value: Any, level: int = 0) -> str:
    """A value as JSON for people: a text is itself, lists of single values have one line each."""
    if isinstance(value, str) and not level:
        return value
    if isinstance(value, float):
        return digits(value) if math.isfinite(value) else "null"
    several = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list | tuple) or not value or level == _DEEPEST:
        return msgspec.json.encode(value).decode()
    single = not any(isinstance(each, dict | list | tuple) for each in several)
    texts = [written(each, level + 1) for each in several]
    if isinstance(value, dict):
        texts = [f"{msgspec.json.encode(str(name)).decode()}: {text}" for name, text in zip(value, texts, strict=True)]
    first, last = "{}" if isinstance(value, dict) else "[]"
    if single and not isinstance(value, dict):
        return first + ", ".join(texts) + last
    space = "  " * level
    return f"{first}\n" + ",\n".join(f"{space}  {text}" for text in texts) + f"\n{space}{last}"


def _before_point(number: float) -> int:
    return math.floor(math.log10(abs(number))) + 1


def _shape(value: Any) -> tuple[int, ...]:
    """The shape of nested lists of numbers, each level as long as its siblings; empty for anything else."""
    if not isinstance(value, list | tuple) or not value:
        return ()
    inner = {_shape(each) if isinstance(each, list | tuple) else None for each in value}
    if len(inner) != 1:
        return ()
    [below] = inner
    if below is None:
        numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in value)
        return (len(value),) if numbers else ()
    return (len(value), *below) if below else ()
