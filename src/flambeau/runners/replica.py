"""A replica: one engine with its pipeline, and the way of a batch through them. That of a Python model or function is
in `flambeau.runners.python_replica`.

A bad item fails alone: each is preprocessed on its own, and when a batch fails as a whole its items are run again one
by one. A replica always returns one outcome per item. It knows no queue, no thread and no protocol.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from msgspec.structs import replace

from flambeau import engines
from flambeau.bundle import golden_samples, storage
from flambeau.bundle.golden_samples import Traced
from flambeau.bundle.storage import AudioConfig, Bundle, HandlerConfig, PythonConfig, TakesImages, split_probes
from flambeau.engines.base import Engine
from flambeau.errors import EngineError, RequestError
from flambeau.items import FREE
from flambeau.pipelines import named_tensors
from flambeau.pipelines.base import Pipeline, pipeline_of
from flambeau.pipelines.base64_image import open_image, open_sound
from flambeau.pipelines.json_document import open_document
from flambeau.pipelines.tensor import TensorPipeline
from flambeau.runners.base import BatchCost, ReplicaSpec
from flambeau.runners.python_replica import attempt, invalid_output, open_python_model
from flambeau.tasks import TASKS
from flambeau.types import Answer, Item, Options, Outcome, Payload, RawOutputs, Tensors, Timings

_REMEDY = "build it again here, or take another --engine"
_MEASURED_TIMES, _MEASURING_SECONDS = 5, 0.1  # rounds, and seconds after which a slow model gets no further round
_TOO_LONG, _SURELY = 0.05, 0.3
"""Seconds that one item takes: beyond the first, two would keep others waiting, and it is measured again, because
another worker may be starting; beyond the second it is not, because no busy machine explains that."""


class Replica(Protocol):
    """Used by one thread at a time."""

    device: str
    cost: BatchCost | None
    """The cost of an item once the replica is warm; `None` if it was not measured."""

    def warm_up(self) -> None:
        """Run a request through all steps once. Raises `SetupError` when the answer is not what the bundle promises."""
        ...

    def run(self, items: Sequence[Item], *, wide: bool = False) -> list[Outcome]:
        """One outcome per item, in order. Never raises for what an item or a model does.

        `wide`: nothing else is computed on this machine meanwhile, so every core may be used.
        """
        ...

    def close(self) -> None:
        """Release the model."""
        ...


def open_replica(spec: ReplicaSpec) -> Replica:
    """Open the replica for the bundle's kind of pipeline. Raises `SetupError`."""
    opened = engines.to_reproduce(storage.read(Path(spec.bundle), whole=False), spec.engine)
    manifest = opened.manifest
    if isinstance(manifest.pipeline, HandlerConfig):
        from flambeau.runners.handler_replica import open_handler  # with what TorchServe's handlers import

        return open_handler(opened, manifest.pipeline, allow_code=spec.allow_code, max_json_depth=spec.max_json_depth)
    if isinstance(manifest.pipeline, PythonConfig):
        return open_python_model(
            opened, manifest.pipeline, allow_code=spec.allow_code, max_json_depth=spec.max_json_depth
        )
    pipeline = pipeline_of(
        opened, threshold=spec.threshold, max_pixels=spec.max_image_pixels, fast_decode=spec.fast_decode
    )
    device = engines.resolve_device(spec.engine, spec.device)
    load = functools.partial(
        engines.load, opened, spec.engine, device=device, allow_code=spec.allow_code, max_batch=spec.max_batch
    )
    wide = load(threads=spec.wide_threads, alone=True) if spec.wide_threads > spec.threads else None
    open_ = open_document
    if isinstance(manifest.pipeline, TakesImages | AudioConfig):
        open_ = open_image if isinstance(manifest.pipeline, TakesImages) else open_sound
    return TensorReplica(
        opened,
        load(threads=spec.threads),
        pipeline,
        device=device,
        wide=wide,
        open_document=functools.partial(open_, max_depth=spec.max_json_depth),
    )


_open_document = functools.partial(open_document, max_depth=ReplicaSpec.max_json_depth)


class _Prepared(msgspec.Struct, frozen=True):
    index: int
    tensors: Tensors
    seconds: float


class TensorReplica:
    """A pipeline around an engine: preprocess, inference, postprocess.

    `wide`: the same engine with more threads, for a batch that has the machine to itself. `open_document` turns a raw
    JSON document into the payload that the pipeline takes.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        pipeline: Pipeline,
        *,
        device: str,
        wide: Engine | None = None,
        open_document: Callable[[Payload], Payload] = _open_document,
    ) -> None:
        self.device = device
        self.cost: BatchCost | None = None
        self._bundle = bundle
        self._engine = engine
        self._wide = engine if wide is None else wide
        self._pipeline = pipeline
        self._open = open_document
        manifest = bundle.manifest
        self._unlike = manifest.one_row is not None and any(FREE in spec.shape for spec in manifest.outputs)

    def warm_up(self) -> None:
        """Reproduce the probe outputs and the golden samples, then answer the pipeline's own example."""
        manifest = self._bundle.manifest
        name = manifest.name
        inputs, eager = split_probes(self._bundle.probes())
        for engine in {self._engine, self._wide} if inputs else ():
            found = manifest.compare(eager, engine.run(inputs), tolerance=self._bundle.tolerance)
            if not found.holds:
                raise EngineError(
                    f"on this machine {name} does not reproduce the answers it was built with: {found}: {_REMEDY}"
                )
        golden = golden_samples.read(self._bundle)
        golden_samples.reproduce(
            golden,
            self._trace,
            model=name,
            remedy=_REMEDY,
            asked=golden_samples.options(self._bundle),
            outputs_apart=functools.partial(TASKS[manifest.what_it_does].outputs_apart, manifest.facts),
        )
        example = self._pipeline.example()
        for wide in (False, True) if self._wide is not self._engine else (False,):
            [outcome] = self.run([Item(example, Options())], wide=wide)
            if isinstance(outcome.result, RequestError):
                raise EngineError(f"{name} cannot answer its own example: {outcome.result.message}")
        measured = attempt(self._measure, self._pipeline.preprocess(example))
        self.cost = (
            BatchCost(1.0, math.inf) if isinstance(measured, RequestError) else measured
        )  # it cannot join two items

    def _measure(self, one: Tensors) -> BatchCost:
        """Time the engine on one item and on two together: the best of a few rounds, because the machine may be busy.

        Two are not tried, and count as infinitely long, if one already takes so long that two would keep others
        waiting; nor if the network computes one row at a time: a batch would only make its items wait for each other.
        """
        seconds = self._seconds(one)
        if _TOO_LONG < seconds < _SURELY:
            seconds = min(seconds, self._seconds(one), self._seconds(one))
        if seconds > _TOO_LONG or self._bundle.manifest.one_row is not None:
            return BatchCost(seconds, math.inf)
        two = {name: np.concatenate([array, array]) for name, array in one.items()}
        best = [seconds, math.inf]
        ends = time.monotonic() + _MEASURING_SECONDS
        for _ in range(_MEASURED_TIMES):
            for which, tensors in enumerate((one, two)):
                best[which] = min(best[which], self._seconds(tensors))
            if time.monotonic() > ends:
                break
        return BatchCost(*best)

    def _seconds(self, tensors: Tensors) -> float:
        """How long the engine takes for one batch; never 0."""
        started = time.perf_counter()
        self._engine.run(tensors)
        return max(time.perf_counter() - started, 1e-9)

    def run(self, items: Sequence[Item], *, wide: bool = False) -> list[Outcome]:
        return [traced.outcome for traced in self._trace(items, wide=wide)]

    def _trace(self, items: Sequence[Item], *, wide: bool = False) -> list[Traced]:
        """One outcome per item, in order, with the item's rows of the outputs (none if it failed)."""
        traces: dict[int, Traced] = {}
        groups: dict[tuple[tuple[int, ...], ...], list[_Prepared]] = {}
        opened: dict[int, Item] = {}
        together = self._prepare_together(items) if len(items) > 1 else None
        if together is not None:
            opened = dict(enumerate(items))
            groups[()] = together
        for index, item in enumerate(items if together is None else ()):
            started = time.monotonic()
            payload = attempt(self._open, item.payload)
            if isinstance(payload, RequestError):
                traces[index] = Traced(Outcome(payload, Timings(preprocess=time.monotonic() - started)), {})
                continue
            opened[index] = item if payload is item.payload else replace(item, payload=payload)
            tensors = attempt(self._prepare, payload)
            elapsed = time.monotonic() - started
            if isinstance(tensors, RequestError):
                traces[index] = Traced(Outcome(tensors, Timings(preprocess=elapsed)), {})
            else:  # only items of the same shape share a batch, and none do whose answers differ in length
                shapes = tuple(array.shape[1:] for array in tensors.values())
                key = (*shapes, (index,)) if self._unlike else shapes
                groups.setdefault(key, []).append(_Prepared(index, tensors, elapsed))
        engine = self._wide if wide else self._engine
        for group in groups.values():
            for prepared, (rows, compute) in zip(group, self._compute(engine, group), strict=True):
                started = time.monotonic()
                answer = rows if isinstance(rows, RequestError) else attempt(self._answer, rows, opened[prepared.index])
                timings = Timings(
                    preprocess=prepared.seconds, inference=compute, postprocess=time.monotonic() - started
                )
                outputs = {} if isinstance(rows, RequestError) else rows
                traces[prepared.index] = Traced(Outcome(answer, timings), outputs)
        return [traces[index] for index in range(len(items))]

    def _prepare_together(self, items: Sequence[Item]) -> list[_Prepared] | None:
        """The items' tensors where the pipeline reads them in one go; `None` where each is to be prepared by itself.

        Each gets its part of the time. Only small items are read so, and their answers do not differ in length.
        """
        if self._unlike or not isinstance(self._pipeline, TensorPipeline):
            return None
        started = time.monotonic()
        found = attempt(self._pipeline.together, [item.payload for item in items])
        if found is None or isinstance(found, RequestError):
            return None
        [(name, rows)] = found.items()
        seconds = (time.monotonic() - started) / len(items)
        return [_Prepared(index, {name: rows[index : index + 1]}, seconds) for index in range(len(items))]

    def _prepare(self, payload: Payload) -> Tensors:
        """The item's tensors: as sent if the client sent the network's own inputs, else from the pipeline."""
        if payload.kind == "tensors":
            return named_tensors.read(self._engine.inputs, payload)
        return self._pipeline.preprocess(payload)

    def _answer(self, rows: Tensors, item: Item) -> Answer:
        """The item's answer: the network's own outputs if the client sent its inputs, else from the pipeline."""
        if item.payload.kind == "tensors":
            return RawOutputs.of(rows)
        return self._pipeline.postprocess(rows, item)

    def _compute(self, engine: Engine, group: "list[_Prepared]") -> list[tuple[Tensors | RequestError, float]]:
        """Each item's rows and their seconds: computed as one batch, or one by one if the batch fails as a whole."""
        started = time.monotonic()
        outputs = attempt(_run_engine, engine, [prepared.tensors for prepared in group])
        elapsed = time.monotonic() - started
        if not isinstance(outputs, RequestError):
            return [(rows, elapsed) for rows in outputs]
        if len(group) == 1:
            return [(outputs, elapsed)]
        return [self._compute(engine, [prepared])[0] for prepared in group]

    def close(self) -> None:
        for engine in {self._engine, self._wide}:
            engine.close()


def _run_engine(engine: Engine, parts: list[Tensors]) -> list[Tensors]:
    """Join the items' rows, compute them together, and cut the outputs back into items."""
    counts = [len(next(iter(part.values()))) for part in parts]
    rows = sum(counts)
    batch = parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    outputs = engine.run(batch)
    for name, array in outputs.items():
        if len(array) != rows:
            raise invalid_output(f"the model gave {len(array)} rows of {name} to {rows} rows of input")
    if len(parts) == 1:
        return [outputs]
    edges = itertools.accumulate(counts, initial=0)
    return [{name: array[a:b] for name, array in outputs.items()} for a, b in itertools.pairwise(edges)]
