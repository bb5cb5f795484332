"""The engine that a bundle is served with, measured where there are several, and how its replicas are placed.

Only those are tried that `engine_selection.benchmark` may take: those that read the graph, and PyTorch on a machine
whose accelerator only PyTorch can use.
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
from flambeau.settings.service import EngineChoice, place, usable_cores
from flambeau.system.machine import processor
from flambeau.system.process import give_memory_back

_FULL_BATCH = 8  # what a service takes together unless it is told otherwise
_TOO_SMALL = 1_000_000
"""Bytes of graph and weights. Below that an answer takes less than bringing it to the engine and back, whichever."""

Notify = Callable[[str], None]


def settle(folder: Path, wanted: EngineChoice, *, allow_code: bool, tell: Notify) -> None:
    """Write into the manifest of the bundle in `folder` which engine serves it, and what was measured to find out.

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
            tell(f"{trial.engine} is not taken: {reason}")
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
    """Whether this machine has an accelerator that only PyTorch can use, which is there."""
    import torch

    return torch.cuda.is_available() and engines.resolve_device("onnxruntime", "auto") == "cpu"


def _fixed(opened: Bundle, wanted: str, *, allow_code: bool, tell: Notify) -> None:
    """Take the engine that the user names, when it can load the bundle and agrees."""
    [trial] = hold(opened.path, [wanted], _rules(allow_code=allow_code))
    loose = wanted == "onnxruntime-int8"  # how far it is from PyTorch was said when it was made
    if trial.error or (not loose and benchmark.why_not(trial)):
        raise SourceError(f"--engine {wanted} cannot serve {opened.manifest.name}: {benchmark.why_not(trial)}")
    why = f"{wanted} was asked for, and takes {benchmark.score(trial):.3g} ms"
    tell(f"engine: {why}")
    _write(opened, wanted, why, [trial])


def _place(opened: Bundle, *, tell: Notify) -> None:
    """Measure how many replicas this machine is best shared between. Where they would not share the weights, one per
    core it is, for then each that is tried takes the memory of a copy."""
    manifest, cores = opened.manifest, usable_cores()
    if manifest.engine not in replica_scaling.MEASURED or not base.may_run_optimised(manifest) or cores < 2:
        return
    found = replica_scaling.measure(opened, manifest.engine, cores=cores, processor=processor())
    tell(f"placed as {found}")
    storage.write_manifest(opened.path, msgspec.structs.replace(manifest, placements=found))
    give_memory_back()


def _rules(*, allow_code: bool) -> Rules:
    """As a worker of a service will run, where nothing is said about replicas and threads."""
    cores = usable_cores()
    threads = place(None, None, default=cores, cores=cores).threads
    return Rules(threads=threads, batches=(1, _FULL_BATCH), rounds=3, seconds=0.06, allow_code=allow_code)


def _write(opened: Bundle, engine: str, why: str, tried: list[Trial]) -> None:
    trials = Trials(processor(), _rules(allow_code=False).threads, why, tuple(tried))
    settled: Manifest = msgspec.structs.replace(opened.manifest, engine=engine, trials=trials)
    storage.write_manifest(opened.path, settled)
