"""What a pod of a bundle needs, and how that was derived: cores from what the build measured, memory from the engine's.

The figures are of the machine that built the bundle. This module reads a manifest; it starts and measures nothing.
"""

import math
from dataclasses import dataclass

from flambeau.bundle.storage import Bundle, ImageConfig, PythonConfig, graph_bytes
from flambeau.settings.service import Settings
from flambeau.system.machine import MIB

FRONT = 64 * MIB
"""The front's own memory in bytes: 43 to 60 MiB were measured, rounded up."""

WORKER = 64 * MIB
"""A worker's memory in bytes beside its model: Python, numpy, Pillow and the engine's library."""

_BYTES_A_PIXEL = 4  # 164 MiB were measured for a photograph of 39.7 million pixels
_BODIES = 0.25  # of the limit: what --max-inflight-bytes lets request bodies take
_STEP = 64 * MIB


@dataclass(frozen=True, slots=True)
class Needs:
    """Resources of one pod. `workers` and `threads` are those to set; `None` leaves them to the service.

    Memory is in bytes. `because` are the sentences that say how the figures came about.
    """

    cpu: int
    memory_request: int
    memory_limit: int
    workers: int | None
    threads: int | None
    because: tuple[str, ...]


def of_bundle(bundle: Bundle, *, cpu: int | None) -> Needs:
    """The needs of a bundle; `cpu`: as many cores as the user wants, `None` for as many as were measured."""
    manifest = bundle.manifest
    placed = manifest.placements
    workers: int | None = None
    threads: int | None = None
    if cpu is None and placed is not None:
        workers, threads = placed.taken.replicas, placed.taken.threads
        cores = workers * threads
        why = f"cpu: the build measured {placed} on {placed.processor}"
    elif cpu is not None:
        cores = cpu
        if isinstance(manifest.pipeline, PythonConfig):
            workers, threads = cpu, 1
        why = f"cpu: --cpu {cpu}, one worker a core at most"
    else:
        cores = workers = threads = 1
        why = "cpu: nothing was measured for this bundle, so one worker of one thread; --cpu takes more"
    return _with_memory(bundle, cores, workers, threads, why)


def _with_memory(bundle: Bundle, cores: int, workers: int | None, threads: int | None, why: str) -> Needs:
    count = workers or cores
    engine, origin = _engine_memory(bundle)
    request = _rounded(FRONT + count * (WORKER + engine))
    pixels = Settings().max_image_pixels if isinstance(bundle.manifest.pipeline, ImageConfig) else 0
    peak = count * pixels * _BYTES_A_PIXEL
    limit = _rounded((request + peak) / (1 - _BODIES))
    pictures = f", {peak // MIB} MiB for pictures of {pixels / 1e6:.0f} million pixels" if peak else ""
    beside = f"beside its model, which takes {math.ceil(engine / MIB)} MiB ({origin})"
    return Needs(
        cores, request, limit, workers, threads,
        (
            why,
            f"memory: {FRONT // MIB} MiB for the front, and {WORKER // MIB} MiB for each worker ({count}) {beside}",
            f"its limit: that{pictures}, and a quarter of it for request bodies (--max-inflight-bytes)",
        ),
    )  # fmt: skip


def _engine_memory(bundle: Bundle) -> tuple[int, str]:
    """The bytes of the model in one worker, and where the figure is from."""
    manifest = bundle.manifest
    tried = manifest.trials.engines if manifest.trials else ()
    for trial in tried:
        if trial.engine == manifest.engine and trial.memory_mb:
            return math.ceil(trial.memory_mb) * MIB, f"measured with {trial.engine}"
    weights = graph_bytes(bundle.path)
    if weights:
        return 2 * weights, "twice its weights: nothing was measured"
    return 256 * MIB, "a guess, as what a Python model loads is its own: set it with --memory"


def _rounded(size: float) -> int:
    return math.ceil(size / _STEP) * _STEP
