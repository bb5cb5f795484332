"""The page's form for a model: its fields, and the items that were entered.

It reads the parts of a submitted form; HTML and cards are made elsewhere. The fields are `file` (one for each file),
`input` (JSON text) and `number` (one for each number of the model's input, in row-major order).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import msgspec
import numpy as np

from flambeau.errors import RequestError
from flambeau.items import FREE
from flambeau.protocols import multipart
from flambeau.protocols.errors import STATUS
from flambeau.protocols.messages import HttpRequest
from flambeau.protocols.multipart import Part
from flambeau.protocols.native import document
from flambeau.serving.model import Model
from flambeau.serving.service import Service
from flambeau.system.machine import MIB
from flambeau.types import Options, Outcome, Payload, TensorSpec

_LONGEST_SHOWN = 64 * 1024  # bytes
_LONGEST_NUMBER = 400  # bytes; float64 has numbers of 309 digits

TOP_K = 5
"""How many classes the page ranks."""

MOST_NUMBERS = 32
"""The most number fields. A larger input is entered as JSON: nobody fills in more fields."""


@dataclass(frozen=True, slots=True)
class ModelForm:
    """The form of a model.

    `asks`: `pictures` for one or more images; `sound` for a sound file; `text` for a text; `numbers` for one field per
    number, or JSON; `json` for any JSON value, or a file if the model is a Python model. `fields`: the names of the
    numbers, which have the shape `shape` and are integers if `whole`. `files`: whether the form takes files. `inputs`:
    the names of the inputs, if there are several.
    """

    asks: Literal["pictures", "sound", "text", "numbers", "json"]
    fields: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    whole: bool = False
    files: bool = False
    inputs: tuple[str, ...] = ()

    @property
    def example(self) -> str:
        """An example input as JSON text, for the commands on the page."""
        if self.asks == "numbers":
            return msgspec.json.encode(_nested([0] * len(self.fields), self.shape)).decode()
        if self.asks == "text":
            return '"a sentence"'
        if self.inputs:
            return "{" + ", ".join(f'"{name}": […]' for name in self.inputs) + "}"
        return "3" if self.files else "[…]"


def form_of(model: Model) -> ModelForm:
    """The form for the model's own inputs."""
    if model.kind == "image":
        return ModelForm("pictures", files=True)
    if model.kind == "audio":
        return ModelForm("sound", files=True)
    if model.kind == "text":
        return ModelForm("text")
    inputs = model.bundle.manifest.inputs
    if model.kind == "tensor" and len(inputs) == 1 and _fits_fields(inputs[0]):
        [spec] = inputs
        return ModelForm("numbers", _field_names(spec), spec.shape, whole=np.dtype(spec.dtype).kind in "iu")
    return ModelForm(
        "json", inputs=tuple(spec.name for spec in inputs if len(inputs) > 1), files=model.kind == "python"
    )


def _fits_fields(spec: TensorSpec) -> bool:
    return FREE not in spec.shape and math.prod(spec.shape) <= MOST_NUMBERS and np.dtype(spec.dtype).kind in "fiu"


def _field_names(spec: TensorSpec) -> tuple[str, ...]:
    """`x[0]`, `x[1]`, …; the name alone for a single number."""
    places = product(*map(range, spec.shape))
    return tuple(f"{spec.name}[{', '.join(map(str, place))}]" if place else spec.name for place in places)


def read_form(form: ModelForm, parts: Sequence[Part], *, max_depth: int) -> list[Payload]:
    """The items in the order of the form, at least one.

    Files take precedence over JSON text, and JSON text over the number fields. Raises `RequestError` for an empty form.
    """
    if form.files and (files := [part.data for part in parts if part.name == "file" and part.data]):
        return [Payload("file", data) for data in files]
    if form.asks == "pictures":
        raise RequestError("no image was chosen", code="missing_file")
    if form.asks == "sound":
        raise RequestError("no sound file was chosen", code="missing_file")
    if len(_text(parts)) > MIB:
        raise RequestError(
            "the text is longer than the 1 MiB that this page takes", code="body_too_large", hint="the API takes more"
        )
    if form.asks == "text":
        return [_written_text(bytes(_text(parts)))]
    if text := bytes(_text(parts)).strip():
        return [document(b'{"input":' + text + b"}", "python", max_depth=max_depth)]
    if form.asks == "numbers":
        return [Payload("json", msgspec.json.encode(_nested(_numbers(form, parts), form.shape)))]
    raise RequestError("no input was written", code="empty_body")


def _written_text(text: bytes) -> Payload:
    """A text as JSON. Raises `RequestError` for none, and for bytes that are none."""
    if not text.strip():
        raise RequestError("no text was written", code="empty_body")
    try:
        return Payload("json", msgspec.json.encode(text.decode()))
    except UnicodeDecodeError:
        raise RequestError("the text is not in UTF-8", code="input_rejected") from None


def _text(parts: Sequence[Part]) -> memoryview:
    return next((part.data for part in parts if part.name == "input"), memoryview(b""))


def written(parts: Sequence[Part]) -> str:
    """The JSON text as entered, to fill the form again; empty if it is long, because rendering it would hold up others.

    Bytes that are not UTF-8 become replacement characters.
    """
    found = _text(parts)
    return bytes(found).decode(errors="replace") if len(found) <= _LONGEST_SHOWN else ""


def filled(parts: Sequence[Part]) -> list[str]:
    """The contents of the number fields, as entered."""
    return [bytes(part.data[:_LONGEST_NUMBER]).decode(errors="replace") for part in parts if part.name == "number"]


def _numbers(form: ModelForm, parts: Sequence[Part]) -> list[float]:
    texts = filled(parts)
    if len(texts) != len(form.fields):
        raise RequestError(f"the form has {len(texts)} of {len(form.fields)} numbers", code="empty_body")
    return [_number(name, text, whole=form.whole) for name, text in zip(form.fields, texts, strict=True)]


def _number(name: str, text: str, *, whole: bool) -> float:
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        raise RequestError(
            f"{name} is not {'a whole number' if whole else 'a number'}: write one into every field",
            code="invalid_tensor",
        ) from None
    if not math.isfinite(number):
        raise RequestError(f"{name} is not finite: write a finite number", code="json_not_finite")
    return number


def _nested(numbers: Sequence[float], shape: tuple[int, ...]) -> Any:
    """The numbers as nested lists of that shape; for an empty shape, the number itself."""
    if not shape:
        return numbers[0]
    nested: list[Any] = list(numbers)
    for size in reversed(shape[1:]):
        nested = [nested[start : start + size] for start in range(0, len(nested), size)]
    return nested


# Submitting the form: a coroutine, so that no thread waits for a model. `flambeau.ui.pages` then renders the HTML.


@dataclass(frozen=True, slots=True)
class Submitted:
    """A submitted form and its outcomes, or its error. `parts` is empty if the form could not be read."""

    model: Model | None
    parts: Sequence[Part] = ()
    outcomes: Sequence[Outcome] = ()
    error: RequestError | None = None

    @property
    def status(self) -> int:
        """The status of the page."""
        return 200 if self.error is None else STATUS[self.error.code]


def chosen(service: Service, text: str) -> Model:
    """The model that `?model=NAME[/VERSION]` selects. Raises `RequestError`."""
    name, version = _named(service, text)
    return service.get(name, version)


def _named(service: Service, text: str) -> tuple[str | None, str | None]:
    """Name and version of the model that is meant: without a word the one that the page shows."""
    if text:
        name, _, version = text.partition("/")
        return name or None, version or None
    shown = service.shown()
    return (None, None) if shown is None else (shown.name, shown.version)


async def submit(service: Service, request: HttpRequest) -> Submitted:
    """Read the form and predict its items. The model stays loaded meanwhile."""
    settings = service.settings
    model: Model | None = None
    parts: list[Part] = []
    try:
        name, version = _named(service, next(iter(request.parameters("model")), ""))
        async with service.using(name, version) as model:
            content_type = request.headers.get("content-type", "")
            parts = await multipart.parse(request.body, content_type, max_parts=settings.max_items)
            payloads = read_form(form_of(model), parts, max_depth=settings.max_json_depth)
            if request.charge is not None:
                request.charge(len(payloads) - 1)
            outcomes = await service.predict(model, payloads, Options(top_k=TOP_K), timeout=settings.deadline)
        if len(outcomes) == 1 and isinstance(outcomes[0].result, RequestError):
            raise outcomes[0].result
        found = Submitted(model, parts, outcomes)
    except RequestError as error:
        # Without the traceback: its frames hold the body, and `found`: a reference cycle.
        found = Submitted(model or service.shown(), parts, error=error.with_traceback(None))
    (model.metrics if model is not None else service.metrics.other).answered(found.status, "page")
    return found
