"""The native protocol: from bodies to payloads, and from outcomes to the recipes' answers.

one part `file`, or a raw body     the answer of the model's task: `flambeau.tasks`
one part `image`                   the same, but from a classifier {"class_index": ..., "probabilities": [...]}
JSON {"input": x}                  {"output": y}
JSON {"input": "a text"}           the answer of the model's task; a list of texts as several parts
several parts                      {"predictions": [...]} in the order sent; a bad one fails alone
Accept: a type the task renders    the task's rendering; one bad item fails the request
"""

import asyncio
import functools
import re
import time
from collections.abc import Sequence
from typing import Literal

import msgspec

from flambeau.answers import Asked, PartName
from flambeau.errors import RequestError
from flambeau.pipelines import json_document
from flambeau.protocols import multipart
from flambeau.protocols.errors import answers_of, error_answer, error_body
from flambeau.protocols.messages import JSON, HttpAnswer, HttpRequest, media_type_of, prefers
from flambeau.protocols.multipart import Part
from flambeau.protocols.parameters import (
    BITS,
    FORM_PARTS,
    MASK,
    MAX_DETECTIONS,
    THRESHOLD,
    TIMEOUT,
    TOP_K,
    BodyForm,
    reading_of,
    refuse_idle,
)
from flambeau.serving.model import Model
from flambeau.serving.service import Service
from flambeau.settings.service import Settings
from flambeau.tasks import TASKS, Renderer, TaskName
from flambeau.types import Options, Outcome, Payload, Timings

_TIMEOUT = TIMEOUT.name.lower()
_PLAIN_ENCODINGS = ("", "7bit", "8bit", "binary")
_FILE_NAME = re.compile(rb"[^\x00-\x1f\x7f]{1,255}\.[A-Za-z0-9]{2,5}")
_BASE64 = re.compile(rb"(?:data:[^,]{0,200},)?[A-Za-z0-9+/=_\s-]{64,}")

LARGEST_TEXTS = 2**20
"""Bytes of a document with texts, which are separated on the loop: about a millisecond."""

_LIST = msgspec.json.Decoder(list[msgspec.Raw])

_BYTES_AT_ONCE = 32 * 1024  # of vectors encoded before the loop gets another turn: about a millisecond


class Call(msgspec.Struct, frozen=True):
    """A parsed request: its items (or the error of an item) and the options for them.

    `top_k`: how many classes to rank, if the client asked. `rendered`: the media type of the answer and its renderer,
    if that is not JSON.
    """

    items: list[tuple[PartName, Payload | RequestError]]
    options: Options
    top_k: int | None
    rendered: tuple[str, Renderer] | None = None


class Answered(msgspec.Struct, frozen=True):
    """An answer, with what only the log and the trace need.

    `error`: that of the request, or of its only item. `timings`: one per item. `queued`: `time.monotonic()` when the
    items were handed to the model.
    """

    http: HttpAnswer
    error: RequestError | None
    timings: Sequence[Timings]
    queued: float


async def answer(service: Service, model: Model, request: HttpRequest) -> Answered:
    """Answer a prediction request to `model`. Raises `RequestError` for a request that fails as a whole."""
    try:
        call = await read(request, model.kind, service.settings, task=model.task)
        timeout = _timeout(request, service.settings.deadline)
    except RequestError as error:
        model.metrics.rejected(error.code)
        raise
    queued = time.monotonic()
    [(form, only), *others] = call.items
    if not others and isinstance(only, Payload):  # nearly always
        outcomes = [(form, (await service.predict(model, (only,), call.options, timeout=timeout))[0])]
    else:
        payloads = [payload for _, payload in call.items if isinstance(payload, Payload)]
        computed = iter(await service.predict(model, payloads, call.options, timeout=timeout) if payloads else [])
        outcomes = [
            (form, next(computed) if isinstance(payload, Payload) else Outcome(payload)) for form, payload in call.items
        ]
    timings = [outcome.timings for _, outcome in outcomes]
    first = outcomes[0][1].result
    if len(outcomes) == 1 and isinstance(first, RequestError):
        return Answered(error_answer(first, request.identity), first, timings, queued)
    return Answered(await render(call, outcomes, request_id=request.identity), None, timings, queued)


async def read(request: HttpRequest, kind: str, settings: Settings, *, task: TaskName) -> Call:
    """Parse a request to a model of that kind (`image`, `text`, `audio`, `tensor` or `python`). Raises `RequestError`.

    Yields to the event loop while it parses a long form.
    """
    refuse_compressed(request)
    items = await _read_items(request, kind, settings)
    if len(items) > settings.max_items:
        raise RequestError(
            f"the request has {len(items)} items: the most is {settings.max_items} (--max-items)", code="too_many_items"
        )
    if request.charge is not None:
        request.charge(len(items) - 1)
    offered, rendered = TASKS[task].media_types, None
    if offered and (accept := request.headers.get("accept")):
        rendered = next((each for each in offered.items() if prefers(accept, each[0], over=JSON)), None)
    if rendered is not None and rendered[0].startswith("image/") and len(items) > 1:
        raise RequestError(
            f"one {rendered[0]} answers one image, and the request has {len(items)}: send them one by one, or accept "
            "JSON",
            code="bad_request",
        )
    masks = rendered is None and "mask" in TASKS[task].parameters
    options, top_k = _NO_OPTIONS, None
    if request.query:
        refuse_idle(request, task)
    if request.query or items[0][0] == "image" or len(items) > 1 or masks:
        top_k, most = TOP_K.read(request), MAX_DETECTIONS.read(request)
        mask = MASK.read(request) or "png"
        options = Options(
            top_k=int(top_k or 1),
            threshold=THRESHOLD.read(request),
            probabilities=any(form == "image" for form, _ in items),
            most=None if most is None else int(most),
            mask=mask if masks else None,  # type: ignore[arg-type]
            bits=int(BITS.read(request) or 8),
        )
    return Call(items, options, None if top_k is None else int(top_k), rendered)


_NO_OPTIONS = Options()


def refuse_compressed(request: HttpRequest) -> None:
    """Raise `RequestError` for a body that is compressed."""
    encoding = request.headers.get("content-encoding")
    if encoding is not None and encoding.lower() != "identity":
        raise RequestError(
            "compressed bodies are not supported: send the body uncompressed", code="unsupported_content_encoding"
        )


async def _read_items(
    request: HttpRequest, kind: str, settings: Settings
) -> list[tuple[PartName, Payload | RequestError]]:
    media_type, reading = _reading_of(request.headers.get("content-type", ""))
    if kind == "audio" and media_type.startswith("audio/"):
        reading = "raw"
    if not request.body:
        if media_type and reading == "raw" and kind in ("image", "audio"):  # the body is the file, and has no bytes
            raise RequestError("the file is empty", code="empty_body")
        raise _nothing_sent(kind, code="empty_body")
    if reading == "form":
        content_type = request.headers["content-type"]
        parts = await multipart.parse(request.body, content_type, max_parts=settings.max_items)
        items = [(name, _file(part, kind)) for part in parts for name in FORM_PARTS if part.name == name]
        if not items:
            raise _nothing_sent(kind, code="missing_file")
        if len(items) == 1 and isinstance(items[0][1], RequestError):
            raise items[0][1]
        return items
    if reading == "json" and kind == "text":
        found = texts(request.body, max_depth=settings.max_json_depth, most=settings.max_items)
        return [("file", payload) for payload in found]
    if reading == "json":
        return [("file", document(request.body, kind, max_depth=settings.max_json_depth))]
    if reading == "raw":
        return [("file", Payload("file", request.body))]
    if media_type == "application/x-www-form-urlencoded" and kind == "image":
        raise _nothing_sent(kind, code="missing_file")  # a form without files: the usual mistake with the recipe
    files = {"image": "multipart form data or an image", "audio": "multipart form data or a sound file"}
    wanted = files.get(kind, "JSON with the header Content-Type: application/json")
    raise RequestError(f"this Content-Type is not supported: send {wanted}", code="unsupported_media_type")


@functools.lru_cache(maxsize=64)
def _reading_of(content_type: str) -> tuple[str, BodyForm | None]:
    media_type = media_type_of(content_type)
    return media_type, reading_of(media_type)


def document(body: bytes | memoryview, kind: str, *, max_depth: int) -> Payload:
    """A JSON document as a payload: its input, or the whole document where the replica is to parse it.

    Replicas parse long documents, which would hold up the loop, and those for image models, which carry base64.
    """
    if kind in ("image", "audio") or len(body) > json_document.SHORT:
        return Payload("document", body)
    return Payload("json", json_document.read_input(bytes(body), max_depth=max_depth))


def texts(body: bytes | memoryview, *, max_depth: int, most: int) -> list[Payload]:
    """The texts of a JSON document: one, or those of a list. Raises `RequestError`.

    They are separated here, because each is an item with an answer, or an error, of its own.
    """
    if len(body) > LARGEST_TEXTS:
        raise RequestError(
            f"the JSON has {len(body):,} bytes, and the most is {LARGEST_TEXTS:,}: send the texts in parts",
            code="body_too_large",
        )
    value = json_document.read_input(bytes(body), max_depth=max_depth)
    if bytes(value[:1]) != b"[":
        return [Payload("json", value)]
    count = json_document.elements_of(bytes(value)) if bytes(value[1:]).strip() != b"]" else 0
    if count > most:
        raise RequestError(f"the request has {count} items: the most is {most} (--max-items)", code="too_many_items")
    if not count:
        raise RequestError('there is no text in the list: send {"input": "a sentence"}', code="input_rejected")
    return [Payload("json", memoryview(each)) for each in _LIST.decode(value)]


def _file(part: Part, kind: str) -> Payload | RequestError:
    """The file in a part; or the error that says what was sent instead, and how to send a file."""
    if not part.data:
        return RequestError("the file is empty", code="empty_body")
    where = f"the part '{part.name}'"
    if part.encoding not in _PLAIN_ENCODINGS:
        return RequestError(
            f"{where} is encoded (Content-Transfer-Encoding): send the file's bytes as they are",
            code="unsupported_content_encoding",
        )
    if kind == "image" and not part.is_file:
        start = bytes(part.data[:1024])
        if len(part.data) <= 260 and _FILE_NAME.fullmatch(start):
            return RequestError(
                f"{where} is the name of a file, not a file: send its contents (with curl: -F file=@NAME)",
                code="missing_file",
            )
        if _BASE64.fullmatch(start):
            return RequestError(
                f"{where} is base64 text: send the file's bytes as they are, "
                'or JSON: {"image": "<the file in base64>"}',
                code="unsupported_content_encoding",
            )
    return Payload("file", part.data)


def _nothing_sent(kind: str, *, code: Literal["empty_body", "missing_file"]) -> RequestError:
    if kind == "image":  # the second recipe's own sentence: its clients compare it
        return RequestError("no image part", code=code, hint="send the image as multipart form field 'file' or 'image'")
    if kind in ("text", "tensor") and code == "missing_file":
        what = "texts" if kind == "text" else "numbers"
        return RequestError(f'this model takes {what}, not a form: send JSON like {{"input": ...}}', code=code)
    if code == "missing_file" or kind == "audio":
        return RequestError("no file part", code=code, hint="send the file as multipart form field 'file'")
    return RequestError('the body is empty: send JSON like {"input": ...}', code=code)


def _timeout(request: HttpRequest, most: float) -> float:
    """The seconds this request may take: the server's deadline, which X-Request-Timeout-Ms can lower."""
    if _TIMEOUT not in request.headers:
        return most
    milliseconds = TIMEOUT.read(request)
    return most if milliseconds is None else min(most, milliseconds / 1000)


async def render(call: Call, outcomes: Sequence[tuple[PartName, Outcome]], *, request_id: str) -> HttpAnswer:
    """The answer to a request: that of its only item, or a list with the items' errors in their places.

    Long vectors are encoded item by item, and the loop gets a turn in between.
    """
    if len(outcomes) == 1 and call.rendered is None:
        [(form, only)] = outcomes
        if not isinstance(only.result, RequestError):  # nearly always
            asked = _PLAINLY if form == "file" and call.top_k is None else Asked(form, call.top_k)
            nonfinite = only.result.nonfinite
            headers = _told(nonfinite) if nonfinite else ()
            return HttpAnswer(200, _ENCODER.encode(only.result.body(asked)), JSON, headers)
    results = [outcome.result for _, outcome in outcomes]
    headers = _told(sum(result.nonfinite for result in results if not isinstance(result, RequestError)))
    if call.rendered is not None:
        return _rendered(*call.rendered, [each for _, each in outcomes], headers, request_id=request_id)
    texts: list[bytes] = []
    written = 0
    for (form, _), result in zip(outcomes, results, strict=True):
        if isinstance(result, RequestError):
            texts.append(msgspec.json.encode(error_body(result, request_id)))
            continue
        texts.append(msgspec.json.encode(result.body(Asked(form, call.top_k))))
        written += result.size
        if written > _BYTES_AT_ONCE:
            written = 0
            await asyncio.sleep(0)
    text = texts[0] if len(texts) == 1 else b'{"predictions":[' + b",".join(texts) + b"]}"
    return HttpAnswer(200, text, headers=headers)


_PLAINLY = Asked()
_ENCODER = msgspec.json.Encoder()


def _told(nonfinite: int) -> tuple[tuple[str, str], ...]:
    return (("X-Nonfinite-Outputs", str(nonfinite)),) if nonfinite else ()


def _rendered(
    media_type: str,
    renderer: Renderer,
    outcomes: Sequence[Outcome],
    headers: tuple[tuple[str, str], ...],
    *,
    request_id: str,
) -> HttpAnswer:
    """The answers in a form other than JSON. It has no place for an error, so the first error answers the request."""
    try:
        answers = answers_of(outcomes, noun="item")
    except RequestError as failed:
        return error_answer(failed, request_id)
    return HttpAnswer(200, renderer(answers), media_type, headers)
