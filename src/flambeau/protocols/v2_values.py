"""A request and a response of the Open Inference Protocol (KServe v2) as values, for REST and gRPC alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from flambeau.protocols.v2_datatypes import Elements, V2Datatype
from flambeau.types import Options, Payload, Timings

ParameterValue = str | bool | int | float
Parameters = Mapping[str, ParameterValue]


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """An input or an output. `data` is an array of that shape, or the elements of BYTES in row-major order.

    An input of BF16 has its numbers as float32.
    """

    name: str
    datatype: V2Datatype
    shape: tuple[int, ...]
    data: npt.NDArray[Any] | Elements
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a client asks for."""

    name: str
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """A request as items for a model. `wanted`: the outputs. `raw`: the items are the network's own inputs. `noun`:
    what an item is called."""

    payloads: list[Payload]
    options: Options
    wanted: tuple[RequestedOutput, ...]
    raw: bool
    noun: str = ""


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """A request to one model. Without `outputs`, it asks for all. `identity` is the client's own id, echoed.

    `text`: the JSON that says all of it but the bytes of the tensors, if there is one. `question`: its items, where a
    request of the same text was read before; then there are no `inputs`.
    """

    inputs: tuple[NamedTensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    parameters: Parameters = field(default_factory=dict)
    identity: str = ""
    text: bytes = b""
    question: Question | None = None


@dataclass(frozen=True, slots=True)
class InferenceResponse:
    """The answer to a request. `timings`: one for each item. `queued`: `time.monotonic()` when they were queued.
    `nulls`: the numbers that are NaN or infinite, and therefore null, in outputs whose elements are JSON.
    """

    model_name: str
    model_version: str
    identity: str
    outputs: tuple[NamedTensor, ...]
    timings: Sequence[Timings]
    queued: float
    nulls: int = 0
