"""The documents of KServe v1, which TensorFlow Serving began: instances to payloads, and answers to predictions.

    {"instances": [[1, 2, 3, 4], ...]}                   rows of a network with one input
    {"instances": [{"a": [1, 2], "b": [3]}, ...]}        rows of a network with several
    {"inputs": {"a": [[1, 2], ...], "b": [[3], ...]}}    the same by column, answered {"outputs": {...}}
    {"instances": [{"b64": "..."}, ...]}                 images; also base64 itself, and within "image" or "data"
    {"instances": [value, ...]}                          of a Python model

Values stay JSON text: they are cut out of the document and parsed in the replica, as those of native requests are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from flambeau.answers import Asked, Value
from flambeau.errors import RequestError
from flambeau.pipelines import json_document
from flambeau.protocols.errors import answers_of
from flambeau.serving.model import Model
from flambeau.settings.service import Settings
from flambeau.tasks.handler import Handled
from flambeau.tasks.tensor import MAX_ROWS, nesting_of
from flambeau.types import Options, Outcome, Payload, TensorSpec

LARGEST = 8 * 2**20
"""Bytes of JSON that are read in the front: some 8 ms."""

_FORM = 'send {"instances": [...]}'


class _Parameters(msgspec.Struct, frozen=True):
    top_k: int | None = None
    threshold: float | None = None


class _Body(msgspec.Struct):
    instances: msgspec.Raw = msgspec.Raw()
    inputs: msgspec.Raw = msgspec.Raw()
    parameters: _Parameters | None = None


class _WrappedImage(msgspec.Struct):
    image: msgspec.Raw = msgspec.Raw()
    data: msgspec.Raw = msgspec.Raw()


_BODY = msgspec.json.Decoder(_Body)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_ROW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_IMAGE = msgspec.json.Decoder(_WrappedImage)
_COLUMNS = msgspec.json.Decoder(dict[str, list[msgspec.Raw]])


@dataclass(frozen=True, slots=True)
class Instances:
    """A parsed request.

    `answered`: `each` payload is an instance; or there is one, whose `rows` are the instances; or it is answered by
    `columns`. `ranked`: how many classes to rank, if the request says so.
    """

    payloads: list[Payload]
    options: Options
    answered: Literal["each", "rows", "columns"]
    ranked: int | None = None


def read(body: bytes | memoryview, model: Model, settings: Settings) -> Instances:
    """The instances in a body. Raises `RequestError`."""
    if not body:
        raise RequestError(f"the body is empty: {_FORM}", code="empty_body")
    if len(body) > LARGEST:
        raise RequestError(
            f"the JSON has more than {LARGEST} bytes: send files to /predict, or binary tensors over v2",
            code="body_too_large",
        )
    whole = bytes(body)
    try:
        found = json_document.decode(whole, _BODY, max_depth=settings.max_json_depth)
    except msgspec.ValidationError as error:
        raise RequestError(f"the request is not understood: {error}: {_FORM}", code="invalid_json") from None
    instances, inputs = memoryview(found.instances), memoryview(found.inputs)
    if bool(instances) == bool(inputs):
        raise RequestError(f'the request must have "instances" or "inputs", one of them: {_FORM}', code="invalid_json")
    _refuse_twice(whole, instances or inputs, "instances" if instances else "inputs")
    parameters = found.parameters or _Parameters()
    options = options_of(parameters.top_k, parameters.threshold)
    answered: Literal["each", "rows", "columns"] = "each" if model.kind != "tensor" else "rows"
    if inputs and bytes(inputs[:1]) == b"{" and model.kind == "tensor":
        answered = "columns"
        payloads = [payload_of(_columns(bytes(inputs), model))]
    else:
        payloads = payloads_of(bytes(instances or inputs), model, settings.max_items)
    return Instances(payloads, options, answered, parameters.top_k)


def _refuse_twice(body: bytes, value: memoryview, name: str) -> None:
    json_document.refuse_another(body, value, name, lambda rest: len(memoryview(getattr(_BODY.decode(rest), name))))


def options_of(top_k: int | None, threshold: float | None) -> Options:
    """The options of a request's parameters. Raises `RequestError` for one out of bounds."""
    if top_k is not None and not 1 <= top_k <= 1000:
        raise RequestError("the parameter top_k must be a whole number from 1 to 1000", code="bad_request")
    if threshold is not None and not 0 <= threshold <= 1:
        raise RequestError("the parameter threshold must be a number from 0 to 1", code="bad_request")
    return Options(top_k=top_k or 1, threshold=threshold, mask="png")


def payloads_of(text: bytes, model: Model, most: int) -> list[Payload]:
    """The payloads of a JSON list of instances, at most so many. Raises `RequestError`."""
    if model.kind == "tensor" and text[:1] == b"[" and text[1:].lstrip()[:1] not in (b"{", b"]"):
        return [payload_of(_rows(text, model))]
    most = MAX_ROWS if model.kind == "tensor" else most
    if text[:1] == b"[" and text.count(b",") >= most and (count := json_document.elements_of(text)) > most:
        limit = f"{most}" if model.kind == "tensor" else f"{most} (--max-items)"
        raise RequestError(f"the request has {count} instances: the most is {limit}", code="too_many_items")
    try:
        instances = _LIST.decode(text)
    except msgspec.ValidationError:
        raise RequestError(f'"instances" is not a list: {_FORM}', code="invalid_json") from None
    if not instances:
        raise RequestError("there is no instance", code="invalid_json")
    if model.kind == "tensor":
        return [payload_of(_rows_of_objects(instances, model))]
    if model.kind in ("image", "audio"):
        return [Payload("document", b'{"image":%b}' % _image(bytes(memoryview(each)))) for each in instances]
    return [payload_of(bytes(memoryview(each))) for each in instances]


def payload_of(value: bytes) -> Payload:
    """A value that was cut out of a document which has been checked."""
    if len(value) > json_document.SHORT:
        return Payload("document", b'{"input":%b}' % value)
    return Payload("json", memoryview(value))


def _image(instance: bytes) -> bytes:
    """The base64 text of an image, or the object around it."""
    if instance[:1] != b"{":
        return instance
    wrapped = _IMAGE.decode(instance)
    return bytes(memoryview(wrapped.image) or memoryview(wrapped.data)) or instance


def _columns(text: bytes, model: Model) -> bytes:
    """The inputs by name as the native protocol takes them: of a network with one input, that one."""
    specs = model.bundle.manifest.inputs
    if len(specs) > 1:
        return text
    [spec] = specs
    [values] = _values([text], [spec.name])
    return values[0]


def _rows(text: bytes, model: Model) -> bytes:
    """A list of rows of a network with one input, as the native protocol takes it."""
    specs = model.bundle.manifest.inputs
    if len(specs) > 1:
        names = ", ".join(f'"{spec.name}"' for spec in specs)
        raise RequestError(f"each instance must be an object with {names}", code="invalid_tensor")
    _check_depth(specs[0], text)
    return text


def _rows_of_objects(instances: Sequence[msgspec.Raw], model: Model) -> bytes:
    """The rows of objects by the names of the inputs, as the native protocol takes them: a list for each input."""
    specs = model.bundle.manifest.inputs
    rows = [bytes(memoryview(each)) for each in instances]
    columns = [b"[" + b",".join(values) + b"]" for values in _values(rows, [spec.name for spec in specs])]
    for spec, column in zip(specs, columns, strict=True):
        _check_depth(spec, column)
    if len(specs) == 1:
        return columns[0]
    named = (msgspec.json.encode(spec.name) + b":" + each for spec, each in zip(specs, columns, strict=True))
    return b"{" + b",".join(named) + b"}"


def _check_depth(spec: TensorSpec, column: bytes) -> None:
    """Raise `RequestError` if a list of rows would be taken for one row."""
    depth = nesting_of(column) - 1
    if depth != len(spec.shape):
        raise RequestError(
            f"each instance must have one row of '{spec.name}', {spec}, and not lists nested {depth} deep",
            code="invalid_tensor",
        )


def _values(rows: Sequence[bytes], names: Sequence[str]) -> list[list[bytes]]:
    """The values of each name in all rows, which are objects with these names and no others."""
    found: list[list[bytes]] = [[] for _ in names]
    for index, row in enumerate(rows):
        try:
            values = _ROW.decode(row)
        except msgspec.ValidationError:
            raise RequestError(f"instance {index} is not an object", code="invalid_tensor") from None
        if odd := next((name for name in values if name not in names), None):
            raise RequestError(f"instance {index} has '{odd}', which is no input", code="invalid_tensor")
        for name, column in zip(names, found, strict=True):
            if name not in values:
                raise RequestError(f"instance {index} lacks the input '{name}'", code="invalid_tensor")
            value = memoryview(values[name])
            json_document.refuse_another(row, value, name, lambda rest, name=name: name in _ROW.decode(rest))  # type: ignore[misc]
            column.append(bytes(value))
    return found


def body_of(asked: Instances, outcomes: Sequence[Outcome]) -> tuple[bytes, int]:
    """The body with the answers, and how many of their numbers are not finite.

    Raises the `RequestError` of the first instance that failed, with its index: there are no partial answers.
    """
    answers = answers_of(outcomes, noun="instance")
    nonfinite = sum(each.nonfinite for each in answers)
    if asked.answered == "each":
        told = Asked(top_k=asked.ranked)
        each = [answer.output if isinstance(answer, Value | Handled) else answer.body(told) for answer in answers]
        return msgspec.json.encode({"predictions": each}), nonfinite
    [answer] = answers
    assert isinstance(answer, Value)  # a network over numbers
    text = answer.json if asked.answered == "columns" else _by_row(answer)
    return b'{"%b":%b}' % (b"outputs" if asked.answered == "columns" else b"predictions", text), nonfinite


def _by_row(answer: Value) -> bytes:
    """The answer of a network over numbers as a list with a member for each row."""
    if answer.key == "output":
        return answer.json
    columns = _COLUMNS.decode(answer.json)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return msgspec.json.encode(rows)
