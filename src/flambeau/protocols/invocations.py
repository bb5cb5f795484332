"""Predictions on the one route of a cloud's endpoint: SageMaker's /invocations, Vertex's and Azure's own paths.

    {"instances": [...], "parameters": {...}}    {"predictions": [...]}, as KServe v1 and Vertex AI have it
    [[1, 2, 3], ...]                             [[2, 4, 6], ...]: rows of a network, as SageMaker's own images answer
    text/csv, application/x-npy                  the same rows, answered in the form that Accept prefers, else as JSON
    an image, a form, {"input": ...}             as the native protocol answers

SageMaker passes no query: options come in X-Amzn-SageMaker-Custom-Attributes, as in `top_k=5,threshold=0.1`.
"""

import asyncio
import io
import re
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from flambeau.answers.value import encode
from flambeau.errors import RequestError
from flambeau.items import FREE
from flambeau.pipelines import json_document
from flambeau.protocols import handler_calls, native, v1, v1_documents
from flambeau.protocols.content_encoding import UnpackingBudget
from flambeau.protocols.messages import JSON, HttpAnswer, HttpRequest, prefers
from flambeau.protocols.native import Answered
from flambeau.protocols.npy import read_npy, write_npy
from flambeau.serving import tensor_requests
from flambeau.serving.model import Model
from flambeau.serving.service import Service
from flambeau.types import Options, Tensors

Infer = Callable[[Service, Model, HttpRequest], Coroutine[Any, Any, Answered]]

CSV, NPY = "text/csv", "application/x-npy"
ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"

_LARGEST_CSV = 8 * 2**20  # bytes: its numbers are read one by one
_JSON = re.compile(rb"\s*[{\[]")
_ROWS = re.compile(rb"\s*\[")
_INSTANCES = re.compile(rb'\s*\{\s*"(?:instances|inputs|parameters|signature_name)"\s*:')
_OPTION = re.compile(r"\s*(top_k|threshold)\s*=\s*([0-9.eE+-]+)\s*")
_PREDICTIONS = b'{"predictions":'


def answering(unpacking: UnpackingBudget) -> Infer:
    """The function that answers for one model, as `dispatch.prediction` takes it."""
    by_v1 = v1.answering(unpacking)

    async def answer(service: Service, model: Model, request: HttpRequest) -> Answered:
        if model.task == handler_calls.TASK:
            return await handler_calls.answer(service, model, request)
        request = _with_type(_with_options(request))
        media_type = request.media_type()
        start = bytes(request.body[:256]) if media_type == JSON else b""
        if _INSTANCES.match(start):
            return await by_v1(service, model, request)
        try:
            tensors = whole = None
            if media_type in (CSV, NPY):
                tensors = await _off_the_loop(_tensors, request.body, media_type, model)
            elif _ROWS.match(start):
                whole = replace(request, body=b'{"instances":' + _one_value(request.body) + b"}")
        except RequestError as error:
            model.metrics.rejected(error.code)
            raise
        if tensors is not None:
            return await _rows(service, model, request, tensors)
        if whole is not None:
            found = await by_v1(service, model, whole)
            return replace(found, http=_bare(found.http))
        return await native.answer(service, model, request)

    return answer


def _one_value(body: bytes | memoryview) -> bytes:
    """The body, known to be one JSON value, unless it is so long that it is refused in any case."""
    if len(body) <= v1_documents.LARGEST:
        try:
            msgspec.json.decode(body, type=msgspec.Raw)
        except msgspec.DecodeError as error:
            raise RequestError(f"the body is not JSON: {error}", code="invalid_json") from None
    return bytes(body)


def _bare(answer: HttpAnswer) -> HttpAnswer:
    """The predictions without the object around them."""
    if not answer.body.startswith(_PREDICTIONS):
        return answer
    return replace(answer, body=answer.body[len(_PREDICTIONS) : -1])


def _with_options(request: HttpRequest) -> HttpRequest:
    """The request with the options in its attributes as if they stood in its query. Others are the caller's own."""
    attributes = request.headers.get(ATTRIBUTES)
    if not attributes:
        return request
    found = [_OPTION.fullmatch(each) for each in attributes.split(",")]
    query = "&".join([*([request.query] if request.query else []), *(f"{each[1]}={each[2]}" for each in found if each)])
    return replace(request, query=query)


def _with_type(request: HttpRequest) -> HttpRequest:
    """A request without Content-Type whose body begins as JSON does, with that type: Vertex's own client sends none."""
    if request.media_type() or not _JSON.match(bytes(request.body[:64])):
        return request
    return replace(request, headers={**request.headers, "content-type": JSON})


async def _off_the_loop(read: Callable[..., Tensors], body: bytes | memoryview, *more: Any) -> Tensors:
    """What `read` makes of a body, in a thread if it is long: other requests go on meanwhile."""
    return await asyncio.to_thread(read, body, *more) if len(body) > json_document.SHORT else read(body, *more)


async def _rows(service: Service, model: Model, request: HttpRequest, tensors: Tensors) -> Answered:
    payloads = tensor_requests.split(model, tensors, most=service.settings.max_items)
    if request.charge is not None:
        request.charge(len(payloads) - 1)
    queued = time.monotonic()
    outcomes = await service.predict(model, payloads, Options(mask="png"), timeout=service.settings.deadline)
    outputs = tensor_requests.join(outcomes)
    return Answered(_written(outputs, request), None, [each.timings for each in outcomes], queued)


def _tensors(body: bytes | memoryview, media_type: str, model: Model) -> Tensors:
    if model.kind != "tensor" or len(model.bundle.manifest.inputs) != 1:
        wanted = {"image": "an image", "audio": "a sound file"}.get(model.kind, "JSON")
        raise RequestError(
            f"{media_type} is for networks with one input of numbers: send '{model.name}' {wanted}",
            code="unsupported_media_type",
        )
    [spec] = model.bundle.manifest.inputs
    array = read_npy(body) if media_type == NPY else _read_csv(body, missing=spec.missing)
    row = tuple(spec.shape)
    if array.ndim == 2 and len(row) > 1 and FREE not in row and array.shape[1] == np.prod(row):
        array = array.reshape(-1, *row)  # a line of CSV has no other form
    return {spec.name: _as_type(array, np.dtype(spec.dtype))}


def _as_type(array: npt.NDArray[Any], dtype: "np.dtype[Any]") -> npt.NDArray[Any]:
    """The numbers in the network's type. Raises `RequestError` where that would change whole numbers."""
    if dtype.kind in "iu" and array.dtype.kind == "f":
        limits = np.iinfo(dtype)
        whole = np.isfinite(array) & (array == np.floor(array)) & (array >= limits.min) & (array <= limits.max)
        if not whole.all():
            raise RequestError(f"the network takes whole numbers, {dtype}", code="invalid_tensor")
    elif dtype.kind in "iu" and array.size and array.dtype != dtype:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise RequestError(f"a number is out of the range of {dtype}", code="invalid_tensor")
    return np.ascontiguousarray(array.astype(dtype, copy=False))


def _read_csv(body: bytes | memoryview, *, missing: bool) -> npt.NDArray[np.float64]:
    """Lines of numbers, shape (lines, numbers), without a header: SageMaker's form. Numbers may be `missing`: then
    empty cells are NaN. Raises `RequestError`."""
    if not body:
        raise RequestError("the body is empty: send a line of numbers", code="empty_body")
    if len(body) > _LARGEST_CSV:
        raise RequestError(f"the CSV has more than {_LARGEST_CSV} bytes: send {NPY}", code="body_too_large")
    try:
        lines = str(body, "utf-8").splitlines()
        nothing = "nan" if missing else ""
        if b"_" in bytes(body):
            raise ValueError("only Python reads 1_000 as a number")
        rows = [[float(cell.strip() or nothing) for cell in line.split(",")] for line in lines if line.strip()]
        return np.array(rows, np.float64)
    except ValueError:  # not UTF-8, a cell that is no number, or lines of different lengths
        raise RequestError(
            "the CSV is not lines of numbers, all of one length and without a header", code="invalid_tensor"
        ) from None


def _written(outputs: Tensors, request: HttpRequest) -> HttpAnswer:
    """The outputs in the form that the client prefers; of several outputs only JSON has names."""
    accept = request.headers.get("accept", "")
    if len(outputs) == 1:
        [array] = outputs.values()
        if prefers(accept, NPY, over=JSON):
            return HttpAnswer(200, write_npy(array), NPY)
        if prefers(accept, CSV, over=JSON) and array.ndim <= 2:
            file = io.StringIO()
            np.savetxt(file, array, fmt="%.9g", delimiter=",")
            return HttpAnswer(200, file.getvalue().encode(), CSV)
        value = encode(array)
    else:
        value = encode(outputs)
    headers = (("X-Nonfinite-Outputs", str(value.nonfinite)),) if value.nonfinite else ()
    return HttpAnswer(200, bytes(value.json), headers=headers)
