"""Inference of the Open Inference Protocol (KServe v2) as values: from a request's tensors to a response's.

A model is asked in one of two ways, and its metadata names both:

its own tensors    exactly as `Service.infer` takes them; the network's own outputs come back
files or values    one BYTES tensor (`FILES`, `TEXTS`, `VALUES`); each element takes the pipeline's own way, and the
                   outputs are what the model's task answers, as arrays

REST and gRPC parse requests into these values and print responses. This module knows neither, and no JSON tensors.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from flambeau.errors import RequestError
from flambeau.items import FREE, TensorSpec
from flambeau.pipelines import json_document
from flambeau.protocols import v2_forms, v2_outputs
from flambeau.protocols.v2_datatypes import datatype_of
from flambeau.protocols.v2_outputs import ANSWER, names_of
from flambeau.protocols.v2_values import (
    InferenceRequest,
    InferenceResponse,
    NamedTensor,
    Parameters,
    Question,
    RequestedOutput,
)
from flambeau.serving import tensor_requests
from flambeau.serving.model import Model
from flambeau.serving.service import Service
from flambeau.tasks import COUNT
from flambeau.types import Options, Payload, Tensors

FILES = "images"
"""The BYTES input of a model of images, encoded files of any size; `image_files` where the network has an input of that
name. With the parameter `content_type` "base64" the elements are base64 text, which the replica decodes."""

SOUNDS = "audio"
"""The same of a model of sound: WAV or FLAC files; `audio_files` where the network has an input of that name."""

VALUES = "input"
"""The BYTES input of a Python model: each element is the JSON text of one value."""

TEXTS = "text"
"""The BYTES input of a model of texts, each in UTF-8; `texts` where the network has an input of that name."""

RAW_FILES = "file"
"""The other BYTES input of a Python model: each element is a file."""

_SHARED_MEMORY = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_MOST_RANKED = 1000


async def infer(
    service: Service,
    model: Model,
    request: InferenceRequest,
    *,
    most: float | None = None,
    charge: Callable[[int], None] | None = None,
) -> InferenceResponse:
    """Answer a request to `model`, which the caller holds (`Service.using`).

    `most`: the seconds that the caller itself allows; the service's deadline and the parameter `timeout` also bound it.
    `charge` is told the items after the first. Raises `RequestError`; a response is whole or not at all, so one bad
    item refuses the request, with its index.
    """
    try:
        if request.question is None:
            _refuse_unsupported(request)
        usual = service.settings.deadline
        timeout = min(_seconds(request.parameters, usual if most is None else most), usual)
        asked = request.question
        if asked is None:
            asked = _read(service, model, request)
            v2_forms.keep(model, request, asked)
        if charge is not None:
            charge(len(asked.payloads) - 1)
    except RequestError as error:
        model.metrics.rejected(error.code)
        raise
    queued, nulls = time.monotonic(), 0
    outcomes = await service.predict(model, asked.payloads, asked.options, timeout=timeout)
    if asked.raw:
        found = tensor_requests.join(outcomes, names_of(asked.wanted))
    else:
        found = v2_outputs.arrays_of(model, outcomes, asked.wanted, noun=asked.noun, top_k=asked.options.top_k)
        nulls = v2_outputs.nulls_of(model, outcomes, asked.wanted)
    outputs = tuple([v2_outputs.output_of(each, found[each.name], model) for each in asked.wanted])
    timings = [outcome.timings for outcome in outcomes]
    return InferenceResponse(model.name, model.version, request.identity, outputs, timings, queued, nulls)


# What a model takes and gives


def files_of(model: Model) -> str | None:
    """The name of the BYTES input of whole files, if the model takes them."""
    return {"python": RAW_FILES, "image": _free(model, FILES), "audio": _free(model, SOUNDS)}.get(model.kind)


def texts_of(model: Model) -> str:
    """The name of the BYTES input of a model of texts."""
    return _free(model, TEXTS)


def _free(model: Model, name: str) -> str:
    otherwise = {FILES: "image_files", SOUNDS: "audio_files", TEXTS: "texts"}[name]
    return otherwise if any(spec.name == name for spec in model.bundle.manifest.inputs) else name


def whole_inputs(model: Model) -> tuple[str, ...]:
    """The names of the BYTES inputs, of which a request gives one and nothing else."""
    values = {"python": (VALUES,), "text": (texts_of(model),)}.get(model.kind, ())
    return tuple(filter(None, (*values, files_of(model))))


def raw_inputs(model: Model) -> tuple[TensorSpec, ...]:
    """The network's own inputs; none for a Python model."""
    return model.bundle.manifest.inputs


def raw_outputs(model: Model) -> tuple[TensorSpec, ...]:
    """The network's own outputs, which its own inputs are answered with."""
    return model.bundle.manifest.outputs


def answer_outputs(model: Model) -> tuple[TensorSpec, ...]:
    """The outputs that files and values are answered with; the dtype of text is `str`."""
    if model.kind == "tensor":
        return ()
    if model.kind == "python":
        return (TensorSpec("output", "str", ()),)
    facts = replace(model.bundle.manifest.facts, labels=model.bundle.labels())
    arrays, answer = model.does.arrays(facts), TensorSpec(ANSWER, "str", ())
    unlike = model.does.dense or any(spec.name == COUNT for spec in arrays)
    return (*arrays, answer) if unlike else arrays or (answer,)


def shape_of(spec: TensorSpec) -> tuple[int, ...]:
    """The shape in metadata: the row axis first, -1 for it and for every free axis."""
    return (FREE, *spec.shape)


# Reading a request


def _refuse_unsupported(request: InferenceRequest) -> None:
    for parameters in (*[each.parameters for each in request.inputs], *[each.parameters for each in request.outputs]):
        refuse_shared_memory(parameters)
    if not request.parameters.keys().isdisjoint(_SEQUENCE) and any(map(request.parameters.get, _SEQUENCE)):
        raise RequestError("models here keep no state: sequences are not supported", code="not_implemented")
    for what, named in (("input", request.inputs), ("output", request.outputs)):
        seen = set()
        for tensor in named:
            if tensor.name in seen:
                raise RequestError(f"the {what} '{tensor.name}' is there more than once", code="invalid_tensor")
            seen.add(tensor.name)


def refuse_shared_memory(parameters: Parameters) -> None:
    """Raise `RequestError` where the parameters of a tensor name a region of shared memory."""
    if not parameters.keys().isdisjoint(_SHARED_MEMORY):
        message = "shared memory is not supported: send the tensor in the request"
        raise RequestError(message, code="not_implemented")


def _seconds(parameters: Parameters, most: float) -> float:
    """How long the request may take: the parameter `timeout`, in microseconds, within `most`. 0 stands for none."""
    microseconds = parameters.get("timeout", 0)
    if isinstance(microseconds, bool) or not isinstance(microseconds, int) or microseconds < 0:
        raise RequestError("the parameter timeout must be a whole number of microseconds from 0", code="bad_request")
    return min(most, microseconds / 1e6) if microseconds else most


def _read(service: Service, model: Model, request: InferenceRequest) -> Question:
    if not request.inputs:
        raise RequestError("the request has no input", code="invalid_tensor")
    most = service.settings.max_items
    first = request.inputs[0]
    if first.datatype == "BYTES" and first.name in whole_inputs(model):
        if len(request.inputs) > 1:
            message = f"'{first.name}' is the whole input: send it, or the network's own tensors, and not both"
            raise RequestError(message, code="invalid_tensor")
        wanted = _wanted(request, answer_outputs(model))
        options = _options(request.parameters, wanted)
        payloads = _payloads(model, first, most=most, max_depth=service.settings.max_json_depth)
        noun = {"image": "image", "text": "text", "audio": "sound"}.get(model.kind, "element")
        return Question(payloads, options, wanted, raw=False, noun=noun)
    wanted = _wanted(request, raw_outputs(model))
    tensors: Tensors = {}
    for each in request.inputs:
        if isinstance(each.data, tuple) or each.name in whole_inputs(model):
            raise RequestError(
                f"the input '{each.name}' came as {each.datatype}: {_taken(model)}", code="invalid_tensor"
            )
        tensors[each.name] = each.data
    if model.kind == "python":
        raise RequestError(f"a Python model has no tensors of its own: {_taken(model)}", code="invalid_tensor")
    payloads = tensor_requests.split(model, tensors, most=most)
    return Question(payloads, Options(), wanted, raw=True)


def _taken(model: Model) -> str:
    taken = [f"{spec.name} ({datatype_of(spec.dtype)} {list(shape_of(spec))})" for spec in raw_inputs(model)]
    whole = [f"{name} (BYTES [-1])" for name in whole_inputs(model)]
    return f"this model takes {' or '.join(filter(None, (', '.join(taken), *whole)))}"


def _wanted(request: InferenceRequest, outputs: Sequence[TensorSpec]) -> tuple[RequestedOutput, ...]:
    known = [spec.name for spec in outputs]
    for each in request.outputs:
        if each.name not in known:
            message = f"there is no output '{each.name}' for these inputs: there are {', '.join(known)}"
            raise RequestError(message, code="invalid_tensor")
        v2_outputs.classes_of(each.parameters)
    usual = [name for name in known if name != ANSWER] or known
    return request.outputs or tuple(map(RequestedOutput, usual))


def _options(parameters: Parameters, wanted: Sequence[RequestedOutput]) -> Options:
    threshold = parameters.get("threshold")
    if threshold is not None and (
        isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1
    ):
        raise RequestError("the parameter threshold must be a number from 0 to 1", code="bad_request")
    return Options(
        top_k=_count(parameters, "top_k") or 1,
        threshold=None if threshold is None else float(threshold),
        probabilities="probabilities" in names_of(wanted),
        most=_count(parameters, "max_detections"),
        mask="png" if ANSWER in names_of(wanted) else None,
    )


def _count(parameters: Parameters, name: str) -> int | None:
    found = parameters.get(name)
    if found is None or (isinstance(found, int) and not isinstance(found, bool) and 1 <= found <= _MOST_RANKED):
        return found
    raise RequestError(f"the parameter {name} must be a whole number from 1 to {_MOST_RANKED}", code="bad_request")


def _payloads(model: Model, tensor: NamedTensor, *, most: int, max_depth: int) -> list[Payload]:
    """An item for each element of a BYTES tensor of shape [N] or [N, 1]."""
    elements = tensor.data
    assert isinstance(elements, tuple)  # BYTES
    if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)):
        raise RequestError(
            f"the input '{tensor.name}' must be of shape [N] or [N, 1], but it is {list(tensor.shape)}",
            code="invalid_tensor",
        )
    if not elements:
        raise RequestError(f"the input '{tensor.name}' has no element", code="invalid_tensor")
    if len(elements) > most:
        raise RequestError(
            f"the request has {len(elements)} items: the most is {most} (--max-items)", code="too_many_items"
        )
    if model.kind == "text":
        return [_text(each, index=index) for index, each in enumerate(elements)]
    if model.kind == "python" and tensor.name == VALUES:
        return [_value(each, max_depth=max_depth, index=index) for index, each in enumerate(elements)]
    for index, each in enumerate(elements):
        if not len(each):
            raise RequestError(f"element {index} of the input '{tensor.name}' is empty", code="empty_body")
    if model.kind in ("image", "audio") and tensor.parameters.get("content_type") == "base64":
        return [Payload("document", b'{"image":%b}' % msgspec.json.encode(str(each, "utf-8"))) for each in elements]
    return [Payload("file", each) for each in elements]


def _text(element: bytes | memoryview, *, index: int) -> Payload:
    """One text as the JSON that the native protocol carries."""
    try:
        return Payload("json", msgspec.json.encode(str(element, "utf-8")))
    except UnicodeDecodeError:
        raise RequestError(f"element {index} of the input is not text in UTF-8", code="input_rejected") from None


def _value(text: bytes | memoryview, *, max_depth: int, index: int) -> Payload:
    """One JSON value for a Python model. A long one is checked in the replica, as a long document is."""
    document = b'{"input":%b}' % bytes(text)
    if len(text) > json_document.SHORT:
        return Payload("document", document)
    try:
        msgspec.json.decode(text, type=msgspec.Raw)  # one value, and nothing behind it
    except msgspec.DecodeError as error:
        raise RequestError(f"element {index} of the input is not JSON: {error}", code="invalid_json") from None
    return Payload("json", json_document.read_input(document, max_depth=max_depth + 1))
