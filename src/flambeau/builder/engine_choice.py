"""Choose the engine that serves a bundle, by measurement where there are several, and place its replicas.

Only engines that `engine_selection.benchmark` may choose are tried: those that read the graph, and PyTorch on a machine
with an accelerator that only PyTorch can use.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec

from flambeau import engines
from flambeau.bundle import storage
from flambeau.bundle.measurements import Trial, Trials
from flambeau.bundle.storage import Bundle, Manifest
from flambeau.engine_selection import benchmark, replica_scaling
from flambeau.engine_selection.benchmark import Rules, hold
from flambeau.engines import base
from flambeau.errors import SourceError
from flambeau.settings.service import EngineChoice
from flambeau.system.machine import place, processor, usable_cores
from flambeau.system.process import give_memory_back

_FULL_BATCH = 8  # a service's default batch size
_TOO_SMALL = 1_000_000
"""Bytes of graph and weights. Below that, computing an answer takes less than the overhead of any engine."""

Notify = Callable[[str], None]


def settle(folder: Path, wanted: EngineChoice, *, allow_code: bool, tell: Notify) -> None:
    """Write the engine that serves the bundle in `folder` into its manifest, with the measurements behind the choice.

    Raises `SourceError` when the engine that the user wants cannot serve it.
    """
    opened = storage.read(folder)
    if wanted == "auto":
        _measured(opened, allow_code=allow_code, tell=tell)
    elif wanted != opened.manifest.engine:
        _fixed(opened, wanted, allow_code=allow_code, tell=tell)
    _place(storage.read(folder, whole=False), tell=tell)


def _measured(opened: Bundle, *, allow_code: bool, tell: Notify) -> None:
    candidates = _candidates(opened)
    if len(candidates) < 2:
        return
    tried = hold(opened.path, candidates, _rules(allow_code=allow_code))
    chosen, why = benchmark.select_engine(tried)
    for trial in tried:
        if reason := benchmark.why_not(trial):
            tell(f"{trial.engine} is not chosen: {reason}")
    if chosen is not None:
        tell(f"engine: {why}")
        _write(opened, chosen, why, tried)


def _candidates(opened: Bundle) -> list[str]:
    manifest = opened.manifest
    able = engines.able(opened)
    if "onnxruntime" not in able or storage.graph_bytes(opened.path) < _TOO_SMALL:
        return []
    own = manifest.architecture is not None and manifest.architecture.registry == "code"
    return [
        name for name in able if name in ("onnxruntime", "openvino") or (name == "eager" and not own and _accelerated())
    ]


def _accelerated() -> bool:
    """Whether this machine has an accelerator that only PyTorch can use."""
    import torch

    return torch.cuda.is_available() and engines.resolve_device("onnxruntime", "auto") == "cpu"


def _fixed(opened: Bundle, wanted: str, *, allow_code: bool, tell: Notify) -> None:
    """Choose the engine that the user names. Raises `SourceError` unless it loads and agrees with PyTorch."""
    [trial] = hold(opened.path, [wanted], _rules(allow_code=allow_code))
    loose = wanted == "onnxruntime-int8"  # its distance from PyTorch was reported when it was made
    if trial.error or (not loose and benchmark.why_not(trial)):
        raise SourceError(f"--engine {wanted} cannot serve {opened.manifest.name}: {benchmark.why_not(trial)}")
    why = f"{wanted} was asked for, and takes {benchmark.score(trial):.3g} ms"
    tell(f"engine: {why}")
    _write(opened, wanted, why, [trial])


def _place(opened: Bundle, *, tell: Notify) -> None:
    """Measure how many replicas serve best on this machine.

    Skipped where replicas would not share the weights: each one tried would take the memory of another copy. Then the
    default stays, one replica per core.
    """
    manifest, cores = opened.manifest, usable_cores()
    if manifest.engine not in replica_scaling.MEASURED or not base.may_run_optimised(manifest) or cores < 2:
        return
    found = replica_scaling.measure(opened, manifest.engine, cores=cores, processor=processor())
    tell(f"placed as {found}")
    storage.write_manifest(opened.path, msgspec.structs.replace(manifest, placements=found))
    give_memory_back()


def _rules(*, allow_code: bool) -> Rules:
    """The rules that match a service's worker with default replicas and threads."""
    cores = usable_cores()
    threads = place(None, None, default=cores, cores=cores).threads
    return Rules(threads=threads, batches=(1, _FULL_BATCH), rounds=3, seconds=0.06, allow_code=allow_code)


def _write(opened: Bundle, engine: str, why: str, tried: list[Trial]) -> None:
    trials = Trials(processor(), _rules(allow_code=False).threads, why, tuple(tried))
    settled: Manifest = msgspec.structs.replace(opened.manifest, engine=engine, trials=trials)
    storage.write_manifest(opened.path, settled)
