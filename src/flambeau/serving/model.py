"""A model: a bundle served under a name and a version, with its batch queue and its runner."""

import asyncio
import dataclasses
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from flambeau import engines, runners, usercode
from flambeau.bundle.pipeline_config import kind_of
from flambeau.bundle.storage import Bundle, HandlerConfig, HasTask, Manifest, PythonConfig, graph_bytes
from flambeau.checkpoints.repository import NAME
from flambeau.engines import base
from flambeau.errors import Code, ConfigError, RequestError
from flambeau.handlers import base as handlers
from flambeau.runners.base import BatchCost, ReplicaSpec, RunnerState
from flambeau.serving.batch_sizes import UNMEASURED, measured_sizes
from flambeau.serving.batcher import BatchLimits, BatchQueue
from flambeau.serving.core_share import CoreShare, SharedRunner
from flambeau.serving.elasticity import Demand
from flambeau.serving.handler_limits import limited
from flambeau.settings.service import Settings
from flambeau.sources import packages
from flambeau.sources.build_cache import cache_folder
from flambeau.system.known_bytes import KnownBytes
from flambeau.system.machine import CpuBudget, place, processor, usable_cores
from flambeau.tasks import TASKS, TaskName
from flambeau.telemetry import logs
from flambeau.telemetry.metrics import Metrics
from flambeau.types import Item, ModelState, Options, Outcome, Payload, PipelineKind

_MOST_FORMS = 32  # in each of two generations
_UNREADY: dict[ModelState, Code] = {ModelState.LOADING: "model_loading", ModelState.CLOSED: "draining"}


class Model:
    """One served model. All methods except the constructor run on the loop."""

    def __init__(
        self, bundle: Bundle, settings: Settings, *, metrics: Metrics, cores: CoreShare, version: str = "1"
    ) -> None:
        """`cores`: what it shares with the other models of its service.

        Raises `SetupError` when the settings do not allow this bundle to be served; loads nothing yet.
        """
        manifest = bundle.manifest
        settings = limited(settings, manifest)
        self.name = settings.name or manifest.name
        self.version = version
        if not NAME.fullmatch(self.name):
            raise ConfigError(f"--name {self.name!r} cannot be a model's name: use letters, digits, '.', '_' and '-'")
        self.bundle = bundle
        self.kind: PipelineKind = kind_of(manifest.pipeline)
        """The kind of its pipeline: what the model takes as input."""
        self.task: TaskName = manifest.what_it_does
        """What the model does for its user."""
        self.does = TASKS[self.task]
        """The task's properties, above all the form of its answers."""
        self.state = ModelState.LOADING
        self.forms: KnownBytes[Any] = KnownBytes(_MOST_FORMS)
        """What a protocol keeps of requests, for those that are like them: it goes with the model."""
        self.settings = settings
        """Those that hold for this model: the service's, and its own over them."""
        # a network that takes one row at a time gains nothing from a batch: its items would only wait for each other,
        # and share one compute timeout
        self._most = settings.max_batch_size if manifest.one_row is None else 1
        self._cost: BatchCost | None = None
        spec, self._placement = _plan(bundle, settings)
        self.metrics = metrics.for_model(self.name, version)  # after all that may be refused
        self.engine = spec.engine
        self.device = spec.device
        self.most_replicas = self._placement.replicas
        """How many replicas it may have."""
        self._claim = cores.claim(self._weight())
        self._runner = runners.make(spec, settings, replicas=self.most_replicas, has_machine=self._claim.alone)
        self._batcher = BatchQueue(
            SharedRunner(self._runner, self._claim),
            BatchLimits(
                max_batch_size=measured_sizes(None, most=self._most).most,
                max_queue_delay=settings.max_queue_delay_ms / 1000,
                max_queue_size=settings.max_queue_size,
                max_queue_bytes=max(settings.max_queue_bytes, settings.max_body_bytes),
            ),
            metrics=self.metrics,
        )
        self._claim.wake = self._batcher.dispatch
        self.metrics.watch_workers(self._runner.workers, self._runner.restarts)

    @property
    def threshold(self) -> float | None:
        """The lowest score at which a class counts, unless the request asks for another; `None` except over images."""
        pipeline = self.bundle.manifest.pipeline
        if not isinstance(pipeline, HasTask):
            return None
        return pipeline.threshold if self.settings.threshold is None else self.settings.threshold

    @property
    def elastic(self) -> bool:
        """Whether it can have fewer replicas than `most_replicas`, and other numbers of them while it is loaded."""
        return self._runner.elastic

    @property
    def least_replicas(self) -> int | None:
        """How many replicas it keeps though it does not need them; `None` if nobody has said."""
        least = self.settings.min_replicas
        return None if least is None or not self.elastic else min(least, self.most_replicas)

    @property
    def replicas(self) -> int:
        """How many replicas it has; before it is started, how many it will."""
        return self._runner.counts().replicas

    def scale(self, replicas: int) -> None:
        """Have so many replicas, if it is elastic: from 1 to `most_replicas`."""
        self._runner.scale(replicas)

    def demand(self) -> Demand:
        """How much it has to do, and with how many replicas."""
        counts = self._runner.counts()
        return Demand(counts.replicas, counts.warm, counts.busy, self.queued, self._claim.room(), counts.given_up)

    def _weight(self) -> float:
        """The cores that a batch takes.

        A Python model counts as one thread, unless it was given several, and so does a model that computes elsewhere.
        Whoever asks for more replicas than there are cores says that each takes less than one.
        """
        if self.elsewhere:
            return _ELSEWHERE
        own = self.engine == "python" and not self.settings.threads
        threads = 1 if own or not _on_cpu(self.device) else self._placement.threads
        return min(threads, self.settings.cores / self.most_replicas)

    @property
    def apart(self) -> bool:
        """Whether its replicas have processes of their own, which get copies of what they are given."""
        return self.settings.runner != "threads"

    @property
    def elsewhere(self) -> bool:
        """Whether its replicas take other machines' cores and memory."""
        return self.settings.runner == "ray"

    @property
    def queued(self) -> int:
        """How many items wait."""
        return self.metrics.queue()[0]

    def memory(self) -> int:
        """The memory of its workers, in bytes, with what they share counted once; 0 for threads of this process."""
        return self._runner.memory()

    @property
    def batch_size(self) -> int:
        """The most items that are computed together."""
        return self._batcher.sizes.most

    def set_limits(
        self, *, max_batch_size: int | None = None, max_queue_size: int | None = None, replicas: int | None = None
    ) -> None:
        """Change how many items are computed together, how many may wait, and how many replicas there are, at most.

        Replicas keep their threads. Further ones are started by `flambeau.serving.scaling`, and only where they may be.
        """
        if replicas is not None and self.elastic:
            self.most_replicas = replicas
            self._claim.weight = self._weight()
            if self.replicas > replicas:
                self.scale(replicas)
        if max_batch_size is not None and self.bundle.manifest.one_row is None:
            self._most = max_batch_size
            self._batcher.sizes = measured_sizes(self._cost, most=self._most)
        if max_queue_size is not None:
            self._batcher.limits = dataclasses.replace(self._batcher.limits, max_queue_size=max_queue_size)

    async def start(self) -> None:
        """Return when the model is warm. Raises `SetupError` when it cannot be loaded."""
        started = time.monotonic()
        try:
            warm = await self._runner.start(self._on_change)
        except BaseException:
            self.state = ModelState.FAILED
            raise
        self.device = warm.device
        self._claim.weight = self._weight()
        self._cost = warm.cost
        self._batcher.sizes = measured_sizes(warm.cost, most=self._most)
        self.state = ModelState.READY
        self._on_change()
        logs.event(
            "model ready", model=self.name, version=self.version, task=self.task,
            activation=self.bundle.manifest.activated_by.function, engine=self.engine, device=self.device,
            runner=self.settings.runner,
            replicas=self.replicas, threads=self._placement.threads, batch=self._batcher.sizes.most,
            seconds=f"{time.monotonic() - started:.2f}",
        )  # fmt: skip

    def predict(
        self, payloads: Sequence[Payload], options: Options, *, deadline: float
    ) -> Coroutine[Any, Any, list[Outcome]]:
        """One outcome per payload, in order. `deadline` is a time of the loop's clock.

        Raises `RequestError` when the request as a whole cannot be taken (`queue_full`, `model_unavailable`).
        """
        if self.state is not ModelState.READY:
            raise self._refusal(f"model '{self.name}' is {self.state}", _UNREADY.get(self.state, "model_unavailable"))
        if self._runner.state() is RunnerState.FAILED:
            raise self._refusal(f"the workers of model '{self.name}' crash again and again", "model_unavailable")
        return self._batcher.submit([Item(payload, options) for payload in payloads], deadline=deadline)

    def _refusal(self, message: str, code: Code) -> RequestError:
        self.metrics.rejected(code)
        return RequestError(message, code=code)

    def ready(self) -> bool:
        """Whether the model can answer now."""
        return self.state is ModelState.READY and self._runner.state() is RunnerState.READY

    def _on_change(self) -> None:
        self.metrics.ready(self.ready())
        self._batcher.dispatch()

    async def close(self) -> None:
        """Answer the accepted requests, then release the replicas."""
        self.state = ModelState.CLOSED
        self.metrics.ready(False)
        try:
            await asyncio.wait_for(self._batcher.close(), self.settings.drain_timeout)
        except TimeoutError:
            logs.event("gave up on batches that did not finish", model=self.name, after=self.settings.drain_timeout)
        await self._runner.close(timeout=1.0)
        if isinstance(self.bundle.manifest.pipeline, HandlerConfig):
            await asyncio.to_thread(handlers.sweep)
        self._claim.give_up()


def _plan(bundle: Bundle, settings: Settings) -> tuple[ReplicaSpec, CpuBudget]:
    """Decide engine, device, replicas and threads. Raises `SetupError` for what is missing or not allowed."""
    manifest = bundle.manifest
    if isinstance(manifest.pipeline, PythonConfig):
        usercode.refuse_unless(settings.allow_code, f"the Python model {manifest.name}")
        engine, default = "python", 1
    else:
        engine = engines.choose(bundle, settings.engine)
        default = settings.cores if _on_cpu(settings.device) else 1
    if settings.runner == "ray":  # this machine's cores say nothing of the cluster's
        placement = CpuBudget(settings.replicas or _REPLICAS_OF_A_CLUSTER, settings.threads or 1)
    else:
        placement = _measured(manifest, engine, settings) or place(
            settings.replicas, settings.threads, default=default, cores=settings.cores
        )
    if settings.min_replicas is not None and settings.min_replicas > placement.replicas:
        raise ConfigError(
            f"--min-replicas {settings.min_replicas} are more than the {placement.replicas} that {manifest.name} may "
            "have: say --replicas, too"
        )
    spec = ReplicaSpec(
        bundle=str(bundle.path),
        name=manifest.name,
        engine=engine,
        device=settings.device,
        threads=placement.threads,
        max_batch=settings.max_batch_size or UNMEASURED,
        allow_code=settings.allow_code,
        threshold=settings.threshold,
        max_image_pixels=settings.max_image_pixels,
        max_json_depth=settings.max_json_depth,
        fast_decode=settings.fast_decode,
        packages=_packages(manifest, settings),
        wide_threads=_wide_threads(bundle, settings, engine, placement),
    )
    return spec, placement


def _packages(manifest: Manifest, settings: Settings) -> str:
    """The folder with the packages of a handler's own; empty if it needs none. Raises `SetupError`."""
    if not isinstance(manifest.pipeline, HandlerConfig) or not packages.missing(manifest.pipeline.requirements):
        return ""
    found = packages.find(manifest.pipeline.requirements, cache_folder() / "packages", whose=manifest.name)
    if settings.runner != "processes":
        raise ConfigError(
            f"{manifest.name} has packages of its own, which only a worker process can have: say --runner processes"
        )
    return found


def _measured(manifest: Manifest, engine: str, settings: Settings) -> CpuBudget | None:
    """The placement measured when the bundle was built, if it holds for this engine and machine.

    `None` when it does not, or when the user set replicas or threads. One front of several has its part of it.
    """
    found = manifest.placements
    if found is None or engine != manifest.engine or settings.replicas or settings.threads:
        return None
    if not _on_cpu(settings.device) or (found.processor, found.cores) != (processor(), usable_cores()):
        return None
    if settings.fronts == 1:
        return CpuBudget(found.taken.replicas, found.taken.threads)
    replicas = max(1, found.taken.replicas // (settings.fronts or 1))
    return CpuBudget(replicas, max(1, min(found.taken.threads, settings.cores // replicas)))


_ELSEWHERE = 1e-6  # cores of this machine that a batch takes which is computed on another
_REPLICAS_OF_A_CLUSTER = 2  # so that one may be lost
_WIDE_ENGINES = frozenset({"onnxruntime"})  # a second session of it is cheap, and its threads sleep while idle
_WIDEST = 16  # threads; past this a single image gains nothing
_LARGEST_WIDE = 100_000_000  # bytes of graph and weights, if a second session needs its own copy


def _wide_threads(bundle: Bundle, settings: Settings, engine: str, placement: CpuBudget) -> int:
    """Threads for a batch that has the machine to itself: all cores; 0 if the user or the memory forbids."""
    cores = min(settings.cores, _WIDEST)
    if settings.threads or placement.threads >= cores or engine not in _WIDE_ENGINES or not _on_cpu(settings.device):
        return 0
    return cores if graph_bytes(bundle.path) <= _LARGEST_WIDE or base.may_run_optimised(bundle.manifest) else 0


def _on_cpu(device: str) -> bool:
    """Whether replicas will share the cores. The front does not ask the engine: that would mean importing it."""
    return device == "cpu" or (device == "auto" and not Path("/dev/nvidiactl").exists())
