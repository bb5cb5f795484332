"""The API of Hugging Face's Inference Endpoints: raw bytes or `{"inputs": ...}` in, the shapes of its tasks out.

    POST /   image bytes, with their Content-Type                   [{"label": "cat", "score": 0.9}, ...]
             {"inputs": "<base64>", "parameters": {"top_k": 2}}     the same
             {"inputs": ["<base64>", ...]}                          a list of answers
             {"inputs": [[1, 2, 3], ...]}, a network over numbers   [[2, 4, 6], ...]
             {"inputs": "a text"}, text classification              [[{"label": "good", "score": 0.9}, ...]]

An embedding is a list of numbers in a list, as feature extraction answers, and several are a list of such lists of
numbers. Its parameters stand beside `inputs`. A query's parameters count as `parameters`.
The model's own activation stays: another `function_to_apply` is refused. Types: huggingface_hub's
`ImageClassificationOutputElement` and `ImageClassificationParameters`.
"""

import time
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from flambeau.answers import Answer, Asked, Value, png
from flambeau.answers.activation import unit
from flambeau.bundle.pipeline_config import TextConfig
from flambeau.errors import RequestError
from flambeau.pipelines import json_document
from flambeau.protocols import native, v1_documents
from flambeau.protocols.errors import answers_of, error_answer
from flambeau.protocols.messages import JSON, HttpAnswer, HttpRequest
from flambeau.protocols.native import Answered
from flambeau.protocols.parameters import THRESHOLD, TOP_K
from flambeau.serving.model import Model
from flambeau.serving.service import Service
from flambeau.settings.service import Settings
from flambeau.tasks.classification import Classification
from flambeau.tasks.embedding import Embedding
from flambeau.tasks.image_to_image import ImageToImage
from flambeau.tasks.multi_label import MultiLabel
from flambeau.tasks.object_detection import ObjectDetection
from flambeau.tasks.semantic_segmentation import SemanticSegmentation
from flambeau.types import Options, Payload

_USUAL_TOP_K = 5  # of transformers' pipeline for images
_FORM = 'send an image\'s bytes, or {"inputs": ..., "parameters": {...}}'


class _PipelineParameters(msgspec.Struct, frozen=True):
    top_k: int | None = None
    threshold: float | None = None
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None


class _PipelineBody(msgspec.Struct):
    """A request. The members after `parameters` are those of feature extraction, which has them at the top."""

    inputs: msgspec.Raw
    parameters: _PipelineParameters | None = None
    normalize: bool | None = None
    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None
    prompt_name: str | None = None
    dimensions: int | None = None
    encoding_format: str | None = None


_BODY = msgspec.json.Decoder(_PipelineBody)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


async def answer(service: Service, model: Model, request: HttpRequest) -> Answered:
    """Answer a request to `model`, as `dispatch.prediction` takes it. Raises `RequestError`."""
    try:
        payloads, several, parameters, normalize = await _read(request, model, service.settings)
        _refuse_function(parameters, model)
        options = _options(parameters, request)
        if request.charge is not None:
            request.charge(len(payloads) - 1)
    except RequestError as error:
        model.metrics.rejected(error.code)
        raise
    queued = time.monotonic()
    outcomes = await service.predict(model, payloads, options, timeout=service.settings.deadline)
    timings = [each.timings for each in outcomes]
    found = answers_of(outcomes, noun="input")
    nonfinite = sum(each.nonfinite for each in found)
    headers = (("X-Nonfinite-Outputs", str(nonfinite)),) if nonfinite else ()
    first = found[0]
    if isinstance(first, ImageToImage) and not several:
        return Answered(HttpAnswer(200, first.file, png.PNG, headers), None, timings, queued)
    shapes = [_shape(each, options.top_k, options.threshold, normalize=normalize) for each in found]
    if model.kind == "text" and not several and isinstance(first, Classification | MultiLabel):
        shapes = [shapes]  # as text classification answers, even to one text
    if several and all(isinstance(each, Embedding) for each in found):
        shapes = [row for [row] in shapes]
    text = msgspec.json.encode(shapes if several else shapes[0])
    return Answered(HttpAnswer(200, text, headers=headers), None, timings, queued)


def refuse(error: RequestError, request_id: str) -> HttpAnswer:
    """The answer to a request that failed: `{"error": ...}`, as its clients read it."""
    return error_answer(error, request_id)


async def _read(
    request: HttpRequest, model: Model, settings: Settings
) -> tuple[list[Payload], bool, _PipelineParameters, bool]:
    """The payloads, whether they are answered as a list, the parameters, and whether vectors are to have length 1."""
    if request.media_type() != JSON:
        call = await native.read(replace(request, query=""), model.kind, settings, task=model.task)
        payloads = []
        for _, payload in call.items:
            if isinstance(payload, RequestError):
                raise payload
            payloads.append(payload)
        return payloads, len(payloads) > 1, _PipelineParameters(), False
    if not request.body:
        raise RequestError(f"the body is empty: {_FORM}", code="empty_body")
    if len(request.body) > v1_documents.LARGEST:
        raise RequestError(
            f"the JSON has more than {v1_documents.LARGEST} bytes: send the image's own bytes", code="body_too_large"
        )
    body = bytes(request.body)
    try:
        found = json_document.decode(body, _BODY, max_depth=settings.max_json_depth)
    except msgspec.ValidationError as error:
        raise RequestError(f"the request is not understood: {error}: {_FORM}", code="invalid_json") from None
    inputs = memoryview(found.inputs)
    json_document.refuse_another(body, inputs, "inputs", lambda rest: "inputs" in _MEMBERS.decode(rest))
    parameters = found.parameters or _PipelineParameters()
    normalize = _vectors(found, model)
    if model.kind not in ("image", "text", "audio"):
        return [v1_documents.payload_of(bytes(inputs))], False, parameters, normalize
    several = bytes(inputs[:1]) == b"["
    text = bytes(inputs) if several else b"[%b]" % bytes(inputs)
    return v1_documents.payloads_of(text, model, settings.max_items), several, parameters, normalize


def _vectors(found: _PipelineBody, model: Model) -> bool:
    """Whether vectors are to be made of length 1. Raises `RequestError` for what the model cannot do."""
    for name in ("prompt_name", "dimensions"):
        if getattr(found, name) is not None:
            raise RequestError(f"the model has no {name}: leave it out", code="bad_request")
    if found.encoding_format not in (None, "float"):
        raise RequestError("vectors are sent as numbers: leave encoding_format out", code="bad_request")
    pipeline = model.bundle.manifest.pipeline
    if found.truncate is False and isinstance(pipeline, TextConfig) and pipeline.truncate:
        raise RequestError("the model cuts long texts: leave truncate out", code="bad_request")
    if found.truncation_direction in ("Left", "left"):
        raise RequestError("texts are cut at their end: leave truncation_direction out", code="bad_request")
    if found.normalize is None:
        return False
    if model.task != "embedding":
        raise RequestError("normalize is for models that answer with vectors: leave it out", code="bad_request")
    if not found.normalize and model.bundle.manifest.activated_by.function == "l2":
        raise RequestError("the model's vectors have length 1: leave out normalize", code="bad_request")
    return found.normalize


def _refuse_function(parameters: _PipelineParameters, model: Model) -> None:
    wanted = parameters.function_to_apply
    if wanted is None or model.kind not in ("image", "text", "audio"):
        return
    own = model.bundle.manifest.activated_by.function
    if wanted != own:
        raise RequestError(f"the model applies {own}, not {wanted}: leave out function_to_apply", code="bad_request")


def _options(parameters: _PipelineParameters, request: HttpRequest) -> Options:
    top_k = parameters.top_k if parameters.top_k is not None else TOP_K.read(request)
    threshold = parameters.threshold if parameters.threshold is not None else THRESHOLD.read(request)
    return v1_documents.options_of(_USUAL_TOP_K if top_k is None else int(top_k), threshold)


def _shape(found: Answer, top_k: int, least: float | None, *, normalize: bool) -> Any:
    """The answer in the shape of its Hugging Face task; of tasks that have none there, in ours.

    `least`: the score that the client asked for, if it did. A model's own threshold hides nothing here. `normalize`:
    vectors are made of length 1.
    """
    if isinstance(found, Classification | MultiLabel):
        return [
            {"label": each.label.name, "score": each.probability}
            for each in found.top[:top_k]
            if least is None or each.probability >= least
        ]
    if isinstance(found, ObjectDetection | SemanticSegmentation):
        return found.body(Asked())["predictions"]
    if isinstance(found, Embedding):
        return [(unit(found.embedding) if normalize else found.embedding).tolist()]
    if isinstance(found, Value):
        return found.output
    return found.body(Asked())
