"""A replica: one engine with its pipeline (or one function), and the way of a batch through it.

A bad item fails alone: each is prepared on its own, and when a batch fails as a whole its items are run again one by
one. What a replica returns is one outcome per item, always. It knows no queue, no thread and no protocol.
"""

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import msgspec
import numpy as np

from flambeau import agreement, bundle, engines, logs, usercode
from flambeau.bundle import Bundle, ImagePipeline, PythonPipeline, split_probes
from flambeau.engines.base import Engine
from flambeau.errors import EngineError, InvalidInput, RequestError, SourceError
from flambeau.pipelines import image, json_value, tensor
from flambeau.pipelines.base import Pipeline
from flambeau.python_model import PythonModel
from flambeau.runners.spec import ReplicaSpec
from flambeau.types import Answer, Item, Label, Options, Outcome, Payload, Plain, Tensors, Timings


class Replica(Protocol):
    """Used by one thread at a time."""

    device: str

    def warm_up(self) -> None:
        """Run the way of a request once. Raises `SetupError` when the answer is not what the bundle promises."""
        ...

    def run(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome per item, in order. Never raises for what an item or a model does."""
        ...

    def close(self) -> None:
        """Let go of the model."""
        ...


def open_replica(spec: ReplicaSpec) -> Replica:
    """Open the replica that the bundle's pipeline asks for. Raises `SetupError`."""
    opened = bundle.read(Path(spec.bundle))
    if isinstance(opened.manifest.pipeline, PythonPipeline):
        return open_python_model(opened, opened.manifest.pipeline, allow_code=spec.allow_code)
    device = engines.resolve_device(spec.engine, spec.device)
    engine = engines.load(opened, spec.engine, device=device, threads=spec.threads, allow_code=spec.allow_code)
    return TensorReplica(opened, engine, _pipeline(opened, spec), device=device)


def _pipeline(opened: Bundle, spec: ReplicaSpec) -> Pipeline:
    manifest = opened.manifest
    if not isinstance(manifest.pipeline, ImagePipeline):
        return tensor.TensorPipeline(inputs=manifest.inputs, outputs=manifest.outputs)
    return image.ImagePipeline(
        manifest.pipeline,
        labels=opened.labels() or [Label(str(i), str(i)) for i in range(manifest.outputs[0].shape[0])],
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        threshold=spec.threshold,
        max_pixels=spec.max_image_pixels,
    )


@dataclass(frozen=True, slots=True)
class _Prepared:
    index: int
    tensors: Tensors
    seconds: float


class TensorReplica:
    """An engine between the two halves of a pipeline."""

    def __init__(self, bundle: Bundle, engine: Engine, pipeline: Pipeline, *, device: str) -> None:
        self.device = device
        self._bundle = bundle
        self._engine = engine
        self._pipeline = pipeline

    def warm_up(self) -> None:
        """Reproduce the probe outputs, then answer the pipeline's own example."""
        name = self._bundle.manifest.name
        inputs, eager = split_probes(self._bundle.probes())
        if inputs:
            outputs = self._engine.run(inputs)
            for key, expected in eager.items():
                found = agreement.measure(expected, outputs[key], classes=expected.ndim == 2)
                if not found.holds:
                    raise EngineError(
                        f"on this machine {name} does not reproduce the answers it was built with: {found}: "
                        "build it again here, or take another --engine"
                    )
        [outcome] = self.run([Item(self._pipeline.example(), Options())])
        if isinstance(outcome.result, RequestError):
            raise EngineError(f"{name} cannot answer its own example: {outcome.result.message}")

    def run(self, items: Sequence[Item]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        groups: dict[tuple[tuple[int, ...], ...], list[_Prepared]] = {}
        for index, item in enumerate(items):
            started = time.monotonic()
            tensors = _attempt(self._pipeline.preprocess, item.payload)
            elapsed = time.monotonic() - started
            if isinstance(tensors, RequestError):
                outcomes[index] = Outcome(tensors, Timings(prepare=elapsed))
            else:  # items of unlike shape are never mixed
                shapes = tuple(array.shape[1:] for array in tensors.values())
                groups.setdefault(shapes, []).append(_Prepared(index, tensors, elapsed))
        for group in groups.values():
            for prepared, (rows, compute) in zip(group, self._compute(group), strict=True):
                started = time.monotonic()
                answer = (
                    rows
                    if isinstance(rows, RequestError)
                    else _attempt(self._pipeline.postprocess, rows, items[prepared.index])
                )
                finish = time.monotonic() - started
                outcomes[prepared.index] = Outcome(
                    answer, Timings(prepare=prepared.seconds, compute=compute, finish=finish)
                )
        return [outcomes[index] for index in range(len(items))]

    def _compute(self, group: "list[_Prepared]") -> list[tuple[Tensors | RequestError, float]]:
        """Each item's rows and the seconds they took: as one batch, or one by one if that fails as a whole."""
        started = time.monotonic()
        outputs = _attempt(self._run_engine, [prepared.tensors for prepared in group])
        elapsed = time.monotonic() - started
        if not isinstance(outputs, RequestError):
            return [(rows, elapsed) for rows in outputs]
        if len(group) == 1:
            return [(outputs, elapsed)]
        return [self._compute([prepared])[0] for prepared in group]

    def _run_engine(self, parts: list[Tensors]) -> list[Tensors]:
        """Join the items' rows, compute them together, and cut the outputs back into items."""
        counts = [len(next(iter(part.values()))) for part in parts]
        batch = parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
        outputs = self._engine.run(batch)
        for name, array in outputs.items():
            if len(array) != sum(counts):
                raise _invalid_output(f"the model gave {len(array)} rows of {name} to {sum(counts)} rows of input")
        edges = [0, *np.cumsum(counts)]
        return [{name: array[a:b] for name, array in outputs.items()} for a, b in itertools.pairwise(edges)]

    def close(self) -> None:
        self._engine.close()


def open_python_model(opened: Bundle, pipeline: PythonPipeline, *, allow_code: bool) -> "FunctionReplica":
    """Import the model's class, make one and load it. Raises `SetupError`."""
    found = usercode.load(pipeline.code, within=opened.path, allow_code=allow_code)
    where = f"{pipeline.code.file or pipeline.code.module}:{pipeline.code.name}"
    if not (isinstance(found, type) and issubclass(found, PythonModel)):
        raise SourceError(f"{where} is not a subclass of flambeau.PythonModel")
    try:
        model = found()
        model.load()
    except Exception as error:
        raise SourceError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    return FunctionReplica(model.predict, name=where)


class FunctionReplica:
    """A function from a list of values to a list of answers: a Python model's `predict`, or anybody's callable."""

    def __init__(self, function: Callable[[list[Any]], Any], *, name: str) -> None:
        self.device = "cpu"
        self._function = function
        self._name = name

    def warm_up(self) -> None:
        """Nothing: what the items look like is known to the function's author alone."""

    def run(self, items: Sequence[Item]) -> list[Outcome]:
        values = [_attempt(_item_value, item.payload) for item in items]
        good = [index for index, value in enumerate(values) if not isinstance(value, RequestError)]
        started = time.monotonic()
        answers = dict(zip(good, self._predict([values[index] for index in good]), strict=True))
        timings = Timings(compute=time.monotonic() - started)
        return [
            Outcome(
                _attempt(_function_answer, answers[index], item.payload) if index in answers else values[index], timings
            )
            for index, item in enumerate(items)
        ]

    def _predict(self, batch: list[Any]) -> list[Any]:
        """Answer the items together; if that fails as a whole, each alone, so that only the guilty one fails."""
        if not batch:
            return []
        answers = _attempt(self._checked_predict, batch)
        if not isinstance(answers, RequestError):
            return answers
        if len(batch) == 1:
            return [answers]
        return [answer for value in batch for answer in self._predict([value])]

    def _checked_predict(self, batch: list[Any]) -> list[Any]:
        answers = self._function(list(batch))
        if isinstance(answers, np.ndarray) or hasattr(answers, "detach"):
            answers = list(answers) if getattr(answers, "ndim", 0) else answers  # one row per item
        if not isinstance(answers, list | tuple):
            raise _invalid_output(f"{self._name} gave a {type(answers).__name__} where a list belongs")
        if len(answers) != len(batch):
            raise _invalid_output(f"{self._name} gave {len(answers)} answers to {len(batch)} items")
        return list(answers)

    def close(self) -> None:
        del self._function


def _item_value(payload: Payload) -> Any:
    if payload.kind == "value":
        return payload.data
    if payload.kind == "file":
        return bytes(payload.data)
    try:
        return msgspec.json.decode(payload.data)
    except (ValueError, RecursionError):
        raise InvalidInput("input holds text or a number that has no JSON form", code="invalid_json") from None


def _function_answer(answer: Any, payload: Payload) -> Answer:
    """An answer in the form its item came in: a value for a value, else JSON."""
    if isinstance(answer, BaseException):
        raise answer
    if payload.kind == "value":
        return Plain(answer)
    try:
        return json_value.encode(answer)
    except Exception as error:
        raise _invalid_output(f"the model's answer has no JSON form: {error}") from error


def _invalid_output(message: str) -> RequestError:
    logs.event(message, level=logging.ERROR)
    return RequestError("the model gave an answer that cannot be sent", code="model_output_invalid")


P = ParamSpec("P")
T = TypeVar("T")


def _attempt(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | RequestError:
    """Take one step of a batch, and turn what it raises into the one error the client may see.

    The client never sees the text of a foreign exception, which may hold paths or data. The log does.
    """
    try:
        return step(*args, **kwargs)
    except RequestError as error:
        return error
    except MemoryError:
        return RequestError("the model ran out of memory over this input", code="out_of_memory")
    except (Exception, SystemExit) as error:  # a model's sys.exit() is its failure, not our end
        logs.failure("the model failed on an input", error)
        failure = RequestError("the model failed on this input", code="model_error")
        failure.__cause__ = error
        return failure
