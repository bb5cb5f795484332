"""Tensors between gRPC's messages and the protocol's values: raw bytes, and typed contents.

Raw contents are all or nothing: one for each input, in their order. Answers always have raw contents, which every
datatype has; that is Triton's way, too.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from flambeau.errors import RequestError
from flambeau.grpc.descriptors import message
from flambeau.grpc.infer_messages import InferMessage
from flambeau.protocols import v2_datatypes
from flambeau.protocols.v2_datatypes import NUMPY, Elements, V2Datatype
from flambeau.protocols.v2_inference import refuse_shared_memory
from flambeau.protocols.v2_values import (
    InferenceRequest,
    InferenceResponse,
    NamedTensor,
    Parameters,
    RequestedOutput,
)

_Response: Any = message("ModelInferResponse")
_StreamResponse: Any = message("ModelStreamInferResponse")

_NO_CONTENTS: Any = message("InferTensorContents")()

_ID = _Response.DESCRIPTOR.fields_by_name["id"].number
_RAW_OUTPUTS = _Response.DESCRIPTOR.fields_by_name["raw_output_contents"].number
_INFER_RESPONSE = _StreamResponse.DESCRIPTOR.fields_by_name["infer_response"].number
_DATATYPES = frozenset(get_args(V2Datatype))
_CONTENTS: dict[V2Datatype, str] = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
"""Where the elements of each datatype are, if they are not raw. FP16 and BF16 are always raw."""

_WIDE: dict[str, V2Datatype] = {"int_contents": "INT32", "uint_contents": "UINT32"}
"""The datatype of the numbers in a field that smaller ones share."""


class _AskedInput(NamedTuple):
    """An input but for its elements. `contents`: those that are not raw, if the request has any."""

    name: str
    datatype: V2Datatype
    shape: tuple[int, ...]
    parameters: Parameters
    contents: Any


class _AskedFor(NamedTuple):
    """What the requests of one form ask for."""

    inputs: tuple[_AskedInput, ...]
    outputs: tuple[RequestedOutput, ...]
    parameters: Parameters


def request_of(message: InferMessage, *, most_elements: int) -> InferenceRequest:
    """The request in a message. Raises `RequestError`. `most_elements` bounds those of a BYTES tensor."""
    form, raw = message.form, message.raw
    if raw and len(raw) != len(form.fields.inputs):
        raise _wrong(
            f"the request has {len(form.fields.inputs)} inputs and {len(raw)} raw_input_contents: "
            "send one for each input, in their order, or contents"
        )
    described: _AskedFor | None = form.described
    if described is None:
        described = form.described = _describe(form.fields)
    inputs = tuple(
        [
            _tensor(each, raw[place] if raw else None, most_elements=most_elements)
            for place, each in enumerate(described.inputs)
        ]
    )
    return InferenceRequest(inputs, described.outputs, described.parameters, message.identity)


def _describe(asked: Any) -> _AskedFor:
    outputs = tuple(RequestedOutput(each.name, _parameters(each.parameters)) for each in asked.outputs)
    return _AskedFor(tuple(map(_input, asked.inputs)), outputs, _parameters(asked.parameters))


def response_of(found: InferenceResponse) -> bytes:
    """The `ModelInferResponse`. Raw contents come last, and are copied once."""
    outputs = tuple([(each.name, each.datatype, each.shape) for each in found.outputs])
    pieces: list[bytes | memoryview] = [_head(found.model_name, found.model_version, outputs)]
    if found.identity:
        pieces += _field(_ID, [found.identity.encode()])
    for each in found.outputs:
        pieces += _field(_RAW_OUTPUTS, v2_datatypes.to_bytes(each.datatype, each.data))
    return b"".join(pieces)


@functools.lru_cache(maxsize=256)
def _head(model_name: str, model_version: str, outputs: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    """The part of a response that all of the same form have."""
    made = _Response(model_name=model_name, model_version=model_version)
    for name, datatype, shape in outputs:
        made.outputs.add(name=name, datatype=datatype, shape=shape)
    text: bytes = made.SerializeToString()
    return text


def streamed(response: bytes) -> bytes:
    """A `ModelInferResponse` as the message of a stream."""
    return b"".join(_field(_INFER_RESPONSE, [response]))


def _field(number: int, contents: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """A field of bytes, or of a message, as protobuf encodes it: its number and kind, its length, itself."""
    return [_number(number << 3 | 2), _number(sum(map(len, contents))), *contents]


def _number(value: int) -> bytes:
    """A whole number in protobuf's encoding: seven bits a byte, the lowest first."""
    if value < 128:
        return value.to_bytes(1)
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _parameters(given: Any) -> Parameters:
    return {name: value for name, each in given.items() if (value := _value(name, each)) is not None}


def _value(name: str, given: Any) -> Any:
    choice = given.WhichOneof("parameter_choice")
    if choice is None:
        raise RequestError(f"the parameter '{name}' has no value", code="bad_request")
    return getattr(given, choice)


def _input(given: Any) -> _AskedInput:
    name, datatype, shape = given.name, given.datatype, tuple(given.shape)
    if datatype not in _DATATYPES:
        raise _wrong(f"the input '{name}' has the datatype {datatype!r}: there are {', '.join(sorted(_DATATYPES))}")
    parameters = _parameters(given.parameters)
    refuse_shared_memory(parameters)
    return _AskedInput(name, datatype, shape, parameters, given.contents if given.HasField("contents") else None)


def _tensor(given: _AskedInput, raw: bytes | memoryview | None, *, most_elements: int) -> NamedTensor:
    name, datatype, shape, parameters, contents = given
    data: npt.NDArray[Any] | Elements
    if raw is not None:
        if contents is not None:
            raise _wrong(f"the input '{name}' has contents beside raw_input_contents: send one of them")
        data = v2_datatypes.from_bytes(name, datatype, shape, raw, most_elements=most_elements)
    else:
        data = _typed(
            name, datatype, shape, _NO_CONTENTS if contents is None else contents, most_elements=most_elements
        )
    return NamedTensor(name, datatype, shape, data, parameters)


def _typed(
    name: str, datatype: V2Datatype, shape: tuple[int, ...], contents: Any, *, most_elements: int
) -> npt.NDArray[Any] | Elements:
    place = _CONTENTS.get(datatype)
    if place is None:
        raise _wrong(f"the input '{name}' is {datatype}, which only raw_input_contents hold")
    for field, _ in contents.ListFields():
        if field.name != place:
            raise _wrong(f"the input '{name}' is {datatype}: its elements are to be in {place}, not in {field.name}")
    elements = getattr(contents, place)
    count = v2_datatypes.count_of(name, shape)
    if len(elements) != count:
        raise _wrong(f"the input '{name}' has {len(elements)} elements, but its shape {list(shape)} has {count}")
    if datatype == "BYTES":
        v2_datatypes.refuse_more_elements(name, count, most_elements)
        return tuple(elements)
    if datatype in ("FP32", "FP64"):
        return _floats(contents, NUMPY[datatype], count).reshape(shape)
    wide = np.fromiter(elements, NUMPY[_WIDE.get(place, datatype)], count)
    narrow = wide.astype(NUMPY[datatype], copy=False)
    if narrow.dtype != wide.dtype and not np.array_equal(narrow, wide):
        raise _wrong(f"the input '{name}' has a number that {datatype} cannot hold")
    return narrow.reshape(shape)


def _floats(contents: Any, dtype: "np.dtype[Any]", count: int) -> npt.NDArray[Any]:
    """The numbers of contents that have nothing else, as they are encoded: one by one, millions would hold up the loop.

    The encoding is a byte for the field, the length, the numbers; fields that nobody knows come behind.
    """
    if not count:
        return np.zeros(0, dtype)
    encoded = contents.SerializeToString()
    start = 1
    while encoded[start] & 128:
        start += 1
    return np.frombuffer(encoded, dtype, count, start + 1)


def _wrong(sentence: str) -> RequestError:
    return RequestError(sentence, code="invalid_tensor")
