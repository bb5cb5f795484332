"""Answers as the outputs of a response of the Open Inference Protocol (KServe v2): arrays, ranks, JSON texts.

It reads no request but the outputs that one asks for.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from flambeau.answers import Asked
from flambeau.errors import RequestError
from flambeau.items import name_of
from flambeau.protocols.errors import answers_of
from flambeau.protocols.v2_datatypes import datatype_of
from flambeau.protocols.v2_values import NamedTensor, Parameters, RequestedOutput
from flambeau.serving.model import Model
from flambeau.tasks import COUNT
from flambeau.types import Outcome

ANSWER = "answer"
"""The BYTES output of a task whose answers are no arrays, or arrays of unlike shapes: each element is an answer's JSON.
Where there are arrays, it is given only if it is asked for."""


def classes_of(parameters: Parameters) -> int:
    """How many classes the extension `classification` asks for; 0: the output itself."""
    count = parameters.get("classification", 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise RequestError("the parameter classification must be a whole number from 0", code="bad_request")
    return count


def names_of(outputs: Sequence[RequestedOutput]) -> list[str]:
    """The names of the outputs that are asked for."""
    return [each.name for each in outputs]


def arrays_of(
    model: Model, outcomes: Sequence[Outcome], wanted: Sequence[RequestedOutput], *, noun: str, top_k: int
) -> dict[str, npt.NDArray[Any]]:
    """The answers as arrays with a row for each item. Raises the `RequestError` of the first item that failed."""
    answers = answers_of(outcomes, noun=noun)
    names = names_of(wanted)
    if model.kind == "python":
        return {"output": _texts([msgspec.json.encode(each.output) for each in answers])}
    found: dict[str, npt.NDArray[Any]] = {}
    if ANSWER in names:
        told = Asked(top_k=top_k)
        found[ANSWER] = _texts([msgspec.json.encode(each.body(told)) for each in answers])
        names.remove(ANSWER)
    parts = [each.tensors() for each in answers] if names else []
    if parts and COUNT in parts[0]:
        longest = max(int(part[COUNT][0]) for part in parts)
        parts = [{name: _padded(part[name], longest) for name in names} for part in parts]
    for name in names:
        if len({part[name].shape for part in parts}) > 1:
            raise RequestError(
                f"the answers to these {noun}s have '{name}' of unlike shapes, which no tensor can hold: "
                f"send them one by one, or ask for the output '{ANSWER}', which is JSON",
                code="bad_request",
            )
    return found | {name: np.concatenate([part[name] for part in parts]) for name in names}


def nulls_of(model: Model, outcomes: Sequence[Outcome], wanted: Sequence[RequestedOutput]) -> int:
    """How many numbers of the answers are NaN or infinite, and null in the texts of JSON that are asked for."""
    if model.kind != "python" and ANSWER not in names_of(wanted):
        return 0
    return sum(each.result.nonfinite for each in outcomes if not isinstance(each.result, RequestError))


def _padded(array: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """The array with so many entries for its row, zeros or empty texts behind its own; itself if it has one for all."""
    if array.ndim == 1:
        return array
    more = np.full((1, length - array.shape[1], *array.shape[2:]), "" if array.dtype.kind == "O" else 0, array.dtype)
    return np.concatenate([array, more], axis=1)


def _texts(texts: list[bytes]) -> npt.NDArray[Any]:
    found = np.empty(len(texts), np.object_)
    found[:] = texts
    return found


def output_of(wanted: RequestedOutput, array: npt.NDArray[Any], model: Model) -> NamedTensor:
    """An output as the client asked for it: itself, or its best classes."""
    name, parameters = wanted.name, wanted.parameters
    if count := classes_of(parameters):
        array = _ranked(name, array, count, [label.name for label in model.bundle.labels() or ()])
    if array.dtype.kind == "O":
        elements = tuple(each if isinstance(each, bytes) else str(each).encode() for each in array.ravel())
        return NamedTensor(name, "BYTES", array.shape, elements, parameters)
    return NamedTensor(name, datatype_of(name_of(array.dtype)), array.shape, array, parameters)


def _ranked(name: str, array: npt.NDArray[Any], count: int, labels: Sequence[str]) -> npt.NDArray[Any]:
    """The extension `classification`: the largest numbers of each row as texts `VALUE:INDEX` or `VALUE:INDEX:LABEL`.

    Shape (rows, count), or as many as a row has numbers. Ties keep the order of the numbers.
    """
    if array.dtype.kind not in "fiu":
        raise RequestError(f"the output '{name}' has no numbers to rank", code="bad_request")
    rows = array.reshape(len(array), -1)
    best = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    named = labels if len(labels) == rows.shape[1] else ()
    found = np.empty(best.shape, np.object_)
    for row, places in enumerate(best.tolist()):
        for rank, place in enumerate(places):
            text = f"{rows[row, place]:f}:{place}" if rows.dtype.kind == "f" else f"{rows[row, place]}:{place}"
            found[row, rank] = f"{text}:{named[place]}" if named else text
    return found
