"""The REST form of the Open Inference Protocol (KServe v2): bodies to requests, and responses to bodies.

A body is JSON, or JSON with the raw bytes of tensors behind it (Triton's extension for binary tensors):

    Inference-Header-Content-Length: 150
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}]} 16 bytes

All lengths are compared with what is there before anything is read by them, and every byte belongs to one tensor. No
copy of a tensor is made. Routes are elsewhere.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from flambeau.errors import Code, RequestError
from flambeau.items import FREE
from flambeau.protocols import v2_forms, v2_inference, v2_json
from flambeau.protocols.errors import STATUS, RateLimited
from flambeau.protocols.messages import HttpAnswer
from flambeau.protocols.v2_datatypes import byte_size, datatype_of, from_bytes, to_bytes
from flambeau.protocols.v2_json import TensorDocument
from flambeau.protocols.v2_values import (
    InferenceRequest,
    InferenceResponse,
    NamedTensor,
    Parameters,
    RequestedOutput,
)
from flambeau.serving.model import Model
from flambeau.settings.service import Settings

JSON_LENGTH = "Inference-Header-Content-Length"
"""The header that says how much of a body is JSON, where tensors follow it."""

BINARY = "application/octet-stream"

_WHOLE = re.compile(r"[0-9]{1,18}")


async def request_of(
    body: bytes | memoryview, json_length: str | None, model: Model, settings: Settings
) -> InferenceRequest:
    """The request in a body. `json_length`: the header of that name. Raises `RequestError`."""
    if json_length is None:
        if not body:
            raise RequestError("the body is empty: send an inference request as JSON", code="empty_body")
        return await _parsed(body, memoryview(b""), model, settings)
    if _WHOLE.fullmatch(json_length) is None or int(json_length) > len(body):
        raise RequestError(
            f"{JSON_LENGTH} must be a whole number up to the length of the body, {len(body)}", code="bad_request"
        )
    length, view = int(json_length), memoryview(body)
    if not length:
        return _raw_request(view, model, settings)
    text, binary = bytes(view[:length]), view[length:]
    if (known := v2_forms.known(model, text, binary)) is not None:
        return known
    return await _parsed(text, binary, model, settings)


async def _parsed(text: bytes | memoryview, binary: memoryview, model: Model, settings: Settings) -> InferenceRequest:
    document, lists = await v2_json.read(text, max_depth=settings.max_json_depth)
    inputs, place, alone = [], 0, True
    for each in document.inputs:
        v2_inference.refuse_shared_memory(each.parameters)
        size = each.parameters.get("binary_data_size")
        data = bytes(memoryview(each.data))
        if size is not None:
            if data:
                raise _wrong(f"the input '{each.name}' has both data and binary_data_size")
            if isinstance(size, bool) or not isinstance(size, int):
                raise _wrong(f"the binary_data_size of the input '{each.name}' must be a whole number, not {size!r}")
            if not 0 <= size <= len(binary) - place:
                raise _wrong(f"unexpected size for input '{each.name}': {len(binary) - place} bytes are left of {size}")
            inputs.append(_from_binary(each, binary[place : place + size], settings))
            place += size
        elif data:
            alone = False
            inputs.append(await _from_json(each, lists.get(data, data), model, settings))
        else:
            raise _wrong(f"the input '{each.name}' has neither data nor binary_data_size")
    if place != len(binary):
        raise _wrong(f"unexpected additional input data for model '{model.name}': {len(binary) - place} bytes")
    _refuse_other_than_truth(document.parameters, "binary_data_output")
    for asked in document.outputs:
        _refuse_other_than_truth(asked.parameters, "binary_data")
    outputs = tuple([RequestedOutput(each.name, each.parameters) for each in document.outputs])
    kept = bytes(text) if alone and len(text) <= v2_forms.LONGEST else b""
    return InferenceRequest(tuple(inputs), outputs, document.parameters, document.id, kept)


def _refuse_other_than_truth(parameters: Parameters, name: str) -> None:
    """Raise `RequestError` for a parameter that is neither true nor false."""
    if not isinstance(parameters.get(name, False), bool):
        raise RequestError(f"the parameter {name} must be true or false, not {parameters[name]!r}", code="bad_request")


def _from_binary(each: TensorDocument, data: memoryview, settings: Settings) -> NamedTensor:
    array = from_bytes(each.name, each.datatype, each.shape, data, most_elements=settings.max_items)
    return NamedTensor(each.name, each.datatype, tuple(each.shape), array, each.parameters)


async def _from_json(each: TensorDocument, text: bytes, model: Model, settings: Settings) -> NamedTensor:
    """A tensor in JSON. An image cannot be a string there, so the elements of `images` are base64."""
    array = await v2_json.tensor(each, text, most_elements=settings.max_items)
    parameters: Parameters = each.parameters
    if isinstance(array, tuple) and model.kind in ("image", "audio"):
        parameters = {**parameters, "content_type": "base64"}
    return NamedTensor(each.name, each.datatype, tuple(each.shape), array, parameters)


def _raw_request(body: memoryview, model: Model, settings: Settings) -> InferenceRequest:
    """A body that is one input and nothing else: a file, or the tensor of a network with one input, as one row.

    The length of one free axis follows from the body's. All outputs come back as binary data.
    """
    every = {"binary_data_output": True}
    files = v2_inference.files_of(model)
    if files is not None:
        return InferenceRequest((NamedTensor(files, "BYTES", (1,), (body,)),), parameters=every)
    specs = v2_inference.raw_inputs(model)
    if len(specs) != 1 or specs[0].shape.count(FREE) > 1:
        raise _wrong(
            "a body without JSON is for models with one input, and at most one free axis: "
            f"'{model.name}' takes {', '.join(map(str, specs))}"
        )
    [spec] = specs
    datatype, shape = datatype_of(spec.dtype), (1, *spec.shape)
    if FREE in shape:
        row = byte_size(datatype, math.prod(size for size in shape if size != FREE))
        shape = tuple(len(body) // max(1, row) if size == FREE else size for size in shape)
    array = from_bytes(spec.name, datatype, shape, body, most_elements=settings.max_items)
    return InferenceRequest((NamedTensor(spec.name, datatype, shape, array),), parameters=every)


async def answer_of(request: InferenceRequest, response: InferenceResponse) -> HttpAnswer:
    """The answer with a response: JSON, and behind it the outputs that the client wants as binary data.

    Raises `RequestError` for an output that has no JSON form and is not wanted otherwise.
    """
    every = request.parameters.get("binary_data_output") is True
    outputs: list[bytes] = []
    binary: list[bytes | memoryview] = []
    nonfinite, plain = response.nulls, True
    for each in response.outputs:
        head: dict[str, Any] = {"name": each.name, "datatype": each.datatype, "shape": each.shape}
        wanted = each.parameters.get("binary_data", every)
        if wanted is True:
            pieces = to_bytes(each.datatype, each.data)
            binary += pieces
            plain = False
            head["parameters"] = {"binary_data_size": sum(map(len, pieces))}
            outputs.append(msgspec.json.encode(head))
        else:
            text, odd = await v2_json.json_of(each.datatype, each.data)
            nonfinite += odd
            outputs.append(msgspec.json.encode(head | {"data": msgspec.Raw(text)}))
    model: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.identity:
        model["id"] = response.identity
    json = msgspec.json.encode(model)[:-1] + b',"outputs":[' + b",".join(outputs) + b"]}"
    headers = (("X-Nonfinite-Outputs", str(nonfinite)),) if nonfinite else ()
    if plain:
        return HttpAnswer(200, json, headers=headers)
    return HttpAnswer(200, b"".join((json, *binary)), BINARY, (*headers, (JSON_LENGTH, str(len(json)))))


_OF_INPUTS = ("image_too_large", "too_many_items", "unsupported_image_format", "unsupported_media_type")
_TRITON: dict[Code, int] = {code: 400 for code in STATUS if STATUS[code] == 422 or code in _OF_INPUTS} | {
    "load_failed": 500,
    "deadline_exceeded": 503,
    "model_timeout": 500,
    "out_of_memory": 500,
}
"""Where Triton's status for that kind of error is another than ours."""


def status_of(code: Code) -> int:
    """The status of an error: Triton's for its kind, and HTTP's own for what has nothing to do with inference."""
    return _TRITON.get(code, STATUS[code])


def refusal(error: RequestError, request_id: str) -> HttpAnswer:
    """The answer to a request that failed: `{"error": "..."}` and nothing else."""
    status = status_of(error.code)
    text = f"{error.message}: {error.hint}" if error.hint else error.message
    headers: Sequence[tuple[str, str]] = ()
    if status == 503:
        headers = (("Retry-After", "1"),)
    if isinstance(error, RateLimited):
        headers = (("Retry-After", str(error.wait)),)
    return HttpAnswer(status, msgspec.json.encode({"error": text}), headers=tuple(headers))


def _wrong(message: str) -> RequestError:
    return RequestError(message, code="invalid_tensor")
