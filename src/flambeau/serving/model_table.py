"""The models of a service by name and version: what is loaded, what could be, and which version answers.

    cats    version 2   ready       the default: POST /predict/cats
            version 1   unloaded    the one before: POST /models/cats/versions/1/load brings it back
    dogs    version 1   failed      with the sentence that says why

A request holds the version that answers it (`using`). A version that is unloaded first leaves the table, then answers
what it has, and ends when no request holds it any more. So no request is lost, and none is answered by two versions.

Everything that changes the table runs on the service's loop. Other threads may read it: `models`, `served`, `get`.
"""

import asyncio
import contextlib
import dataclasses
import logging
import math
from collections.abc import Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flambeau.bundle.storage import Bundle
from flambeau.checkpoints.repository import NAME
from flambeau.errors import ConfigError, RequestError, SetupError
from flambeau.serving.model import Model
from flambeau.serving.opening import Opened, OpenedModel, open_declaration
from flambeau.serving.versions import ServedModel, Version
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.sources import declarations
from flambeau.sources.declarations import Declaration, DeclaredModel
from flambeau.telemetry import logs
from flambeau.telemetry.metrics import Metrics
from flambeau.types import ModelState


class ModelTable:
    """Every model of a service."""

    def __init__(self, models: Sequence[Opened], settings: Settings, metrics: Metrics) -> None:
        """Raises `SetupError` for what is not there; loads nothing yet."""
        self._settings = settings
        self._metrics = metrics
        self._models: dict[str, ServedModel] = {}
        self._strict = settings.strict or not all(isinstance(each, OpenedModel) for each in models)
        self._changes: set[asyncio.Task[Any]] = set()
        self._repositories: list[Path] = []
        self._refreshed = -math.inf
        for each in models:
            if isinstance(each, Bundle):
                self._add_bundle(each)
            else:
                self._add(each)
        if settings.default is not None and settings.default not in self._models:
            raise ConfigError(f"--default {settings.default}: there is no such model among {', '.join(self._models)}")
        self.default = settings.default or next(iter(self._models))
        """The name of the model that is meant where a request names none."""

    def _add_bundle(self, bundle: Bundle) -> None:
        declaration = Declaration(
            self._settings.name or bundle.manifest.name, "1", SourceOptions(source=str(bundle.path))
        )
        if (other := self._models.get(declaration.name)) is not None:
            raise ConfigError(
                f"{other.versions['1'].declaration.source.source} and {bundle.path} are both called "
                f"'{declaration.name}': serve them apart, each with a --name of its own"
            )
        entry = Version(declaration)
        entry.model = self._model(entry, bundle)
        self._models[declaration.name] = ServedModel(declaration.name, {"1": entry})

    def _add(self, each: OpenedModel) -> None:
        declared = each.declared
        if declared.repository is not None and declared.repository not in self._repositories:
            self._repositories.append(declared.repository)
        served = ServedModel(
            declared.name, {version.version: Version(version) for version in declared.versions}, declared.default,
            dict(declared.aliases), repository=declared.repository,
        )  # fmt: skip
        self._models[declared.name] = served
        for number, found in each.opened.items():
            entry = served.versions[number]
            try:
                if isinstance(found, SetupError):
                    raise found
                entry.model = self._model(entry, found)
            except SetupError as error:
                self._note_fault(entry, error)

    def _model(self, entry: Version, bundle: Bundle) -> Model:
        declaration = entry.declaration
        settings = dataclasses.replace(self._settings, name=declaration.name, **declaration.settings)
        return Model(bundle, settings, metrics=self._metrics, version=declaration.version)

    def _note_fault(self, entry: Version, error: Exception) -> None:
        entry.model, entry.fault = None, str(error)
        if not self._strict:
            declaration = entry.declaration
            logs.event(
                "a model cannot be loaded", level=logging.ERROR, model=declaration.name, version=declaration.version,
                why=entry.fault,
            )  # fmt: skip

    async def start(self) -> None:
        """Load what is to be loaded at the start; of a model whose newest version cannot be, the newest that can.

        Raises `SetupError` if nothing can be loaded, or if one thing cannot where all have to be.
        """
        try:
            for entry in self._versions():
                if entry.model is not None:
                    try:
                        await self._start(entry)
                    except SetupError as error:
                        if self._strict:
                            raise
                        self._note_fault(entry, error)
            if faults := [f"{name}: {why}" for name, _, why in self.faults()]:
                if self._strict:
                    raise ConfigError("; ".join(faults))
                for served in self._models.values():
                    await self._fall_back(served)
                if not self.models():
                    raise ConfigError("; ".join(faults))
        except BaseException:
            await self.close()  # or their workers would outlive a service that never was
            raise
        for served in self._models.values():
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

    async def _start(self, entry: Version) -> None:
        assert entry.model is not None
        try:
            await entry.model.start()
        except BaseException:
            await entry.model.close()
            raise
        entry.loaded_at = datetime.now(UTC)

    def served(self) -> list[ServedModel]:
        """Every model, loaded or not."""
        return list(self._models.values())

    def models(self) -> list[Model]:
        """Every version that is loaded."""
        return [entry.model for entry in self._versions() if entry.model is not None and entry.usable()]

    def faults(self) -> list[tuple[str, str, str]]:
        """Name, version and reason of everything that could not be loaded."""
        return [(e.declaration.name, e.declaration.version, e.fault) for e in self._versions() if e.fault]

    def _versions(self) -> list[Version]:
        return [entry for served in self._models.values() for entry in served.versions.values()]

    def named(self, name: str) -> ServedModel:
        """The model of that name. Raises `RequestError`."""
        try:
            return self._models[name]
        except KeyError:
            raise RequestError("there is no model of that name", code="model_not_found") from None

    def version(self, name: str | None, number: str | None) -> Version:
        """The version, loaded or not, that a request names: by its number or an alias; else the one that answers.

        Raises `RequestError` with code `model_not_found`, `version_not_found` or `model_unavailable`.
        """
        served = self.named(self.default if name is None else name)
        if number is None:
            number = served.answering()
        entry = None if number is None else served.versions.get(served.aliases.get(number, number))
        if entry is None:
            raise RequestError("the model has no such version", code="version_not_found")
        return entry

    def get(self, name: str | None = None, number: str | None = None) -> Model:
        """The loaded model of that name and version, as `version` finds it."""
        entry = self.version(name, number)
        if entry.model is None or entry.leaving:
            declaration = entry.declaration
            what = f"version {declaration.version} of model '{declaration.name}'"
            if entry.state is ModelState.LOADING:
                raise RequestError(f"{what} is loading", code="model_loading")
            told = "could not be loaded" if entry.fault else "is not loaded"
            raise RequestError(
                f"{what} {told}",
                code="model_unavailable",
                hint="the operator sees why, and can load it, at GET /models",
            )
        return entry.model

    @contextlib.contextmanager
    def using(self, name: str | None = None, number: str | None = None) -> Iterator[Model]:
        """The model as `get` finds it, which stays loaded until the block is left."""
        model = self.get(name, number)
        entry = self._models[model.name].versions[model.version]
        entry.users += 1
        try:
            yield model
        finally:
            entry.users -= 1
            if not entry.users and entry.unused is not None:
                entry.unused.set()

    async def refresh(self, *, at_most: float = 0.0) -> None:
        """Read the repository again, for models and versions come and go; not if that was done `at_most` seconds ago.

        What is loaded stays as it is, and so does what an operator has set.
        """
        now = asyncio.get_running_loop().time()
        if not self._repositories or now - self._refreshed < at_most:
            return
        self._refreshed = now
        options = SourceOptions(allow_code=self._settings.allow_code)
        for folder in self._repositories:
            try:
                found = await asyncio.to_thread(declarations.declare_repository, folder, options)
            except OSError as error:
                raise RequestError(f"the repository cannot be read: {error.strerror}", code="internal") from error
            self._take(folder, found)

    def _take(self, folder: Path, found: list[DeclaredModel]) -> None:
        """Have the table know what the folder holds now."""
        for declared in found:
            served = self._models.get(declared.name)
            if served is None:
                aliases = dict(declared.aliases)
                served = ServedModel(declared.name, {}, declared.default, aliases, repository=folder)
                self._models[declared.name] = served
            if served.repository == folder:
                served.redeclare(declared.versions)
        there = {declared.name for declared in found}
        for served in [each for each in self._models.values() if each.repository == folder]:
            if served.name not in there:
                served.redeclare(())
            if not served.versions and served.name != self.default:
                del self._models[served.name]

    async def load(self, name: str, number: str) -> Version:
        """Load a version beside those that are loaded; unless another is pinned, the newest then answers by default.

        A version that cannot be loaded changes nothing. Raises `RequestError` with code `load_failed`.
        """
        served, entry = self.named(name), self.version(name, number)
        await self._change(served, self._load(entry))
        return entry

    async def unload(self, name: str, number: str) -> Version:
        """Let go of a version: it gets no more requests, answers those it has, and ends."""
        served, entry = self.named(name), self.version(name, number)

        async def unload() -> None:
            if served.pinned == entry.declaration.version:
                served.pinned = None
            await self._let_go(served, entry)

        await self._change(served, unload())
        return entry

    async def set_default(self, name: str, number: str | None) -> None:
        """Have a version answer by default, and load it if need be; `None`: the newest one that is loaded."""
        served = self.named(name)
        entry = None if number is None else self.version(name, number)

        async def pin() -> None:
            if entry is not None:
                await self._load(entry)
            served.pinned = None if entry is None else entry.declaration.version

        await self._change(served, pin())

    async def set_aliases(self, name: str, aliases: dict[str, str]) -> None:
        """Replace the names that lead to versions of a model, and load those versions if need be."""
        served = self.named(name)
        for alias in aliases:
            if not NAME.fullmatch(alias) or alias in served.versions:
                raise RequestError(
                    f"{alias} cannot be an alias: it is a version, or has other characters than letters, digits, '.', "
                    "'_' and '-'",
                    code="bad_request",
                )
        meant = {alias: self.version(name, number) for alias, number in aliases.items()}

        async def point() -> None:
            for entry in meant.values():
                await self._load(entry)
            served.aliases = {alias: entry.declaration.version for alias, entry in meant.items()}

        await self._change(served, point())

    async def _change(self, served: ServedModel, change: Coroutine[Any, Any, None]) -> None:
        """Carry out a change, whole, though its caller leaves; and then let go of what nobody needs any more."""

        async def whole() -> None:
            async with served.changing:
                await change
                served.choose()
                kept = {*served.before[: self._settings.keep_loaded], *served.aliases.values()}
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
            entry.model = self._model(entry, bundle)
            await self._start(entry)
        except BaseException as error:
            entry.model, entry.fault = None, str(error)
            if not isinstance(error, SetupError):
                raise
            self._note_fault(entry, error)
            raise RequestError(
                f"version {declaration.version} of model '{declaration.name}' cannot be loaded: {error}",
                code="load_failed",
            ) from None
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
        for model in [entry.model for entry in self._versions() if entry.model is not None]:
            try:
                await model.close()
            except Exception as error:  # the others are to be let go of all the same
                logs.failure(f"model '{model.name}' cannot be closed", error)
