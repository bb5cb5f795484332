"""What the page shows of an outcome, as plain values: the same card that the script fills in."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import msgspec

from flambeau.errors import RequestError
from flambeau.types import Classification, Outcome, Timings, Value
from flambeau.web.predict import not_recognised

TOP_K = 5
"""How many classes the page ranks."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One class: its name for people, and its probability in percent."""

    name: str
    percent: float

    def __str__(self) -> str:
        """The probability for people."""
        return f"{self.percent:.1f} %" if self.percent >= 0.05 else "< 0.1 %"


@dataclass(frozen=True, slots=True)
class Stage:
    """Where time went: `start` and `share` are percent of the whole."""

    name: str
    milliseconds: float
    start: float
    share: float


@dataclass(frozen=True, slots=True)
class Card:
    """The answer to one item, or the error that it met."""

    title: str = ""
    bars: tuple[Bar, ...] = ()
    recognised: bool = True
    note: str = ""
    text: str = ""
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
    stages = _stages(outcome.timings)
    if isinstance(result, Classification):
        bars = tuple(Bar(each.label.name.replace("_", " "), 100 * each.probability) for each in result.top)
        if not result.recognised:
            return Card("Not recognised", bars, recognised=False, note=_sentence(not_recognised(result)), stages=stages)
        return Card(bars[0].name, bars, stages=stages)
    assert isinstance(result, Value)  # no form sends a payload of kind `value`
    return Card("Answer", text=msgspec.json.format(result.json, indent=2).decode(), stages=stages)


def _stages(timings: Timings) -> tuple[Stage, ...]:
    spent = {stage.name: 1000 * getattr(timings, stage.name) for stage in fields(timings)}
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
