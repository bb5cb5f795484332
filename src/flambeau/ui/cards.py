"""What the page shows of an outcome, as plain values, and the words that the cards' templates are written in.

A task's card is the template of its name in `templates/cards`, which is given the answer; a task without one has the
card that shows any answer as JSON. The script fills in the same card.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from flambeau.answers import Answer, Scored
from flambeau.errors import RequestError
from flambeau.types import Outcome, Timings

LONGEST_SHOWN = 64 * 1024  # bytes; to write more takes so long that others would notice

TOP_K = 5
"""How many classes the page ranks."""

MOST_BARS = 20
"""How many labels it shows where more reach the threshold."""

FIRST_NUMBERS = 8
"""How many numbers of a vector it shows."""


@dataclass(frozen=True, slots=True)
class ScoreBar:
    """One class: its name for people, its probability in percent, and whether it is marked as present."""

    name: str
    percent: float
    present: bool = False

    def __str__(self) -> str:
        """The probability for people."""
        if not math.isfinite(self.percent):
            return "not a number"
        return f"{self.percent:.1f} %" if self.percent >= 0.05 else "< 0.1 %"

    @property
    def width(self) -> float:
        """The bar's length in percent."""
        return min(max(self.percent, 0.0), 100.0) if math.isfinite(self.percent) else 0.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Where time went: `start` and `share` are percent of the whole."""

    name: str
    milliseconds: float
    start: float
    share: float


@dataclass(frozen=True, slots=True)
class Card:
    """The answer to one item, or the error that it met, and where its time went."""

    answer: Answer | None = None
    error: str = ""
    hint: str = ""
    stages: tuple[Stage, ...] = ()


def cards_of(outcomes: Sequence[Outcome]) -> list[Card]:
    """One card for each outcome, in order."""
    return [_card(outcome) for outcome in outcomes]


def refused(error: RequestError) -> Card:
    """The card of a request, or an item, that failed."""
    return Card(error=sentence(error.message), hint=error.hint or "")


def _card(outcome: Outcome) -> Card:
    result = outcome.result
    return refused(result) if isinstance(result, RequestError) else Card(result, stages=_stages(outcome.timings))


def _stages(timings: Timings) -> tuple[Stage, ...]:
    spent = {name: 1000 * seconds for name, seconds in msgspec.structs.asdict(timings).items()}
    whole = sum(spent.values()) or 1.0
    stages: list[Stage] = []
    start = 0.0
    for name, milliseconds in spent.items():
        share = 100 * milliseconds / whole
        stages.append(Stage(name, milliseconds, start, share))
        start += share
    return tuple(stages)


# The words of the templates.


def bars(ranked: Sequence[Scored], present: int = 0) -> list[ScoreBar]:
    """A bar for each class; so many of the first are marked."""
    return [
        ScoreBar(each.label.name.replace("_", " "), 100 * each.probability, present=place < present)
        for place, each in enumerate(ranked)
    ]


def digits(number: float) -> str:
    """A number of float32 for people: as many digits as it has."""
    return f"{number:.6g}" if math.isfinite(number) else "not a number"


def counted(count: int) -> str:
    """How many numbers, in words: "512 numbers"."""
    return f"{count:,} number{'' if count == 1 else 's'}"


def listed(output: Any) -> str:
    """One number a line, or of nested lists the JSON."""
    if all(isinstance(each, float) for each in output):
        return "\n".join(digits(each) for each in output)
    return msgspec.json.encode(output).decode()


def as_json(value: Any, *, indent: int = 0) -> str:
    """JSON, on one line or indented."""
    text = msgspec.json.encode(value)
    return (msgspec.json.format(text, indent=indent) if indent else text).decode()


def sentence(text: str) -> str:
    """The API's sentences begin small and end without a point."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


FILTERS: dict[str, Callable[..., Any]] = {
    each.__name__: each for each in (bars, digits, counted, listed, as_json, sentence)
}
LIMITS = {"TOP_K": TOP_K, "MOST_BARS": MOST_BARS, "FIRST_NUMBERS": FIRST_NUMBERS, "LONGEST_SHOWN": LONGEST_SHOWN}
"""What the templates know beside what they are given."""
