"""Versions loaded, switched and ended while the service answers.

A version that cannot be loaded changes nothing. One that is unloaded first leaves the table, then answers what it has,
and ends when no request holds it any more: so no request is lost, and none is answered by two versions. Everything here
runs on the service's loop, one change of a model at a time.

    set("cats", Change(default="1"))    version 1 is loaded beside version 2; new requests go to it; version 2 answers
                                        its own and stays for the way back, or ends (`keep_loaded`)
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from flambeau.bundle.storage import Bundle
from flambeau.errors import ConfigError, RequestError, SetupError
from flambeau.serving.changes import Change
from flambeau.serving.memory import MemoryBudget
from flambeau.serving.model import Model
from flambeau.serving.model_table import ModelTable
from flambeau.serving.opening import open_while_serving
from flambeau.serving.scaling import scale_first
from flambeau.serving.shadow import Shadow
from flambeau.serving.versions import ServedModel, Traffic, Version, unknown_version
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache, declarations
from flambeau.telemetry import logs
from flambeau.telemetry.metrics import Metrics
from flambeau.types import ModelState

_POLL_SECONDS = 0.05  # between two looks for a model that is idle
_OPENING_THREADS = 16  # which wait for files and for builds; of these there is one at a time


class Loader:
    """Loads and ends the versions of a table."""

    def __init__(self, table: ModelTable, settings: Settings, metrics: Metrics) -> None:
        self._table = table
        self._settings = settings
        self._metrics = metrics
        self.memory = MemoryBudget(settings.max_memory)
        """What all versions may take together."""
        self._changes: set[asyncio.Task[Any]] = set()
        self._reading = asyncio.Lock()
        self._read_at = -math.inf
        self._threads = ThreadPoolExecutor(_OPENING_THREADS, thread_name_prefix="opening")
        self._opening = 0
        self._closed = False
        self._on_demand = settings.load == "on-demand"
        if self._on_demand:
            table.when_wanted = self._load_when_wanted
            table.when_unknown = lambda: self.refresh(at_most=1.0)

    async def start(self) -> None:
        """Load what is to be loaded at the start; of a model whose newest version cannot be, the newest that can.

        Raises `SetupError` if nothing can be loaded, or if one thing cannot where all have to be.
        """
        try:
            for entry in self._table.versions():
                if entry.model is not None:
                    await self._start_first(entry, entry.model)
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

    async def _start_first(self, entry: Version, model: Model) -> None:
        try:
            await self._start(entry, model, check=not self._table.strict)
        except RequestError as error:  # it does not fit into the memory
            self._table.note_fault(entry, error)
        except SetupError as error:
            entry.model = None
            if self._table.strict:
                raise
            self._table.note_fault(entry, error)

    async def _fall_back(self, served: ServedModel) -> None:
        """Load the newest version that can be loaded, where the newest of all cannot and none was chosen instead."""
        if served.pinned is not None:
            return
        for number, entry in served.versions.items():
            if not entry.fault:
                with contextlib.suppress(RequestError):
                    await self._load(served, entry)
            if entry.usable():
                message = "an older version answers in the place of one that cannot be loaded"
                if number != next(iter(served.versions)):
                    logs.event(message, level=logging.ERROR, model=served.name, version=number)
                return

    async def _start(self, entry: Version, model: Model, *, check: bool = True) -> None:
        """Start a version once there is memory for it. Raises `SetupError`, or `RequestError` if there is none."""
        try:
            scale_first(self._table, entry, model)
            need = self.memory.need(entry, model)
            if check:
                await self._make_room(entry, need)
            self.memory.promise(entry, need)
            await model.start()
            entry.cost = await asyncio.to_thread(model.memory) or need
        except BaseException:
            await model.close()
            self._metrics.forget(model.metrics)
            raise
        finally:
            self.memory.settle(entry)
        entry.loaded_at, entry.used_at = datetime.now(UTC), time.monotonic()

    async def _make_room(self, entry: Version, need: int) -> None:
        """Return when so much memory is free. Where models are loaded on demand, those unused for longest are ended.

        While all others are busy, it waits for one of them, as long as a request may take. Raises `RequestError`.
        """
        gives_up = time.monotonic() + self._settings.deadline
        while True:
            others = [each for each in self._table.versions() if each is not entry]
            if self.memory.taken(others) + need <= self.memory.most:
                return
            hopeless = not self._on_demand or need > self.memory.most or time.monotonic() > gives_up
            if hopeless or not any(each.model is not None or each.opening for each in others):
                raise RequestError(self.memory.sentence(entry, need, others), code="out_of_memory")
            if idle := self._idle(others, beside=entry):
                await self._end_idle(min(idle, key=lambda each: each.used_at), beside=entry)
            else:
                await asyncio.sleep(_POLL_SECONDS)

    def _idle(self, entries: list[Version], *, beside: Version) -> list[Version]:
        """Those that nobody uses, wants or changes. Of the model of `beside` the change is the one that asks."""
        own = self._table.named(beside.declaration.name)
        unused = [(each, self._table.named(each.declaration.name)) for each in entries if each.idle()]
        return [each for each, served in unused if served is own or not served.changing.locked()]

    async def _end_idle(self, entry: Version, *, beside: Version) -> None:
        served = self._table.named(entry.declaration.name)
        if served.name == beside.declaration.name:  # whose lock is held already
            await self._evict(served, entry)
            return
        async with served.changing:
            if entry.idle():  # still: somebody may have been faster to the lock
                await self._evict(served, entry)

    async def _evict(self, served: ServedModel, entry: Version) -> None:
        logs.event("model unload", by="--max-memory", model=served.name, asked=entry.declaration.version)
        await self._let_go(served, entry)

    async def _load_when_wanted(self, entry: Version) -> None:
        """Load a version for the requests that want it, once for all of them. Raises `RequestError`."""
        if self._closed:
            raise RequestError("the service is stopping", code="draining")
        if entry.fault:
            await self.refresh(at_most=1.0)  # its files may have changed
        if entry.fault:
            return  # and the request is told so
        served = self._table.named(entry.declaration.name)
        if entry.loading is None:
            number = entry.declaration.version
            entry.loading = self._begin(
                served, lambda: self._demand(served, entry), "load", number, "a request", asked=False
            )
            entry.loading.add_done_callback(lambda _: setattr(entry, "loading", None))
        try:
            async with asyncio.timeout(self._settings.deadline):
                await asyncio.shield(entry.loading)
        except TimeoutError:
            raise RequestError("the model was not loaded in time", code="deadline_exceeded") from None
        except RequestError as error:
            if error.code != "load_failed":  # which the request is told in its own words
                raise

    async def _demand(self, served: ServedModel, entry: Version) -> None:
        if entry.wanted and not entry.fault:
            await self._load(served, entry)

    async def refresh(self, *, at_most: float = 0.0) -> None:
        """Read the repository again, for models and versions come and go; not if that was done `at_most` seconds ago.

        What is loaded stays as it is, and so does what an operator has set. A folder that is suddenly empty, or cannot
        be read, changes nothing: a volume that is not mounted is likelier than a farewell to all models.
        """
        async with self._reading:
            if not self._table.repositories or time.monotonic() - self._read_at < at_most:
                return
            options = SourceOptions(allow_code=self._settings.allow_code, allow_installs=self._settings.allow_installs)
            for folder in self._table.repositories:
                try:
                    found = await asyncio.to_thread(
                        declarations.declare_repository, folder, options, keep=self._settings.keep_versions
                    )
                except OSError as error:
                    logs.event(
                        "the repository cannot be read", level=logging.ERROR, folder=folder, error=error.strerror
                    )
                    continue
                if found:
                    self._table.take(folder, found)
            self._read_at = time.monotonic()

    async def load(self, name: str, number: str, *, by: str = "") -> Version:
        """Load a version beside those that are loaded; unless another is pinned, the newest then answers by default.

        A version that cannot be loaded changes nothing. Raises `RequestError` with code `load_failed`.
        """
        served, entry = self._table.named(name), self._table.version(name, number)
        await self._change(served, lambda: self._load(served, entry), "load", number, by)
        return entry

    async def unload(self, name: str, number: str, *, by: str = "") -> Version:
        """Let go of a version: it gets no more requests, answers those it has, and ends."""
        served, entry = self._table.named(name), self._table.version(name, number)

        async def unload() -> None:
            served.forget(entry.declaration.version)
            await self._let_go(served, entry)

        await self._change(served, unload, "unload", number, by)
        return entry

    async def set(self, name: str, change: Change, *, by: str = "") -> None:
        """Change what leads to the versions of a model, all of it or nothing: first every version meant is loaded."""
        served = self._table.named(name)
        change.check(served, self._settings)

        def meant(number: str | None) -> Version | None:
            return None if number is None else self._table.version(name, number)

        default, shadow = meant(change.default), meant(change.shadow)
        aliases = {alias: self._table.version(name, number) for alias, number in change.aliases.items()}
        shares = change.traffic.shares if change.traffic else {}
        traffic = [(self._table.version(name, number), share) for number, share in shares.items()]

        async def apply() -> None:
            wanted = [each for each in (default, shadow, *aliases.values(), *(entry for entry, _ in traffic)) if each]
            await self._load_all(served, wanted)
            if "default" in change.named:
                served.pinned = None if default is None else default.declaration.version
            if "aliases" in change.named:
                served.aliases = {alias: entry.declaration.version for alias, entry in aliases.items()}
            if "traffic" in change.named:
                given = {entry.declaration.version: share for entry, share in traffic}
                served.traffic = change.traffic and Traffic(given, change.traffic.sticky_header)
            if "shadow" in change.named:
                served.shadow = None if shadow is None else Shadow(shadow.declaration.version)
            served.limits |= change.limits
            for entry in served.versions.values():
                if entry.model is not None and change.limits:
                    entry.model.set_limits(**change.limits)

        asked = " ".join(f"{key}={getattr(change, key)}" for key in sorted(change.named)) or str(change.limits)
        await self._change(served, apply, "set", asked, by)

    async def _load_all(self, served: ServedModel, entries: list[Version]) -> None:
        """Load these versions, or none of them."""
        fresh: list[Version] = []
        try:
            for entry in entries:
                if not entry.usable():
                    await self._load(served, entry)
                    fresh.append(entry)
        except RequestError:
            for entry in fresh:
                await self._let_go(served, entry)
            raise

    async def _change(
        self, served: ServedModel, change: Callable[[], Coroutine[Any, Any, None]], what: str, asked: str, by: str
    ) -> None:
        """Carry out a change, whole, though its caller leaves."""
        await asyncio.shield(self._begin(served, change, what, asked, by))

    def _begin(
        self, served: ServedModel, change: Callable[[], Awaitable[None]], what: str, to: str, by: str, *,
        asked: bool = True,
    ) -> "asyncio.Task[None]":  # fmt: skip
        """Begin a change; then what nobody needs any more is let go of. The log gets a line, however it ends."""

        async def whole() -> None:
            began, before, outcome = time.monotonic(), served.current, "failed"
            try:
                async with served.changing:
                    try:
                        await change()
                    finally:
                        served.choose(asked=asked)
                    await self._retire(served)
                outcome = "done"
            except RequestError as error:
                outcome = error.code
                raise
            finally:
                logs.event(
                    f"model {what}", by=by, model=served.name, asked=to, before=before, default=served.current,
                    outcome=outcome, seconds=f"{time.monotonic() - began:.2f}",
                )  # fmt: skip

        task = asyncio.get_running_loop().create_task(whole())
        self._changes.add(task)
        task.add_done_callback(self._changed)
        return task

    def _changed(self, task: "asyncio.Task[None]") -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()  # its caller, if it is still there, has it too

    async def _retire(self, served: ServedModel) -> None:
        """End former defaults that are too many. On demand, what is not used ends when another needs its memory."""
        if self._on_demand:
            return
        kept = {*served.before[: self._settings.keep_loaded], *served.needed()}
        for number in [each for each in served.before if each not in kept]:
            await self._let_go(served, served.versions[number])

    async def _load(self, served: ServedModel, entry: Version) -> None:
        if entry.usable():
            return
        declaration = entry.declaration
        if served.versions.get(declaration.version) is not entry:  # the repository has changed since it was looked up
            raise unknown_version(served, declaration.version)
        entry.opening = True
        try:
            bundle = await self._open(entry)
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

    async def _open(self, entry: Version) -> Bundle:
        """The bundle of a version, in a thread of our own: a build takes minutes, and others need theirs."""
        self._opening += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, open_while_serving, entry.declaration)
        finally:
            self._opening -= 1

    async def _let_go(self, served: ServedModel, entry: Version) -> None:
        """Take a version out of the table, wait until no request holds it, and end it."""
        model = entry.model
        if model is None:
            return
        entry.leaving = True
        served.choose(asked=not self._on_demand)
        served.before = [number for number in served.before if number != entry.declaration.version]
        entry.unused = asyncio.Event()
        try:
            if entry.users:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(entry.unused.wait(), self._settings.drain_timeout)
        finally:
            try:
                await model.close()
            finally:
                self._metrics.forget(model.metrics)
                entry.model, entry.unused, entry.leaving, entry.loaded_at = None, None, False, None

    async def close(self) -> None:
        """Give up changes, answer what was taken, then let go of every model."""
        self._closed = True
        if self._opening:
            build_cache.end_builds()
        for change in list(self._changes):
            change.cancel()
        await asyncio.gather(*self._changes, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)
        for model in [entry.model for entry in self._table.versions() if entry.model is not None]:
            if model.state is not ModelState.CLOSED:
                try:
                    await model.close()
                except Exception as error:  # the others are to be let go of all the same
                    logs.failure(f"model '{model.name}' cannot be closed", error)
