"""How much memory models may take together, and what each takes: measured once it is loaded, estimated before.

    most 1,000 MB    cats 400 MB (measured)    dogs 500 MB (measured)    digits: about 130 MB     does not fit

It decides nothing: `flambeau.serving.loading` unloads another model, or refuses.
"""

from collections.abc import Iterable

from flambeau.bundle.storage import graph_bytes
from flambeau.serving.model import Model
from flambeau.serving.versions import Version
from flambeau.system.machine import memory_limit

_SHARE = 0.9  # of the memory that this process and its children may use; the rest is for the front and for builds
_NAMED = 5  # models in a sentence
_WORKER = 60_000_000  # bytes of a worker process beside its model: Python, numpy and an engine


class MemoryBudget:
    """The budget for all models of a service, in bytes."""

    def __init__(self, most: int | None) -> None:
        """`most`: as the user says; `None`: nine tenths of what the machine and its control groups allow."""
        self.most = int(_SHARE * memory_limit()) if most is None else most
        self._promised: dict[Version, int] = {}

    def need(self, entry: Version, model: Model) -> int:
        """What a version will take: what it took before, else the weights, which workers share, and for each worker
        its own, with what the engine took beyond the weights when the bundle was built, if that was measured. Nothing
        of a model on other machines."""
        if model.elsewhere:
            return 0
        if entry.cost:
            return entry.cost
        weights, trials = graph_bytes(model.bundle.path), model.bundle.manifest.trials
        measured = trials.memory(model.engine) if trials else None
        return weights + (_WORKER + max(0, (measured or 0) - weights)) * model.replicas

    def taken(self, entries: Iterable[Version]) -> int:
        """What the versions take that are loaded, and those that were promised theirs."""
        return sum(self._promised.get(entry, 0) or (entry.cost if entry.model is not None else 0) for entry in entries)

    def growth(self, entry: Version, model: Model, replicas: int, entries: Iterable[Version]) -> tuple[int, int]:
        """How many replicas a loaded version may have, up to `replicas`, and the bytes that it then takes, until
        they are measured. A further one counts as much as those that are there, for it may hold weights of its own.
        """
        each = max(1, entry.cost // model.replicas)
        fit = max(0, (self.most - self.taken(entries)) // each)
        more = min(replicas - model.replicas, fit)
        return model.replicas + more, entry.cost + more * each

    def promise(self, entry: Version, size: int) -> None:
        """Count so much for a version that is about to be loaded."""
        self._promised[entry] = size

    def settle(self, entry: Version) -> None:
        """The version is loaded, and its cost is known; or it could not be."""
        self._promised.pop(entry, None)

    def sentence(self, entry: Version, need: int, others: Iterable[Version]) -> str:
        """Why a version does not fit: the sum."""
        loaded = sorted((each for each in others if each.model is not None), key=lambda each: -each.cost)
        held = [f"{each.declaration.name} {each.declaration.version} {_mb(each.cost)}" for each in loaded[:_NAMED]]
        more = f" and {len(loaded) - _NAMED} more" if len(loaded) > _NAMED else ""
        taken = f", of which {', '.join(held)}{more} are taken" if held else ""
        return (
            f"version {entry.declaration.version} of model '{entry.declaration.name}' needs about {_mb(need)}, and "
            f"models may take {_mb(self.most)} together{taken}: unload one, or raise --max-memory"
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
