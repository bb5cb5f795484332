"""The bodies and parameters of native requests: the one table for both validation and the OpenAPI document."""

import re
import typing
from dataclasses import dataclass, replace
from typing import Literal

from flambeau.answers import PartName
from flambeau.answers.schemas import RANKED
from flambeau.errors import RequestError
from flambeau.items import MaskForm
from flambeau.protocols.messages import HttpRequest
from flambeau.tasks import TASKS, TaskName
from flambeau.types import PipelineKind

BodyForm = Literal["form", "json", "raw"]
"""How a body is parsed: as multipart form data, as JSON, or as the bytes of one file."""

FORM_PARTS: tuple[PartName, ...] = ("file", "image")
"""The parts of a form that carry an item; other parts are ignored."""

MEDIA_TYPES: dict[BodyForm, tuple[str, ...]] = {
    "form": ("multipart/form-data",),
    "json": ("application/json",),
    "raw": ("application/octet-stream", "binary/octet-stream", "image/*"),
}
"""The content types of each body form. Also, no content type means `raw`, and any type that ends in `+json` is JSON."""

TAKEN: dict[PipelineKind, tuple[BodyForm, ...]] = {
    "image": ("form", "json", "raw"),
    "text": ("json",),
    "audio": ("form", "json", "raw"),
    "tensor": ("json",),
    "python": ("json", "form", "raw"),
}
"""The body forms that models of each kind take; their pipelines refuse the rest with `unsupported_media_type`."""

_WHOLE = re.compile(r"[0-9]{1,18}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,5})?")


def reading_of(media_type: str) -> BodyForm | None:
    """The form of a body with that content type; `None` if it is not supported.

    `media_type` is in lower case, without parameters, and empty if the request has none.
    """
    if media_type in MEDIA_TYPES["form"]:
        return "form"
    if media_type in MEDIA_TYPES["json"] or media_type.endswith("+json"):
        return "json"
    if not media_type or media_type.startswith("image/") or media_type in MEDIA_TYPES["raw"]:
        return "raw"
    return None


@dataclass(frozen=True, slots=True)
class Number:
    """A number in the query or in a header, from `least` to `most`, both included."""

    name: str
    place: Literal["query", "header"]
    whole: bool
    least: int
    most: int
    meaning: str
    example: float

    def read(self, request: HttpRequest) -> float | None:
        """The number in the request, an `int` for a whole number; `None` if it has none.

        Raises `RequestError` with code `bad_request`.
        """
        if self.place == "header":
            text = request.headers.get(self.name.lower())
            text = text and text.strip(" \t")
        else:
            text = self._from_query(request) if request.query else None
        if text is None:
            return None
        if (_WHOLE if self.whole else _DECIMAL).fullmatch(text):
            value = int(text) if self.whole else float(text)
            if self.least <= value <= self.most:
                return value
        kind = "a whole number" if self.whole else "a number"
        raise RequestError(f"{self._shown()} must be {kind} from {self.least} to {self.most}", code="bad_request")

    def _from_query(self, request: HttpRequest) -> str | None:
        given = request.parameters(self.name)
        if len(given) > 1:
            raise RequestError(f"{self._shown()} is given {len(given)} times: give it once", code="bad_request")
        return given[0] if given else None

    def _shown(self) -> str:
        return f"?{self.name}=" if self.place == "query" else self.name


@dataclass(frozen=True, slots=True)
class WordChoice:
    """One of a few words in the query."""

    name: str
    words: tuple[str, ...]
    meaning: str

    def read(self, request: HttpRequest) -> str | None:
        """The word in the request; `None` if it has none. Raises `RequestError` with code `bad_request`."""
        given = request.parameters(self.name) if request.query else []
        if len(given) > 1:
            raise RequestError(f"?{self.name}= is given {len(given)} times: give it once", code="bad_request")
        if given and given[0] not in self.words:
            raise RequestError(f"?{self.name}= must be {' or '.join(self.words)}", code="bad_request")
        return given[0] if given else None


TOP_K = Number(
    "top_k", "query", True, 1, 1000, RANKED, 5,
)  # fmt: skip
THRESHOLD = Number(
    "threshold", "query", False, 0, 1, "The lowest score at which a class counts.", 0.5,
)  # fmt: skip
MAX_DETECTIONS = Number(
    "max_detections", "query", True, 1, 1000, "How many objects to answer at most.", 10,
)  # fmt: skip
MASK = WordChoice("mask", typing.get_args(MaskForm), "The form of a mask.")
BITS = WordChoice("bits", ("8", "16"), "The bits of a sample.")
TIMEOUT = Number(
    "X-Request-Timeout-Ms", "header", True, 1, 10**9,
    "Milliseconds within which the answer is wanted. It can shorten the service's deadline, not lengthen it.", 2000,
)  # fmt: skip
_OF_TASKS = (TOP_K, THRESHOLD, MAX_DETECTIONS, MASK, BITS)


def refuse_idle(request: HttpRequest, task: TaskName) -> None:
    """Raise `RequestError` for a parameter of another task: as an option of a command, it is not ignored.

    Names that no task has are ignored: gateways add some of their own.
    """
    for each in _OF_TASKS:
        if each.name not in TASKS[task].parameters and request.parameters(each.name):
            raise RequestError(
                f"?{each.name}= has no effect on this model, whose task is {task}: leave it out", code="bad_request"
            )


def choices_of(task: TaskName) -> tuple[WordChoice, ...]:
    """The words with a meaning for a task, with that meaning; others are refused."""
    asked = TASKS[task].parameters
    return tuple(replace(each, meaning=asked[each.name]) for each in (MASK, BITS) if each.name in asked)


def numbers_of(task: TaskName) -> tuple[Number, ...]:
    """The numbers with a meaning for a task, with that meaning; others are refused."""
    asked = TASKS[task].parameters
    numbers = (TOP_K, THRESHOLD, MAX_DETECTIONS)
    return (*(replace(each, meaning=asked[each.name]) for each in numbers if each.name in asked), TIMEOUT)
