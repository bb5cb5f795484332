"""More and fewer workers for each loaded model, as it needs them: several times a second it looks, and has it decided.

    cats, the only model       all their workers, from the start, whatever they do
    cats, --min-replicas 1     as many as they need, from one
    cats and dogs              each begins with one; who is busy gets more, while there are cores and memory
    cats 2 in place of cats 1  begins with as many as cats 1 has

`flambeau.serving.elasticity` decides; the runner starts and ends workers.
"""

import asyncio
from typing import Any

from flambeau.serving.elasticity import PERIOD, ReplicaPolicy
from flambeau.serving.memory import MemoryBudget
from flambeau.serving.model import Model
from flambeau.serving.model_table import ModelTable
from flambeau.serving.versions import Version
from flambeau.telemetry import logs

_LISTED_EVERY = 10  # looks: a repository may have thousands of versions of which few are loaded


def scale_first(table: ModelTable, entry: Version, model: Model) -> None:
    """Have a version begin with the fewest that were asked for, with one replica beside other models, else with all.

    One that takes over begins with as many as the version has that answers now.
    """
    before = table.named(model.name).find(None)
    if not model.elastic:
        return
    if before is not None and before is not entry and before.model is not None and before.usable():
        model.scale(min(before.model.replicas, model.most_replicas))
    elif model.least_replicas is not None or _names(table) - {model.name}:
        model.scale(model.least_replicas or 1)


def _names(table: ModelTable) -> set[str]:
    """The models of which a version is loaded, or about to be."""
    return {each.declaration.name for each in table.versions() if each.model is not None or each.opening}


class Scaler:
    """Follows the loaded models of a table, on the loop."""

    def __init__(self, table: ModelTable, memory: MemoryBudget) -> None:
        self._table = table
        self._memory = memory
        self._policies: dict[Model, tuple[Version, ReplicaPolicy]] = {}
        self._only = True  # one model is loaded, in however many versions
        self._measuring: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Look, until it is cancelled."""
        try:
            while True:
                self._list()
                for _ in range(_LISTED_EVERY):
                    await asyncio.sleep(PERIOD)
                    self._look()
        finally:
            for task in self._measuring:
                task.cancel()

    def _list(self) -> None:
        """Know which versions are loaded now."""
        self._only = len(_names(self._table)) < 2
        loaded = [(each.model, each) for each in self._table.versions() if each.model is not None]
        self._policies = {
            model: self._policies.get(model) or (entry, ReplicaPolicy()) for model, entry in loaded if model.elastic
        }

    def _look(self) -> None:
        for model, (entry, policy) in self._policies.items():
            try:
                if entry.model is model and entry.usable():
                    self._decide(entry, model, policy)
            except Exception as error:  # the others are to be looked after all the same
                logs.failure(f"the workers of model '{model.name}' cannot be counted", error)

    def _decide(self, entry: Version, model: Model, policy: ReplicaPolicy) -> None:
        demand, now = model.demand(), asyncio.get_running_loop().time()
        wanted = policy.wanted(now, demand, least=self._least(entry, model), most=model.most_replicas)
        if wanted > demand.replicas:
            asked = wanted
            wanted, entry.cost = self._memory.growth(entry, model, asked, self._table.versions())
            if wanted < asked:
                policy.pause(now)
        if wanted == demand.replicas:
            return
        logs.event(
            "more workers" if wanted > demand.replicas else "fewer workers", model=model.name, version=model.version,
            before=demand.replicas, now=wanted, waiting=demand.waiting,
        )  # fmt: skip
        model.scale(wanted)
        task = asyncio.get_running_loop().create_task(self._measure(entry, model))
        self._measuring.add(task)
        task.add_done_callback(self._measuring.discard)

    def _least(self, entry: Version, model: Model) -> int:
        """What was said; else the answering version of the only model keeps all its workers."""
        if model.least_replicas is not None:
            return model.least_replicas
        answers = self._table.named(model.name).current == entry.declaration.version
        return model.most_replicas if self._only and answers else 1

    async def _measure(self, entry: Version, model: Model) -> None:
        """Note what the model takes once its workers are warm."""
        try:
            while (demand := model.demand()).warm < demand.replicas and entry.model is model:
                await asyncio.sleep(PERIOD)
            taken = await asyncio.to_thread(model.memory)
            if taken and entry.model is model:
                entry.cost = taken
        except Exception as error:
            logs.failure(f"the memory of model '{model.name}' cannot be measured", error)
