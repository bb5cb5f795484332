"""The form of a model: which fields it has, and what was put into them.

It reads parts of a form and knows neither HTML nor answers. The fields are `file` (as often as there are files),
`input` (JSON text) and `number` (once for each number of the model's input, in row-major order).
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
from flambeau.ui.cards import TOP_K

_LONGEST_SHOWN = 64 * 1024  # bytes
_LONGEST_NUMBER = 400  # bytes; float64 has numbers of 309 digits

MOST_NUMBERS = 32
"""A larger input is written as JSON: nobody fills in more fields."""


@dataclass(frozen=True, slots=True)
class ModelForm:
    """What the page asks for. `shape` and `whole` say how numbers are put together; `fields` are their names, and
    `inputs` those of several inputs.

    `pictures`: one or several images. `numbers`: one field each, or JSON. `json`: any JSON value, or a file where the
    model is somebody's own code.
    """

    asks: Literal["pictures", "numbers", "json"]
    fields: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    whole: bool = False
    files: bool = False
    inputs: tuple[str, ...] = ()

    @property
    def example(self) -> str:
        """An input as JSON text, to show in a command."""
        if self.asks == "numbers":
            return msgspec.json.encode(_nested([0] * len(self.fields), self.shape)).decode()
        if self.inputs:
            return "{" + ", ".join(f'"{name}": […]' for name in self.inputs) + "}"
        return "3" if self.files else "[…]"


def form_of(model: Model) -> ModelForm:
    """The form for the model's own inputs."""
    if model.kind == "image":
        return ModelForm("pictures", files=True)
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

    Files go before JSON text, and that before single numbers. Raises `RequestError` for a form that says nothing.
    """
    if form.files and (files := [part.data for part in parts if part.name == "file" and part.data]):
        return [Payload("file", data) for data in files]
    if form.asks == "pictures":
        raise RequestError("no image was chosen", code="missing_file")
    if len(_text(parts)) > MIB:
        raise RequestError(
            "the text is longer than the 1 MiB that this page takes", code="body_too_large", hint="the API takes more"
        )
    if text := bytes(_text(parts)).strip():
        return [document(b'{"input":' + text + b"}", "python", max_depth=max_depth)]
    if form.asks == "numbers":
        return [Payload("json", msgspec.json.encode(_nested(_numbers(form, parts), form.shape)))]
    raise RequestError("no input was written", code="empty_body")


def _text(parts: Sequence[Part]) -> memoryview:
    return next((part.data for part in parts if part.name == "input"), memoryview(b""))


def written(parts: Sequence[Part]) -> str:
    """The JSON text as it was written, to stand in the form again; nothing where it is long, which would cost everyone.

    What is not UTF-8 becomes replacement characters, which no JSON has.
    """
    found = _text(parts)
    return bytes(found).decode(errors="replace") if len(found) <= _LONGEST_SHOWN else ""


def filled(parts: Sequence[Part]) -> list[str]:
    """The single numbers as they were written."""
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
    """The numbers as lists in lists; without a shape the number itself."""
    if not shape:
        return numbers[0]
    nested: list[Any] = list(numbers)
    for size in reversed(shape[1:]):
        nested = [nested[start : start + size] for start in range(0, len(nested), size)]
    return nested


# What the page's form sends, and what comes of it: a coroutine, so that no thread waits for a model.
#
# It writes no HTML: `flambeau.ui.pages` does, in a thread, when all is there.


@dataclass(frozen=True, slots=True)
class Submitted:
    """A form and its outcomes, or the one error; `parts` is empty where it could not be read."""

    model: Model
    parts: Sequence[Part] = ()
    outcomes: Sequence[Outcome] = ()
    error: RequestError | None = None

    @property
    def status(self) -> int:
        """The status of the page."""
        return 200 if self.error is None else STATUS[self.error.code]


def chosen(service: Service, text: str) -> Model:
    """The model that `?model=NAME[/VERSION]` takes. Raises `RequestError`."""
    if not text:
        return service.shown()
    name, _, version = text.partition("/")
    return service.get(name or None, version or None)


async def submit(service: Service, request: HttpRequest) -> Submitted:
    """Read the form and have it answered."""
    settings = service.settings
    model, parts = service.shown(), []
    try:
        model = chosen(service, next(iter(request.parameters("model")), ""))
        content_type = request.headers.get("content-type", "")
        parts = await multipart.parse(request.body, content_type, max_parts=settings.max_items)
        payloads = read_form(form_of(model), parts, max_depth=settings.max_json_depth)
        if request.charge is not None:
            request.charge(len(payloads) - 1)
        with service.using(model.name, model.version):
            outcomes = await service.predict(model, payloads, Options(top_k=TOP_K), timeout=settings.deadline)
        if len(outcomes) == 1 and isinstance(outcomes[0].result, RequestError):
            raise outcomes[0].result
        found = Submitted(model, parts, outcomes)
    except RequestError as error:
        found = Submitted(model, parts, error=error.with_traceback(None))  # its frames hold the body, and this
    model.metrics.answered(found.status, "page")
    return found
