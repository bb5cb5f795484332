"""How many fronts a service has, and what part of each setting is a front's: limits hold for the service as a whole.

Example: `--max-connections 1000 --replicas 6 --fronts 4`. Each front takes 250 connections; two of them have 2 workers,
and two have 1. It starts nothing.
"""

import dataclasses
import math
import socket
from collections.abc import Sequence

from flambeau.bundle.storage import Bundle, Manifest, PythonConfig, TakesImages
from flambeau.errors import ConfigError
from flambeau.serving.memory import MemoryBudget
from flambeau.serving.opening import Opened
from flambeau.settings.service import Settings
from flambeau.system.machine import MIB, processor, usable_cores

_FRONT_SECONDS = 55e-6
"""What a front takes for a request of small JSON, and for any other request beside its body (docs/performance.md)."""

_IMAGE_SECONDS = 500e-6
"""What it takes for a photograph in a form."""

_PAYS = 0.25
"""A front more must have at least this part of a front's work, or its own cost is not earned back."""


def refuse(settings: Settings) -> None:
    """Raise `ConfigError` for settings that several fronts cannot keep."""
    several = settings.fronts
    if several is None or several == 1:
        return
    if not hasattr(socket, "send_fds"):
        raise ConfigError(
            f"--fronts {several}: this system cannot hand connections from one process to another: leave it out"
        )
    for flag, why in _of_one_front(settings).items():
        raise ConfigError(f"{flag} needs one front, and --fronts asks for {several}: {why}. Leave one of them out")
    if settings.replicas is not None and settings.replicas < several:
        raise ConfigError(
            f"--replicas {settings.replicas} is less than --fronts {several}, and each front has workers of its own: "
            "raise the one, or lower the other"
        )
    if settings.max_connections < several:
        raise ConfigError(
            f"--max-connections {settings.max_connections} is less than --fronts {several}, and each front has a part "
            "of them: raise the one, or lower the other"
        )


def _of_one_front(settings: Settings) -> dict[str, str]:
    """The settings that are set and need one front, by their flags, with the reason."""
    found = {}
    if settings.grpc_port:
        found[f"--grpc-port {settings.grpc_port}"] = (
            "connections are dealt from one address, so serve it by a second flambeau"
        )
    for name in ("management_address", "metrics_address"):
        if (address := getattr(settings, name)) is not None:
            found[f"--{name.replace('_', '-')} {address}"] = "connections are dealt from one address"
    if settings.model_store is not None:
        found[f"--model-store {settings.model_store}"] = "workers of TorchServe's API are counted by front"
    if settings.runner == "ray":
        found["--runner ray"] = "the cluster has the workers"
    return found


def settled(settings: Settings, models: Sequence[Opened]) -> Settings:
    """The settings with a number of fronts: for `auto`, that which the models and the cores can use."""
    if settings.fronts is not None:
        return settings
    count = 1
    if not _of_one_front(settings):
        cores = usable_cores()
        bundles = [each for each in models if isinstance(each, Bundle)]
        wanted = fronts_for(bundles[0].manifest, cores) if len(bundles) == 1 == len(models) else 1
        most = [cores, settings.max_connections] + ([settings.replicas] if settings.replicas else [])
        count = max(1, min(wanted, *most))
    return dataclasses.replace(settings, fronts=count)


def fronts_for(manifest: Manifest, cores: int) -> int:
    """How many fronts a model can use: the cores that fronts would have if all were busy, in whole fronts.

    A request takes the front `f` seconds and the engine `e`. Cores that are all busy answer `cores / (f + e)` a second,
    of which one front can do `1 / f`. Example: numbers, 55 µs at the front and 6 µs in the engine: on 2 cores 1.8
    fronts, so two. A photograph, 0.5 ms and 12 ms: on 2 cores 0.1, so one; on 64 cores 2.6, so three. What was not
    measured on this processor counts as slow.
    """
    if isinstance(manifest.pipeline, PythonConfig):
        return 1
    engine = engine_seconds(manifest)
    if engine is None:
        return 1
    front = _IMAGE_SECONDS if isinstance(manifest.pipeline, TakesImages) else _FRONT_SECONDS
    return max(1, math.ceil(cores * front / (front + engine) - _PAYS))


def engine_seconds(manifest: Manifest) -> float | None:
    """The seconds of one core that the engine takes for an item, as the build measured; `None` if it did not."""
    placed = manifest.placements
    if placed is not None and placed.processor == processor() and placed.taken.per_second > 0:
        return min(placed.cores, placed.taken.replicas * placed.taken.threads) / placed.taken.per_second
    trials = manifest.trials
    if trials is None or trials.processor != processor():
        return None
    for each in trials.engines:
        if each.engine == manifest.engine and each.ms:
            return min(each.ms.values()) / 1000 * trials.threads
    return None


def part_of(settings: Settings, number: int) -> Settings:
    """The settings of one front, from 1: its part of what is limited for the whole service.

    Bytes in flight and rates are not dealt out but counted together (`flambeau.fronts.shared_counts`): a client stays
    with one front, and would get only that front's part.
    """
    of = settings.fronts or 1

    def part(whole: int) -> int:
        return whole // of + (number <= whole % of)

    return dataclasses.replace(
        settings,
        replicas=None if settings.replicas is None else part(settings.replicas),
        max_connections=part(settings.max_connections),
        # a request that one front alone would take fits into the queue of each
        max_queue_size=max(part(settings.max_queue_size), min(settings.max_items, settings.max_queue_size)),
        max_queue_bytes=max(1, part(settings.max_queue_bytes)),
        max_memory=max(MIB, part(MemoryBudget(settings.max_memory).most)),
    )
