"""The page's cards for outcomes, as plain values, and the filters that the cards' templates use.

A task's card is the template of its name in `templates/cards`, rendered with the answer. A task without a template has
the card `any`, which shows the answer as JSON. The page's script fills in the same cards.
"""

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import msgspec
import numpy as np

from flambeau.answers import Answer, Asked, Scored, label_maps, png
from flambeau.errors import RequestError
from flambeau.tasks.instance_segmentation import InstanceSegmentation
from flambeau.tasks.object_detection import Detected
from flambeau.tasks.semantic_segmentation import SemanticSegmentation
from flambeau.types import Outcome, Timings
from flambeau.ui.form import TOP_K
from flambeau.ui.sent import Sent
from flambeau.ui.values import counted, digits, rounds, title, written

LONGEST_SHOWN = 64 * 1024  # bytes; rendering more takes so long that other requests would suffer

MOST_BARS = 20
"""The most labels that the page shows, if more reach the threshold."""

_LONGEST_LAYER = 1024  # pixels of a mask's longer side: more would only cost the browser memory

FEW_CARDS = 4
"""More cards than these are shown side by side, and small."""

ROUNDED = "Rounded to six digits; the download has every one."

_LARGEST_RESULT = 4 * 1024 * 1024  # bytes of JSON
_MOST_DRAWN = 200_000_000  # pixels of masks in it, each a file of the picture's size: half a second
LARGEST_FILE = 8 * 1024 * 1024
"""The most bytes of a picture that are put into the page."""

_LONGEST_STEM = 80  # characters of a file's name: a question is longer

FIRST_NUMBERS = 8
"""How many numbers of a vector the page shows."""


_NOTHING = Sent()


@dataclass(frozen=True, slots=True)
class ScoreBar:
    """One class: its name for people, its probability in percent, and whether it is marked as present."""

    name: str
    percent: float
    present: bool = False

    def __str__(self) -> str:
        """The probability as text: "12.5 %"."""
        if not math.isfinite(self.percent):
            return "not a number"
        return f"{self.percent:.1f} %" if self.percent >= 0.05 else "< 0.1 %"

    @property
    def width(self) -> float:
        """The bar's length in percent."""
        return min(max(self.percent, 0.0), 100.0) if math.isfinite(self.percent) else 0.0


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the time spent. `start` and `share` are percent of the total."""

    name: str
    milliseconds: float
    start: float
    share: float


@dataclass(frozen=True, slots=True)
class Card:
    """The answer to one item, or its error, with the stages of the time spent.

    `retryable`: whether the same item may be answered later.
    """

    answer: Answer | None = None
    error: str = ""
    hint: str = ""
    retryable: bool = False
    stages: tuple[Stage, ...] = ()
    sent: Sent = _NOTHING

    @property
    def result(self) -> str:
        """The answer's body as a `data:` address of a JSON file; empty if it is larger than a page should be."""
        answer = self.answer
        if answer is None or answer.size > _LARGEST_RESULT:
            return ""
        if isinstance(answer, InstanceSegmentation) and len(answer.found) * answer.width * answer.height > _MOST_DRAWN:
            return ""
        body = msgspec.json.encode(answer.body(Asked()))
        return f"data:application/json;base64,{base64_of(body)}" if len(body) <= _LARGEST_RESULT else ""

    @property
    def file(self) -> str:
        """What a file of this answer is called, without its ending: as the file that was sent."""
        stem = PurePath(self.sent.name.replace("\\", "/")).stem
        return stem if stem and len(stem) <= _LONGEST_STEM else "answer"


def cards_of(outcomes: Sequence[Outcome], sent: Sequence[Sent]) -> list[Card]:
    """One card for each outcome, in order, with what was sent."""
    return [_card(outcome, each) for outcome, each in zip(outcomes, sent, strict=True)]


def refused(error: RequestError, sent: Sent = _NOTHING) -> Card:
    """The card of a failed request or item."""
    return Card(error=sentence(error.message), hint=error.hint or "", retryable=error.retryable, sent=sent)


def _card(outcome: Outcome, sent: Sent) -> Card:
    result = outcome.result
    if isinstance(result, RequestError):
        return refused(result, sent)
    return Card(result, stages=_stages(outcome.timings), sent=sent)


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


# The filters of the templates.


def bars(ranked: Sequence[Scored], present: int = 0) -> list[ScoreBar]:
    """A bar for each class; the first `present` are marked."""
    return [
        ScoreBar(each.label.name.replace("_", " "), 100 * each.probability, present=place < present)
        for place, each in enumerate(ranked)
    ]


def detected(found: Sequence[Detected]) -> list[ScoreBar]:
    """A bar for each object, with its box in whole pixels: "cat, 12 to 80 across, 5 to 60 down"."""
    return [
        ScoreBar(
            f"{each.label.replace('_', ' ')}, {_span(each.box[0::2])} across, {_span(each.box[1::2])} down",
            100 * each.score,
        )
        for each in found
    ]


@dataclass(frozen=True, slots=True)
class Layer:
    """A class or an object of a segmented picture: its bar, its colour as CSS has it, and its mask in it, a PNG file.

    `name`: of its switch. `shown`: whether it is laid over the picture at first; the background is not.
    """

    bar: ScoreBar
    name: str
    colour: str
    png: bytes
    shown: bool


def layers(answer: SemanticSegmentation) -> list[Layer]:
    """A layer for each class, the largest first; their masks are reduced where the picture is large."""
    step = -(-max(answer.width, answer.height) // _LONGEST_LAYER)
    labels = answer.labels[::step, ::step]
    whole = answer.width * answer.height
    palette = label_maps.colours(1 + max((each.index for each in answer.found), default=0))
    found = []
    for each in sorted(answer.found, key=lambda each: -each.pixels)[:MOST_BARS]:
        colour = palette[each.index]
        mask = (labels == each.index).view(np.uint8)
        file = png.write(mask, palette=np.stack([np.zeros(3, np.uint8), colour]), clear=0)
        bar = ScoreBar(each.label.replace("_", " "), 100 * each.pixels / whole)
        found.append(Layer(bar, bar.name, "#" + colour.tobytes().hex(), file, shown=each.index > 0))
    return found


def instances(answer: InstanceSegmentation) -> list[Layer]:
    """A layer for each of the first objects; their masks are reduced where the picture is large."""
    step = -(-max(answer.width, answer.height) // _LONGEST_LAYER)
    palette = label_maps.colours(MOST_BARS + 1)
    found = []
    first = answer.found[:MOST_BARS]
    for place, (each, bar) in enumerate(zip(first, detected(first), strict=True)):
        mask = answer.mask(place)[::step, ::step].view(np.uint8)
        colour = palette[place + 1]
        file = png.write(mask, palette=np.stack([np.zeros(3, np.uint8), colour]), clear=0)
        name = f"{place + 1}. {each.label.replace('_', ' ')}"
        found.append(Layer(bar, name, "#" + colour.tobytes().hex(), file, shown=True))
    return found


def base64_of(data: bytes) -> str:
    """Bytes as base64 text."""
    return base64.b64encode(data).decode()


def _span(ends: Sequence[float]) -> str:
    return " to ".join(f"{end:.0f}" for end in ends)


def listed(output: Any) -> str:
    """One number per line; nested lists as JSON."""
    if all(isinstance(each, float) for each in output):
        return "\n".join(digits(each) for each in output)
    return written(output)


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays become lists, numbers that are not finite `None`."""
    return msgspec.json.decode(msgspec.json.encode(value))


def as_json(value: Any) -> str:
    """JSON on one line, with every digit."""
    return msgspec.json.encode(value).decode()


def megabytes(count: int) -> str:
    """Bytes in megabytes of a million bytes, as file managers count, never rounded up: "33.5 MB"."""
    return f"{math.floor(count / 100_000) / 10:g} MB" if count >= 100_000 else f"{count / 1000:g} kB"


def sentence(text: str) -> str:
    """An API message as a sentence: they start in lower case and have no full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


_FILTERS = (
    as_json, bars, base64_of, counted, detected, digits, instances, layers, listed, megabytes, plain, rounds, sentence,
    title, written,
)  # fmt: skip
FILTERS: dict[str, Callable[..., Any]] = {each.__name__: each for each in _FILTERS}
"""The filters of the templates, by name."""

LIMITS = {
    "TOP_K": TOP_K,
    "MOST_BARS": MOST_BARS,
    "FIRST_NUMBERS": FIRST_NUMBERS,
    "LONGEST_SHOWN": LONGEST_SHOWN,
    "LARGEST_FILE": LARGEST_FILE,
    "FEW_CARDS": FEW_CARDS,
    "ROUNDED": ROUNDED,
}
"""The globals of the templates."""
