"""Turns the service's answers into plain objects, and its errors into exceptions."""

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any

from urllib3 import BaseHTTPResponse

from flambeau.errors import FlambeauError

# The exceptions of a client:
#
#     ClientError
#     ├── Refused         the server answered with an error
#     ├── NoAnswer        there was no answer: no connection, a broken one, or no time left
#     └── InputNotSent    the input cannot be read or sent; the server was not asked


class ClientError(FlambeauError):
    """A prediction failed.

    `code` is a word for programs, and `retryable` says whether the same request may succeed later. `status` is the HTTP
    status, `None` without an answer; `request_id` is the id in the server's log; `hint` is a second sentence, or
    `None`. `attempts` counts how often the server was asked.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        retryable: bool = False,
        status: int | None = None,
        request_id: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retryable = retryable
        self.status = status
        self.request_id = request_id
        self.hint = hint
        self.attempts = 0


class Refused(ClientError):
    """The server answered with an error. `code` is one of docs/protocols.md, or, if something else answered (a proxy),
    `http_` and the status, such as `http_502`.

    `several_answers`: it answered a list of texts, each by itself. `retry_after` is the server's Retry-After in
    seconds, or `None`.
    """

    retry_after: float | None = None


class NoAnswer(ClientError):
    """There was no answer: `code` is `connection_failed`, or `timeout` when the time ran out."""


class InputNotSent(ClientError, ValueError):
    """The input cannot be read or sent, and the server was not asked. `code` is `input_unreadable`."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="input_unreadable")


_RETRYABLE_WITHOUT_A_BODY = (429, 502, 503, 504)
_STAGE = re.compile(r"(\w+);dur=([\d.]+)")


@dataclass(frozen=True, slots=True)
class RankedClass:
    """A class with its probability, 0 to 1."""

    class_id: str
    class_name: str
    probability: float


@dataclass(frozen=True, slots=True)
class ScoredLabel:
    """A label with its score, 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object with its score, 0 to 1, and its box in pixels of the picture, from the upper left corner.

    `mask`: of a network that makes masks, the bytes of a PNG file, grey, 255 where the object is. `rle`: the same with
    `mask="rle"`, `{"size": [height, width], "counts": text}`, as `pycocotools.mask.decode` takes it; `mask` is empty
    then. `keypoints`: of one that finds them, the points of the object.
    """

    label: str
    score: float
    class_index: int
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    mask: bytes = field(default=b"", repr=False)
    rle: Mapping[str, Any] | None = field(default=None, repr=False)
    keypoints: "tuple[Keypoint, ...]" = ()


@dataclass(frozen=True, slots=True)
class Keypoint:
    """A point of an object in pixels of the picture, with the network's own score; and its name, if that is known."""

    x: float
    y: float
    score: float
    name: str | None = None


@dataclass(frozen=True, slots=True)
class FoundSegment:
    """A class in a picture: the mean probability of its pixels, how many they are, and its mask.

    The mask is the bytes of a PNG file, grey, 255 where the class is; or empty, with `rle` as an object has it.
    """

    label: str
    score: float
    class_index: int
    pixels: int
    mask: bytes = field(repr=False)
    rle: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer to one input.

    An image classifier sets `class_id` and `class_name` (both `None` when nothing was recognised; then `reason` says
    why), `top`, the best classes if `top_k` was given, and `class_index` and `probabilities` (of all classes) if those
    were asked for. A multi-label model sets `labels`, those whose score reaches the threshold, best first, and `scores`
    of all classes, in the model's order. An embedding model sets `embedding`. An object detector sets `objects`, best
    first, and `size`, the width and height of the picture in pixels. A segmenter sets `segments` and `size`. A network
    that makes pictures sets `picture`, the bytes of a PNG file, and `size`, its own. Any other model, a regression too,
    sets `output`; a network over numbers with several outputs sets `outputs`, by name. In numbers, NaN stands for a
    number that JSON does not have. `stages` are the seconds that the server spent, by stage; `attempts` is how often it
    was asked.
    """

    raw: bytes = field(repr=False)
    request_id: str
    class_id: str | None = None
    class_name: str | None = None
    reason: str | None = None
    top: tuple[RankedClass, ...] = ()
    class_index: int | None = None
    probabilities: tuple[float, ...] = field(default=(), repr=False)
    labels: tuple[ScoredLabel, ...] = ()
    scores: tuple[float, ...] = field(default=(), repr=False)
    embedding: tuple[float, ...] = field(default=(), repr=False)
    objects: tuple[FoundObject, ...] = ()
    segments: tuple[FoundSegment, ...] = ()
    picture: bytes = field(default=b"", repr=False)
    size: tuple[int, int] | None = None
    output: Any = None
    outputs: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict, repr=False)
    attempts: int = 1

    @property
    def recognised(self) -> bool:
        """Whether something was recognised; if not, `reason` says why."""
        return self.reason is None

    def json(self) -> Any:
        """The answer as the server sent it."""
        return json.loads(self.raw)


def read(response: BaseHTTPResponse, *, request_id: str, attempts: int) -> Prediction:
    """The prediction in a response. Raises `Refused` for an error, and for an answer that is not a service's."""
    identity = response.headers.get("X-Request-ID", request_id)
    try:
        body = json.loads(response.data)
    except ValueError:
        body = None
    if response.status != 200 or not isinstance(body, dict):
        raise _refusal(response, body, identity)
    if body.keys() == {"predictions"}:  # not the ranking of one input, which has its best class beside it
        raise Refused(
            f"the list was taken for {len(body['predictions'])} inputs, and a Prediction is the answer to one: send "
            "each by itself, with predict_many(texts, as_json=True)",
            code="several_answers",
            status=response.status,
            request_id=identity,
        )
    image = body.get("image")  # only the answers about places in a picture have it
    ranked, found = ((), body["predictions"]) if image else (body.get("predictions", ()), ())
    boxes = [each for each in found if "box" in each]
    top = tuple(RankedClass(each["class_id"], each["class_name"], each["probability"]) for each in ranked)
    index = body.get("class_index")
    named = top[0] if index is not None and top else None  # with probabilities, only the ranking has the class's name
    return Prediction(
        raw=response.data,
        request_id=identity,
        class_id=named.class_id if named else body.get("class_id"),
        class_name=named.class_name if named else body.get("class_name"),
        reason=body.get("reason"),
        top=top,
        class_index=index,
        probabilities=tuple(body.get("probabilities") or ()),
        labels=tuple(ScoredLabel(each["label"], each["score"]) for each in body.get("labels", ())),
        scores=_numbers(body.get("scores")),
        embedding=_numbers(body.get("embedding")),
        objects=tuple(map(_object, boxes)),
        segments=() if boxes else tuple(map(_segment, found)),
        picture=base64.b64decode(body.get("picture") or ""),
        size=_size(image or body),
        output=body.get("output"),
        outputs=body.get("outputs") or {},
        stages=_stages(response.headers.get("Server-Timing", "")),
        attempts=attempts,
    )


def read_object(response: BaseHTTPResponse, *, request_id: str) -> dict[str, Any]:
    """The JSON object of an answer about models. Raises `Refused` for an error."""
    try:
        body = json.loads(response.data)
    except ValueError:
        body = None
    if response.status not in (200, 201) or not isinstance(body, dict):
        raise _refusal(response, body, response.headers.get("X-Request-ID", request_id))
    return body


def _object(each: dict[str, Any]) -> FoundObject:
    box = {name: _number(number) for name, number in each["box"].items()}
    points = tuple(
        Keypoint(_number(point["x"]), _number(point["y"]), _number(point["score"]), point.get("name"))
        for point in each.get("keypoints", ())
    )
    mask, rle = _mask(each.get("mask"))
    return FoundObject(
        each["label"], _number(each["score"]), each["class_index"], **box, mask=mask, rle=rle, keypoints=points
    )


def _size(sized: dict[str, Any]) -> tuple[int, int] | None:
    return (sized["width"], sized["height"]) if "width" in sized and "height" in sized else None


def _segment(each: dict[str, Any]) -> FoundSegment:
    mask, rle = _mask(each["mask"])
    return FoundSegment(each["label"], _number(each["score"]), each["class_index"], each["pixels"], mask, rle)


def _mask(sent: str | dict[str, Any] | None) -> tuple[bytes, Mapping[str, Any] | None]:
    """A mask as a file, or as runs."""
    return (b"", sent) if isinstance(sent, dict) else (base64.b64decode(sent or ""), None)


def _numbers(listed: Any) -> tuple[float, ...]:
    return tuple(map(_number, listed or ()))


def _number(sent: float | None) -> float:
    return math.nan if sent is None else sent


def _refusal(response: BaseHTTPResponse, body: Any, identity: str) -> Refused:
    told = body if isinstance(body, dict) and "code" in body else {}
    status = response.status
    refused = Refused(
        str(told.get("error") or f"the answer, with status {status}, is not one of Flambeau's: is the address right?"),
        code=str(told.get("code", f"http_{status}")),
        retryable=bool(told.get("retryable", status in _RETRYABLE_WITHOUT_A_BODY)),
        status=status,
        request_id=str(told.get("request_id", identity)),
        hint=told.get("hint"),
    )
    refused.retry_after = _seconds(response.headers.get("Retry-After"))
    return refused


def _seconds(text: str | None) -> float | None:
    """Retry-After, in seconds or as a date (RFC 9110, 10.2.3)."""
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _stages(text: str) -> Mapping[str, float]:
    return MappingProxyType({name: float(milliseconds) / 1000 for name, milliseconds in _STAGE.findall(text)})
