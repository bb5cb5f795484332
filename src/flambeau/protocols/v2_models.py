"""What the Open Inference Protocol (KServe v2) says about the server, its models and its repository, as plain values.

REST prints them as they are; gRPC's messages have the same fields. This module knows neither.
"""

from typing import Any, Literal

import msgspec

from flambeau.errors import RequestError
from flambeau.protocols import v2_inference
from flambeau.protocols.v2_datatypes import datatype_of
from flambeau.protocols.v2_inference import shape_of
from flambeau.protocols.v2_values import ParameterValue
from flambeau.serving.model import Model
from flambeau.serving.service import Service
from flambeau.tasks.tensor import MAX_ROWS
from flambeau.types import ModelState, TensorSpec
from flambeau.version import VERSION

EXTENSIONS = (
    "binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters", "schedule_policy",
    "statistics",
)  # fmt: skip
"""The extensions of Triton's that are there. Of schedule_policy only `timeout` has an effect."""


class ServerMetadata(msgspec.Struct):
    """`GET /v2`."""

    name: str
    version: str
    extensions: tuple[str, ...]


class TensorMetadata(msgspec.Struct):
    """An input or output of a model: -1 stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct):
    """`GET /v2/models/{model}`. `properties` says in words which inputs go together, and which outputs they give."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    properties: dict[str, str]


IndexState = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]

_STATES: dict[ModelState, IndexState] = {
    ModelState.READY: "READY", ModelState.LOADING: "LOADING", ModelState.UNLOADING: "UNLOADING",
}  # fmt: skip


class IndexEntry(msgspec.Struct):
    """A version in `POST /v2/repository/index`."""

    name: str
    version: str
    state: IndexState
    reason: str


def server_metadata() -> ServerMetadata:
    """The server, and the extensions that it has."""
    return ServerMetadata("flambeau", VERSION, EXTENSIONS)


def metadata(service: Service, model: Model) -> ModelMetadata:
    """A model's tensors: the network's own, and those of the pipeline's way."""
    raw, answered = v2_inference.raw_outputs(model), v2_inference.answer_outputs(model)
    outputs = {spec.name: spec for spec in (*raw, *answered)}
    loaded = [number for number, entry in service.table.named(model.name).versions.items() if entry.usable()]
    return ModelMetadata(
        model.name,
        tuple(loaded),
        f"flambeau_{model.engine}",
        (*map(_tensor, v2_inference.raw_inputs(model)), *_whole_inputs(model)),
        tuple(map(_tensor, outputs.values())),
        properties(model),
    )


def _tensor(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(spec.name, datatype_of(spec.dtype), shape_of(spec))


def _whole_inputs(model: Model) -> list[TensorMetadata]:
    """The BYTES inputs, of which a request gives one and nothing else."""
    names = v2_inference.whole_inputs(model)
    return [TensorMetadata(name, "BYTES", (-1,)) for name in names]


def properties(model: Model) -> dict[str, str]:
    """In words: which inputs go together, and which outputs they give."""
    found = {"task": model.task, "engine": model.engine}
    raw = ", ".join(spec.name for spec in v2_inference.raw_inputs(model))
    raw_outputs = ", ".join(spec.name for spec in v2_inference.raw_outputs(model))
    answered = ", ".join(spec.name for spec in v2_inference.answer_outputs(model))
    if raw:
        found["tensors"] = f"{raw}: the network's own tensors, prepared by the client; answered with {raw_outputs}"
    if model.kind == "python":
        found["values"] = f"{v2_inference.VALUES}: each element is the JSON of a value; answered with {answered}, JSON"
    if model.kind == "text":
        text = v2_inference.texts_of(model)
        found["texts"] = f"{text}: each element is a text; answered with {answered}. Send it alone."
    if files := v2_inference.files_of(model):
        what = {"image": "an encoded image of any size", "audio": "a WAV or FLAC file"}.get(model.kind, "a file")
        found["files"] = f"{files}: each element is {what}; answered with {answered}. Send it alone."
    return found


def config(service: Service, model: Model) -> dict[str, Any]:
    """The model in the form of Triton's ModelConfig, as far as it has a meaning here.

    `dims` leave out the row axis, as Triton's do where `max_batch_size` is above 0.
    """
    rows = 1 if model.kind != "tensor" else MAX_ROWS
    whole = [
        {
            "name": each.name, "data_type": "TYPE_STRING", "dims": [1], "reshape": {"shape": []},
            "optional": bool(v2_inference.raw_inputs(model)),
        }
        for each in _whole_inputs(model)
    ]  # fmt: skip
    outputs = {
        spec.name: spec for spec in (*v2_inference.raw_outputs(model), *v2_inference.answer_outputs(model))
    }.values()
    on_gpu = model.device.startswith("cuda")
    return {
        "name": model.name,
        "platform": f"flambeau_{model.engine}",
        "backend": model.engine,
        "version_policy": {"all": {}},
        "max_batch_size": rows * service.settings.max_items,
        "input": [*map(_configured, v2_inference.raw_inputs(model)), *whole],
        "output": [*map(_configured, outputs)],
        "instance_group": [
            {"name": model.name, "kind": "KIND_GPU" if on_gpu else "KIND_CPU", "count": model.replicas}
        ],
        "dynamic_batching": {
            "max_queue_delay_microseconds": int(1000 * service.settings.max_queue_delay_ms),
        },
        "parameters": {name: {"string_value": text} for name, text in properties(model).items()},
    }  # fmt: skip


def _configured(spec: TensorSpec) -> dict[str, Any]:
    datatype = datatype_of(spec.dtype)
    kind = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    if not spec.shape:
        return {"name": spec.name, "data_type": kind, "dims": [1], "reshape": {"shape": []}}
    return {"name": spec.name, "data_type": kind, "dims": list(spec.shape)}


def statistics(service: Service, models: list[Model]) -> dict[str, Any]:
    """Triton's statistics of those models: counts, and nanoseconds in each stage of an item.

    An inference is an item, an execution a batch. What is not known is 0: `cache_hit`, `cache_miss`, and the times
    within `batch_stats`, which is empty.
    """
    return {"model_stats": [_statistics(model) for model in models]}


def _statistics(model: Model) -> dict[str, Any]:
    counted = model.metrics.totals
    nothing = {"count": 0, "ns": 0}

    def stage(seconds: float) -> dict[str, int]:
        return {"count": counted.items, "ns": int(1e9 * seconds)}

    return {
        "name": model.name,
        "version": model.version,
        "last_inference": int(1000 * counted.last),
        "inference_count": counted.items,
        "execution_count": counted.batches,
        "inference_stats": {
            "success": {"count": counted.answered, "ns": int(1e9 * counted.seconds)},
            "fail": {"count": counted.failed, "ns": 0},
            "queue": stage(counted.queue),
            "compute_input": stage(counted.preprocess),
            "compute_infer": stage(counted.inference),
            "compute_output": stage(counted.postprocess),
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [],
        "memory_usage": [],
        "response_stats": {},
    }


def index(service: Service, *, ready: bool, reasons: bool) -> list[IndexEntry]:
    """Every version of every model; with `ready` those that can answer. `reasons`: with those for which one failed."""
    found = []
    for entry in service.table.versions():
        declared, state = entry.declaration, _STATES.get(entry.state, "UNAVAILABLE")
        why = entry.fault if reasons else "it could not be loaded: an admin token reads why"
        if not ready or state == "READY":
            found.append(IndexEntry(declared.name, declared.version, state, why if entry.fault else ""))
    return found


async def load(service: Service, name: str, parameters: dict[str, ParameterValue], *, by: str) -> None:
    """Load the version of a model that answers by default, or its newest where none does; return when it is loaded."""
    if parameters:
        odd = next(iter(parameters))
        message = f"a model is loaded from the repository as it is there: the parameter {odd!r} is not supported"
        raise RequestError(message, code="not_implemented")
    await service.loader.refresh()
    entry = service.table.version(name, None)
    await service.loader.load(name, entry.declaration.version, by=by)


async def unload(service: Service, name: str, *, by: str) -> None:
    """Let go of every version of a model; return when the last request to each is answered."""
    served = service.table.named(name)
    for number, entry in list(served.versions.items()):
        if entry.model is not None:
            await service.loader.unload(name, number, by=by)
