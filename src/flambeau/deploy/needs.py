"""What a pod of a bundle needs, and how that was derived: cores from what the build measured, memory from the engine's.

The figures are of the machine that built the bundle. This module reads a manifest; it starts and measures nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flambeau.bundle.storage import Bundle, Manifest, PythonConfig, TakesImages, graph_bytes
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
    cores, workers, threads, why = _cores(bundle.manifest, cpu)
    count = workers or cores
    engine, origin = _engine_memory(bundle)
    beside = f"beside its model, which takes {math.ceil(engine / MIB)} MiB ({origin})"
    memory = f"{FRONT // MIB} MiB for the front, and {WORKER // MIB} MiB for each worker ({count}) {beside}"
    least = FRONT + count * (WORKER + engine)
    return _whole(cores, workers, threads, least, least, _decoding(bundle.manifest, count), (why, memory))


def of_repository(bundles: Sequence[Bundle], *, cpu: int | None) -> Needs:
    """The needs of several models in one service: they share its cores, and each has one worker or as many as pay off.

    The request is for one worker each, and the largest on the other cores; the limit for all that they may have.
    """
    each = [_cores(bundle.manifest, cpu) for bundle in bundles]
    cores = max(found[0] for found in each)
    sizes = [WORKER + _engine_memory(bundle)[0] for bundle in bundles]
    most = [size * (workers or own) for size, (own, workers, _, _) in zip(sizes, each, strict=True)]
    why = f"cpu: --cpu {cpu}" if cpu is not None else f"cpu: the most that one of the {len(bundles)} models can use"
    memory = (
        f"{FRONT // MIB} MiB for the front, a worker of each of {len(bundles)} models ({sum(sizes) // MIB} MiB), "
        f"and the largest for each further core ({max(sizes) // MIB} MiB)"
    )
    least = FRONT + sum(sizes) + (cores - 1) * max(sizes)
    peak = max(_decoding(bundle.manifest, cores) for bundle in bundles)
    return _whole(cores, None, None, least, max(least, FRONT + sum(most)), peak, (why, memory))


def _cores(manifest: Manifest, cpu: int | None) -> tuple[int, int | None, int | None, str]:
    """Cores, workers and threads of one model, and why."""
    placed = manifest.placements
    if cpu is not None:
        fixed = (cpu, 1) if isinstance(manifest.pipeline, PythonConfig) else (None, None)
        return cpu, *fixed, f"cpu: --cpu {cpu}, one worker a core at most"
    if placed is not None:
        taken = placed.taken
        why = f"cpu: the build measured {placed} on {placed.processor}"
        return taken.replicas * taken.threads, taken.replicas, taken.threads, why
    return 1, 1, 1, "cpu: nothing was measured for this bundle, so one worker of one thread; --cpu takes more"


def _decoding(manifest: Manifest, workers: int) -> int:
    """The bytes that decoding the largest pictures takes in so many workers at once."""
    pixels = Settings().max_image_pixels if isinstance(manifest.pipeline, TakesImages) else 0
    return workers * pixels * _BYTES_A_PIXEL


def _whole(
    cores: int, workers: int | None, threads: int | None, least: int, most: int, peak: int, because: tuple[str, str]
) -> Needs:
    """The needs, from the bytes that a pod takes at `least` and at `most`, and what decoding takes for a moment."""
    why, memory = because
    request = _rounded(least)
    limit = _rounded((max(request, most) + peak) / (1 - _BODIES))
    pictures = f", {peak // MIB} MiB for the largest pictures (--max-image-pixels)" if peak else ""
    told = f"its limit: that{pictures}, and a quarter of it for request bodies (--max-inflight-bytes)"
    return Needs(cores, request, limit, workers, threads, (why, f"memory: {memory}", told))


def _engine_memory(bundle: Bundle) -> tuple[int, str]:
    """The bytes of the model in one worker, and where the figure is from."""
    manifest = bundle.manifest
    if manifest.trials and (measured := manifest.trials.memory(manifest.engine)):
        return measured, f"measured with {manifest.engine}"
    weights = graph_bytes(bundle.path)
    if weights:
        return 2 * weights, "twice its weights: nothing was measured"
    return 256 * MIB, "a guess, as what a Python model loads is its own: set it with --memory"


def _rounded(size: float) -> int:
    return math.ceil(size / _STEP) * _STEP
