"""The versions of one model: the state of each, which one answers by default, and which did before.

They know no other model, and load nothing: `flambeau.serving.model_table` does.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from flambeau.checkpoints.report import plain
from flambeau.checkpoints.repository import newest_first
from flambeau.errors import RequestError
from flambeau.serving.model import Model
from flambeau.serving.shadow import Shadow
from flambeau.sources.declarations import Declaration
from flambeau.types import ModelState

KeyOf = Callable[[str | None], str]
"""A request's key: the value of the header of that name where it has one, else its id."""

_HELD = (ModelState.LOADING, ModelState.READY, ModelState.UNLOADING)


@dataclass(eq=False, slots=True)
class Version:
    """A version of a model. `model` is there while it is loaded, or about to be; `fault` says why it cannot be.

    `users` counts the requests that hold it, `wanted` those that wait until it is loaded. `used_at` is when the last
    one let go, by `time.monotonic()`. `cost` is the memory that it took when it was loaded last, in bytes; 0 if that is
    not known.
    """

    declaration: Declaration
    model: Model | None = None
    fault: str = ""
    loaded_at: datetime | None = None
    opening: bool = False
    leaving: bool = False
    users: int = 0
    wanted: int = 0
    used_at: float = 0.0
    cost: int = 0
    unused: asyncio.Event | None = None  # there while somebody waits for the last user to leave
    loading: asyncio.Task[None] | None = None  # for the requests that want it

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

    def idle(self) -> bool:
        """Whether it is loaded, and no request holds it or waits for it."""
        return self.usable() and not self.users and not self.wanted


@dataclass(frozen=True, slots=True)
class Traffic:
    """Shares of the requests by version, such as {"2": 90, "3": 10}. Requests of the same key go to the same version.

    The key is the request's id, or the value of `sticky_header` where the request has it.
    """

    shares: dict[str, float]
    sticky_header: str | None = None

    def draw(self, key_of: KeyOf) -> str:
        """The version for that request: keys are spread evenly by their SHA-256.

        For example, with the shares above a key whose hash lies in the last tenth of all hashes is answered by 3.
        """
        digest = hashlib.sha256(key_of(self.sticky_header).encode()).digest()
        place = int.from_bytes(digest[:8]) / 2**64 * sum(self.shares.values())
        for version, share in self.shares.items():
            place -= share
            if place < 0:
                return version
        return next(reversed(self.shares))


@dataclass(eq=False, slots=True)
class ServedModel:
    """A model: its versions, newest first, and what leads to one of them.

    `current` answers by default: the one that was `pinned`, else the newest that is loaded. `before` are those that it
    replaced, the last one first, as far as they are still loaded. `traffic` shares the requests that name no version,
    and `shadow` is given copies of them. `limits` are settings that an operator has changed. `on_demand`: what is not
    loaded may be the default all the same.
    """

    name: str
    versions: dict[str, Version]
    pinned: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    current: str | None = None
    before: list[str] = field(default_factory=list)
    traffic: Traffic | None = None
    shadow: Shadow | None = None
    limits: dict[str, int] = field(default_factory=dict)
    repository: Path | None = None
    on_demand: bool = False
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def state(self) -> ModelState:
        """That of the version that answers; where none does, that of the newest."""
        entry = self.find(None)
        return ModelState.UNLOADED if entry is None else entry.state

    def find(self, number: str | None, key_of: KeyOf | None = None) -> Version | None:
        """The version of that number or alias, loaded or not; of `None` the one that a request means which names none.

        `key_of`: that of the request, whose share of the traffic decides.
        """
        versions = self.versions
        if number is not None:
            return versions.get(number) or versions.get(self.aliases.get(number, ""))
        if self.traffic is not None and key_of is not None:
            drawn = versions.get(self.traffic.draw(key_of))
            if drawn is not None and self._may_answer(drawn):
                return drawn
        for each in (self.current, self.pinned):
            if each is not None and each in versions:
                return versions[each]
        return next(iter(versions.values()), None)

    def needed(self) -> set[str]:
        """The versions that something leads to beside the default."""
        shared = self.traffic.shares if self.traffic else ()
        return {*self.aliases.values(), *shared, *((self.shadow.version,) if self.shadow else ())}

    def forget(self, version: str) -> None:
        """Nothing is to choose this version any more. Its aliases stay, and lead to what is not loaded."""
        if self.pinned == version:
            self.pinned = None
        if self.traffic is not None and version in self.traffic.shares:
            self.traffic = None
        if self.shadow is not None and self.shadow.version == version:
            self.shadow = None

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
        for gone in known.keys() - versions.keys():
            self.forget(gone)
            if self.current == gone:
                self.current = None
        self.before = [number for number in self.before if number in versions]

    def choose(self, *, asked: bool = True) -> None:
        """Decide anew which version answers by default.

        `asked`: for an operator, or the watch. Otherwise, where models are loaded on demand, the default stays what it
        is as long as it can be loaded: a request for another version must not change it.
        """
        kept = self.versions.get(self.current or "")
        if self.on_demand and not asked and kept is not None and self._may_answer(kept):
            return
        if self.pinned is not None:  # which nothing replaces but an operator
            chosen = self.pinned if self._may_answer(self.versions[self.pinned]) else None
        elif self.on_demand and not (kept is not None and self._may_answer(kept)):
            chosen = next((number for number, each in self.versions.items() if self._may_answer(each)), None)
        else:
            loaded = (number for number, each in self.versions.items() if each.usable() or each is kept)
            chosen = next((number for number in loaded if self._may_answer(self.versions[number])), None)
        if chosen == self.current:
            return
        if kept is not None and kept.usable():
            self.before.insert(0, kept.declaration.version)
        self.current = chosen
        before = dict.fromkeys(each for each in self.before if each != chosen)
        self.before = [each for each in before if self.versions[each].usable()]

    def _may_answer(self, entry: Version) -> bool:
        return entry.usable() or (self.on_demand and not entry.fault)


_MOST_LISTED = 5


def unknown_model(name: str, there: Iterable[str]) -> RequestError:
    """The error for a model that is not served, where these are."""
    known = listed(there)
    told = f"name one of {known}" if known else "none is served"
    return RequestError(f"there is no model of that name ('{plain(name)}'): {told}", code="model_not_found")


def unknown_version(served: ServedModel, number: str) -> RequestError:
    """The error for a version or an alias that the model has not."""
    there = listed([*served.versions, *served.aliases])
    return RequestError(
        f"the model has no such version ('{plain(number)}'): {served.name} has {there}", code="version_not_found"
    )


def listed(names: Iterable[str]) -> str:
    """Some of the names, and how many there are beside them; empty for none."""
    known = list(names)
    more = f" and {len(known) - _MOST_LISTED} more" if len(known) > _MOST_LISTED else ""
    return f"{', '.join(known[:_MOST_LISTED])}{more}"
