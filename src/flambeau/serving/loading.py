"""Versions loaded, switched and ended while the service answers.

A version that cannot be loaded changes nothing. One that is unloaded first leaves the table, then answers what it has,
and ends when no request holds it any more: so no request is lost, and none is answered by two versions. Everything here
runs on the service's loop.

    set_default("cats", "1")    version 1 is loaded beside version 2; new requests go to it; version 2 answers its own
                                and stays for the way back, or ends (`keep_loaded`)
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

from flambeau.checkpoints.repository import NAME
from flambeau.errors import ConfigError, RequestError, SetupError
from flambeau.serving.memory import MemoryBudget
from flambeau.serving.model import Model
from flambeau.serving.model_table import ModelTable
from flambeau.serving.opening import open_declaration
from flambeau.serving.shadow import Shadow
from flambeau.serving.versions import ServedModel, Traffic, Version
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.sources import declarations
from flambeau.telemetry import logs
from flambeau.telemetry.metrics import Metrics

_POLL_SECONDS = 0.05  # between two looks for a model that is idle


class Loader:
    """Loads and ends the versions of a table."""

    def __init__(self, table: ModelTable, settings: Settings, metrics: Metrics) -> None:
        self._table = table
        self._settings = settings
        self._metrics = metrics
        self._memory = MemoryBudget(settings.max_memory)
        self._changes: set[asyncio.Task[Any]] = set()
        self._refreshed = -math.inf
        self._on_demand = settings.load == "on-demand"
        if self._on_demand:
            table.when_wanted = self._load_when_wanted

    async def start(self) -> None:
        """Load what is to be loaded at the start; of a model whose newest version cannot be, the newest that can.

        Raises `SetupError` if nothing can be loaded, or if one thing cannot where all have to be.
        """
        try:
            for entry in self._table.versions():
                if entry.model is not None:
                    try:
                        await self._start(entry, entry.model)
                    except RequestError as error:  # it does not fit into the memory
                        self._table.note_fault(entry, error)
                    except SetupError as error:
                        if self._table.strict:
                            entry.model = None
                            raise
                        self._table.note_fault(entry, error)
            if faults := [f"{name}: {why}" for name, _, why in self._table.faults()]:
                if self._table.strict:
                    raise ConfigError("; ".join(faults))
                for served in self._table.served():
                    await self._fall_back(served)
                if not self._table.models():
                    raise ConfigError("; ".join(faults))
        except BaseException:
            await self.close()  # or their workers would outlive a service that never was
            raise
        for served in self._table.served():
            served.choose()

    async def _fall_back(self, served: ServedModel) -> None:
        """Load the newest version that can be loaded, where the newest of all cannot and none was chosen instead."""
        if served.pinned is not None:
            return
        for number, entry in served.versions.items():
            if not entry.fault:
                with contextlib.suppress(RequestError):
                    await self._load(entry)
            if entry.usable():
                message = "an older version answers in the place of one that cannot be loaded"
                if number != next(iter(served.versions)):
                    logs.event(message, level=logging.ERROR, model=served.name, version=number)
                return

    async def _start(self, entry: Version, model: Model) -> None:
        """Start a version once there is memory for it. Raises `SetupError`, or `RequestError` if there is none."""
        try:
            await self._make_room(entry, model)
            await model.start()
            entry.cost = await asyncio.to_thread(model.memory)
        except BaseException:
            await model.close()
            self._metrics.forget(model.metrics)
            raise
        finally:
            self._memory.settle(entry)
        entry.loaded_at, entry.used_at = datetime.now(UTC), time.monotonic()

    async def _make_room(self, entry: Version, model: Model) -> None:
        """Promise memory to a version. Where models are loaded on demand, unload first what was not used for longest.

        While all others are busy, it waits for one of them, as long as a request may take. Raises `RequestError`.
        """
        need = self._memory.need(entry, model)
        gives_up = time.monotonic() + self._settings.deadline
        while True:
            others = [each for each in self._table.versions() if each is not entry]
            if self._table.strict or self._memory.taken(others) + need <= self._memory.most:
                self._memory.promise(entry, need)
                return
            hopeless = not self._on_demand or need > self._memory.most or time.monotonic() > gives_up
            if hopeless or not any(each.model is not None or each.opening for each in others):
                raise RequestError(self._memory.sentence(entry, need, others), code="out_of_memory")
            if idle := self._idle(others, beside=entry):
                await self._end_idle(min(idle, key=lambda each: each.used_at), beside=entry)
            else:
                await asyncio.sleep(_POLL_SECONDS)

    def _idle(self, entries: list[Version], *, beside: Version) -> list[Version]:
        """Those that nobody uses, wants or changes. Of the model of `beside` the change is the one that asks."""
        own = self._table.named(beside.declaration.name)
        unused = [each for each in entries if each.usable() and not each.users and not each.wanted]
        served = {id(each): self._table.named(each.declaration.name) for each in unused}
        return [each for each in unused if served[id(each)] is own or not served[id(each)].changing.locked()]

    async def _end_idle(self, entry: Version, *, beside: Version) -> None:
        served = self._table.named(entry.declaration.name)
        if served.name == beside.declaration.name:  # whose lock is held already
            await self._let_go(served, entry)
            return
        async with served.changing:  # which is free: so who wants the version now loads it again when it has ended
            await self._let_go(served, entry)

    async def _load_when_wanted(self, entry: Version) -> None:
        """Load a version for a request, within its deadline. Raises `RequestError`."""
        if entry.fault:
            return  # and the request is told so: it is tried again when its files change, or when an operator asks
        try:
            async with asyncio.timeout(self._settings.deadline):
                await self.load(entry.declaration.name, entry.declaration.version)
        except TimeoutError:
            raise RequestError("the model was not loaded in time", code="deadline_exceeded") from None
        except RequestError as error:
            if error.code != "load_failed":
                raise

    async def refresh(self, *, at_most: float = 0.0) -> None:
        """Read the repository again, for models and versions come and go; not if that was done `at_most` seconds ago.

        What is loaded stays as it is, and so does what an operator has set.
        """
        now = asyncio.get_running_loop().time()
        if not self._table.repositories or now - self._refreshed < at_most:
            return
        self._refreshed = now
        options = SourceOptions(allow_code=self._settings.allow_code)
        for folder in self._table.repositories:
            try:
                found = await asyncio.to_thread(declarations.declare_repository, folder, options)
            except OSError as error:
                raise RequestError(f"the repository cannot be read: {error.strerror}", code="internal") from error
            self._table.take(folder, found)

    async def load(self, name: str, number: str) -> Version:
        """Load a version beside those that are loaded; unless another is pinned, the newest then answers by default.

        A version that cannot be loaded changes nothing. Raises `RequestError` with code `load_failed`.
        """
        served, entry = self._table.named(name), self._table.version(name, number)
        await self._change(served, self._load(entry))
        return entry

    async def unload(self, name: str, number: str) -> Version:
        """Let go of a version: it gets no more requests, answers those it has, and ends."""
        served, entry = self._table.named(name), self._table.version(name, number)

        async def unload() -> None:
            served.forget(entry.declaration.version)
            await self._let_go(served, entry)

        await self._change(served, unload())
        return entry

    async def set_default(self, name: str, number: str | None) -> None:
        """Have a version answer by default, and load it if need be; `None`: the newest one that is loaded."""
        served = self._table.named(name)
        entry = None if number is None else self._table.version(name, number)

        async def pin() -> None:
            if entry is not None:
                await self._load(entry)
            served.pinned = None if entry is None else entry.declaration.version

        await self._change(served, pin())

    async def set_aliases(self, name: str, aliases: dict[str, str]) -> None:
        """Replace the names that lead to versions of a model, and load those versions if need be."""
        served = self._table.named(name)
        for alias in aliases:
            if not NAME.fullmatch(alias) or alias in served.versions:
                raise RequestError(
                    f"{alias} cannot be an alias: it is a version, or has other characters than letters, digits, '.', "
                    "'_' and '-'",
                    code="bad_request",
                )
        meant = {alias: self._table.version(name, number) for alias, number in aliases.items()}

        async def point() -> None:
            for entry in meant.values():
                await self._load(entry)
            served.aliases = {alias: entry.declaration.version for alias, entry in meant.items()}

        await self._change(served, point())

    async def set_traffic(self, name: str, traffic: Traffic | None) -> None:
        """Share the requests that name no version, among versions that are loaded if need be; `None`: no longer."""
        served = self._table.named(name)
        shares = {} if traffic is None else traffic.shares
        if traffic is not None and (min(shares.values(), default=0.0) < 0 or not 0 < sum(shares.values()) < math.inf):
            raise RequestError('traffic has no shares above 0: write {"2": 90, "3": 10}', code="bad_request")
        meant = [(self._table.version(name, number), share) for number, share in shares.items()]

        async def share() -> None:
            for entry, _ in meant:
                await self._load(entry)
            served.traffic = traffic and Traffic(
                {entry.declaration.version: share for entry, share in meant}, traffic.sticky_header
            )

        await self._change(served, share())

    async def set_shadow(self, name: str, number: str | None) -> None:
        """Give a version, loaded if need be, copies of the requests to the others; `None`: no version any more."""
        served = self._table.named(name)
        entry = None if number is None else self._table.version(name, number)

        async def follow() -> None:
            if entry is not None:
                await self._load(entry)
            served.shadow = None if entry is None else Shadow(entry.declaration.version)

        await self._change(served, follow())

    def set_limits(self, name: str, **limits: int) -> None:
        """Set `max_batch_size` or `max_queue_size` of all versions of a model, from the next batch on."""
        served = self._table.named(name)
        served.limits |= limits
        for entry in served.versions.values():
            if entry.model is not None:
                entry.model.set_limits(**limits)

    async def _change(self, served: ServedModel, change: Coroutine[Any, Any, None]) -> None:
        """Carry out a change, whole, though its caller leaves; and then let go of what nobody needs any more."""

        async def whole() -> None:
            async with served.changing:
                await change
                served.choose()
                if self._on_demand:  # what is not used is unloaded when another needs its memory
                    return
                kept = {*served.before[: self._settings.keep_loaded], *served.needed()}
                for number in [each for each in served.before if each not in kept]:
                    await self._let_go(served, served.versions[number])

        task = asyncio.get_running_loop().create_task(whole())
        self._changes.add(task)
        task.add_done_callback(self._changed)
        await asyncio.shield(task)

    def _changed(self, task: asyncio.Task[None]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # its caller, if it is still there, has it too

    async def _load(self, entry: Version) -> None:
        if entry.usable():
            return
        declaration = entry.declaration
        entry.opening = True
        try:
            bundle = await asyncio.to_thread(
                open_declaration, declaration, progress=lambda event: logs.event(str(event))
            )
            entry.model = model = self._table.make_model(entry, bundle)
            await self._start(entry, model)
        except SetupError as error:
            self._table.note_fault(entry, error)
            raise RequestError(
                f"version {declaration.version} of model '{declaration.name}' cannot be loaded: {error}",
                code="load_failed",
            ) from None
        except BaseException:
            entry.model = None
            raise
        finally:
            entry.opening = False
        entry.fault = ""

    async def _let_go(self, served: ServedModel, entry: Version) -> None:
        """Take a version out of the table, wait until no request holds it, and end it."""
        model = entry.model
        if model is None:
            return
        entry.leaving = True
        served.choose()
        served.before = [number for number in served.before if number != entry.declaration.version]
        entry.unused = asyncio.Event()
        try:
            if entry.users:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(entry.unused.wait(), self._settings.drain_timeout)
            await model.close()
        finally:
            self._metrics.forget(model.metrics)
            entry.model, entry.unused, entry.leaving, entry.loaded_at = None, None, False, None

    async def close(self) -> None:
        """Give up changes, answer what was taken, then let go of every model."""
        for change in list(self._changes):
            change.cancel()
        await asyncio.gather(*self._changes, return_exceptions=True)
        for model in [entry.model for entry in self._table.versions() if entry.model is not None]:
            try:
                await model.close()
            except Exception as error:  # the others are to be let go of all the same
                logs.failure(f"model '{model.name}' cannot be closed", error)
