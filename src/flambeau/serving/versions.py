"""The versions of one model: the state of each, which one answers by default, and which did before.

They know no other model, and load nothing: `flambeau.serving.model_table` does.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from flambeau.checkpoints.repository import newest_first
from flambeau.serving.model import Model
from flambeau.sources.declarations import Declaration
from flambeau.types import ModelState

_HELD = (ModelState.LOADING, ModelState.READY, ModelState.UNLOADING)


@dataclass(eq=False, slots=True)
class Version:
    """A version of a model. `model` is there while it is loaded, or about to be; `fault` says why it cannot be.

    `users` counts the requests that hold it.
    """

    declaration: Declaration
    model: Model | None = None
    fault: str = ""
    loaded_at: datetime | None = None
    opening: bool = False
    leaving: bool = False
    users: int = 0
    unused: asyncio.Event | None = None  # there while somebody waits for the last user to leave

    @property
    def state(self) -> ModelState:
        """Where it is in its life."""
        if self.leaving:
            return ModelState.UNLOADING
        if self.model is not None:
            return self.model.state
        if self.opening:
            return ModelState.LOADING
        return ModelState.FAILED if self.fault else ModelState.UNLOADED

    def usable(self) -> bool:
        """Whether requests may be given to it."""
        return self.model is not None and not self.leaving and self.model.state is ModelState.READY


@dataclass(eq=False, slots=True)
class ServedModel:
    """A model: its versions, newest first, and what leads to one of them.

    `current` answers by default: the one that was `pinned`, else the newest that is loaded. `before` are those that it
    replaced, the last one first, as far as they are still loaded.
    """

    name: str
    versions: dict[str, Version]
    pinned: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    current: str | None = None
    before: list[str] = field(default_factory=list)
    repository: Path | None = None
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def state(self) -> ModelState:
        """That of the version that answers; where none does, that of the newest."""
        number = self.answering()
        return ModelState.UNLOADED if number is None else self.versions[number].state

    def answering(self) -> str | None:
        """The version that is meant where a request names none, loaded or not; `None` where there is none."""
        if self.current is not None:
            return self.current
        return self.pinned if self.pinned in self.versions else next(iter(self.versions), None)

    def redeclare(self, declared: Sequence[Declaration]) -> None:
        """Know these versions, newest first, and none beside them but what is loaded."""
        known = self.versions
        there = {each.version: each for each in declared}
        held = [number for number, each in known.items() if number not in there and each.state in _HELD]
        versions = {}
        for number in newest_first([*there, *held]):
            entry = versions[number] = known.get(number) or Version(there[number])
            if number in there and entry.state not in _HELD and entry.declaration != there[number]:
                entry.declaration, entry.fault = there[number], ""
        self.versions = versions

    def choose(self) -> None:
        """Decide anew which version answers by default."""
        usable = [number for number, each in self.versions.items() if each.usable()]
        chosen = self.pinned if self.pinned in usable else next(iter(usable), None)
        if chosen == self.current:
            return
        if self.current is not None and self.versions[self.current].usable():
            self.before.insert(0, self.current)
        self.current = chosen
        self.before = [number for number in self.before if number in usable and number != chosen]
