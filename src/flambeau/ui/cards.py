"""What the page shows of an outcome, as plain values: the same card that the script fills in."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from flambeau.answers import Classification, Embedding, MultiLabel, Regression, Scored, Value
from flambeau.errors import RequestError
from flambeau.types import Outcome, Timings

_LONGEST_SHOWN = 64 * 1024  # bytes; to write more takes so long that others would notice

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
    """The answer to one item, or the error that it met. `text` are the numbers or JSON, `more` the rest of it."""

    title: str = ""
    bars: tuple[ScoreBar, ...] = ()
    recognised: bool = True
    note: str = ""
    text: str = ""
    more: str = ""
    error: str = ""
    hint: str = ""
    stages: tuple[Stage, ...] = ()

    @property
    def milliseconds(self) -> float:
        """The whole time."""
        return sum(stage.milliseconds for stage in self.stages)


def cards_of(outcomes: Sequence[Outcome]) -> list[Card]:
    """One card for each outcome, in order."""
    return [_card(outcome) for outcome in outcomes]


def refused(error: RequestError) -> Card:
    """The card of a request, or an item, that failed."""
    return Card(title="Not answered", error=_sentence(error.message), hint=error.hint or "")


def _card(outcome: Outcome) -> Card:
    result = outcome.result
    if isinstance(result, RequestError):
        return refused(result)
    return dataclasses.replace(_CARDS[type(result)](result), stages=_stages(outcome.timings))


def _classification(answer: Classification) -> Card:
    bars = tuple(_bar(each) for each in answer.top)
    if not answer.recognised:
        return Card("Not recognised", bars, recognised=False, note=_sentence(answer.reason))
    return Card(bars[0].name, bars)


def _multi_label(answer: MultiLabel) -> Card:
    present = answer.labels
    bars = tuple(
        dataclasses.replace(_bar(each), present=place < len(present))
        for place, each in enumerate(answer.top[: max(TOP_K, min(len(present), MOST_BARS))])
    )
    title = ", ".join(bar.name for bar in bars if bar.present) or "No label"
    note = f"Marked are the labels whose score is {100 * answer.threshold:g} % or more."
    if len(present) > MOST_BARS:
        title, note = f"{len(present)} labels", f"{note} The first {MOST_BARS} are shown."
    return Card(title, bars, recognised=bool(present), note=note)


def _regression(answer: Regression) -> Card:
    output = answer.output
    if isinstance(output, float):
        return Card(shown(output))
    if answer.size > _LONGEST_SHOWN:
        return Card(counted(answer.size // 8), note="They are more than this page shows: ask the API for them.")
    return Card(f"{counted(answer.size // 8)}", text=_listed(output))


def _embedding(answer: Embedding) -> Card:
    numbers = answer.embedding.tolist()
    first = ", ".join(shown(each) for each in numbers[:FIRST_NUMBERS])
    rest = len(numbers) > FIRST_NUMBERS
    return Card(
        f"A vector of {counted(len(numbers))}",
        text=first + (", …" if rest else ""),
        more=msgspec.json.encode(numbers).decode() if rest else "",
    )


def _value(answer: Value) -> Card:
    if len(answer.json) > _LONGEST_SHOWN:
        note = f"The answer has {len(answer.json):,} bytes, more than this page shows: ask the API for it."
        return Card("Answer", note=note)
    return Card("Answer", text=msgspec.json.format(answer.json, indent=2).decode())


_CARDS: dict[type, Callable[[Any], Card]] = {
    Classification: _classification,
    MultiLabel: _multi_label,
    Regression: _regression,
    Embedding: _embedding,
    Value: _value,
}
"""The card of each answer; no form sends a payload of kind `value`, which a `Plain` would answer."""


def _bar(scored: Scored) -> ScoreBar:
    return ScoreBar(scored.label.name.replace("_", " "), 100 * scored.probability)


def shown(number: float) -> str:
    """A number of float32 for people: as many digits as it has."""
    return f"{number:.6g}" if math.isfinite(number) else "not a number"


def counted(count: int) -> str:
    """How many numbers, in words: "512 numbers"."""
    return f"{count:,} number{'' if count == 1 else 's'}"


def _listed(output: Any) -> str:
    """One number a line, or of nested lists the JSON."""
    if all(isinstance(each, float) for each in output):
        return "\n".join(shown(each) for each in output)
    return msgspec.json.encode(output).decode()


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


def _sentence(text: str) -> str:
    """The API's sentences begin small and end without a point."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
