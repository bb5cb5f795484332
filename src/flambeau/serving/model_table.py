"""The models of a service by name and version: what is loaded, what could be, and which version answers.

    cats    version 2   ready       the default: POST /predict/cats
            version 1   unloaded    the one before: POST /models/cats/versions/1/load brings it back
    dogs    version 1   failed      with the sentence that says why

A request holds the version that answers it (`using`) until it is answered. `flambeau.serving.loading` loads versions
and ends them, on the service's loop, like everything that changes the table. Other threads may read it.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from flambeau.bundle.storage import Bundle
from flambeau.errors import ConfigError, RequestError, SetupError
from flambeau.serving.core_share import CoreShare
from flambeau.serving.model import Model
from flambeau.serving.opening import Opened, OpenedModel
from flambeau.serving.shadow import Shadow
from flambeau.serving.versions import KeyOf, ServedModel, Version, listed, unknown_model, unknown_version
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
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
        self._cores = CoreShare(settings.cores)
        self._models: dict[str, ServedModel] = {}
        self.strict = settings.strict or not all(isinstance(each, OpenedModel) for each in models)
        """Whether every model has to be loaded for the service to start."""
        self.repositories: list[Path] = []
        """The folders that models are declared in."""
        self.when_wanted: Callable[[Version], Awaitable[None]] | None = None
        """Loads a version that a request wants and that is not loaded; `None`: the request is refused."""
        self.when_unknown: Callable[[], Awaitable[None]] | None = None
        """Looks for models and versions that nobody knew yet."""
        for each in models:
            if isinstance(each, Bundle):
                self._add_bundle(each)
            else:
                self._add(each)
        if settings.default is not None and settings.default not in self._models:
            raise ConfigError(f"--default {settings.default}: there is no such model among {', '.join(self._models)}")
        self.default = settings.default or next(iter(self._models), "")
        """The name of the model that is meant where a request names none; empty if there is none at the start."""

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
        entry.model = self.make_model(entry, bundle)
        self._models[declaration.name] = ServedModel(declaration.name, {"1": entry})

    def _add(self, each: OpenedModel) -> None:
        declared = each.declared
        if declared.repository is not None and declared.repository not in self.repositories:
            self.repositories.append(declared.repository)
        served = self.declare(declared)
        for number, found in each.opened.items():
            entry = served.versions[number]
            try:
                if isinstance(found, SetupError):
                    raise found
                entry.model = self.make_model(entry, found)
            except SetupError as error:
                self.note_fault(entry, error)

    def make_model(self, entry: Version, bundle: Bundle) -> Model:
        """The model of a version whose bundle is open. Raises `SetupError`."""
        declaration = entry.declaration
        served = self._models.get(declaration.name)
        own = declaration.settings | (served.limits if served else {})
        settings = dataclasses.replace(self._settings, name=declaration.name, **own)
        return Model(bundle, settings, metrics=self._metrics, cores=self._cores, version=declaration.version)

    def note_fault(self, entry: Version, error: Exception) -> None:
        """The version could not be loaded, for this reason."""
        entry.model, entry.fault = None, str(error)
        if not self.strict:
            declaration = entry.declaration
            logs.event(
                "a model cannot be loaded", level=logging.ERROR, model=declaration.name, version=declaration.version,
                why=entry.fault,
            )  # fmt: skip

    def served(self) -> list[ServedModel]:
        """Every model, loaded or not."""
        return list(self._models.values())

    def models(self) -> list[Model]:
        """Every version that is loaded."""
        return [entry.model for entry in self.versions() if entry.model is not None and entry.usable()]

    def faults(self) -> list[tuple[str, str, str]]:
        """Name, version and reason of everything that could not be loaded."""
        return [(e.declaration.name, e.declaration.version, e.fault) for e in self.versions() if e.fault]

    def versions(self) -> list[Version]:
        """Every version of every model, loaded or not."""
        return [entry for served in self.served() for entry in list(served.versions.values())]

    def named(self, name: str) -> ServedModel:
        """The model of that name. Raises `RequestError`."""
        try:
            return self._models[name]
        except KeyError:
            raise unknown_model(name, self._models) from None

    def version(self, name: str | None, number: str | None, key_of: KeyOf | None = None) -> Version:
        """The version, loaded or not, that a request names: by its number or an alias; else the one that answers.

        Raises `RequestError` with code `model_not_found` or `version_not_found`.
        """
        if name is None and not self.default:
            there = listed(self._models)
            raise RequestError(
                f"the request names no model, and there is no default one: name {f'one of {there}' if there else 'it'}",
                code="model_not_found",
            )
        served = self.named(self.default if name is None else name)
        entry = served.find(number, key_of)
        if entry is None:
            raise unknown_version(served, str(number))
        return entry

    def get(self, name: str | None = None, number: str | None = None, key_of: KeyOf | None = None) -> Model:
        """The loaded model of that name and version, as `version` finds it.

        Raises `RequestError` as `version` does, and for one that is not loaded with code `model_loading` or
        `model_unavailable`.
        """
        return self._loaded(self.version(name, number, key_of))

    def _loaded(self, entry: Version) -> Model:
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

    def using(
        self,
        name: str | None = None,
        number: str | None = None,
        key_of: KeyOf | None = None,
        *,
        most: float | None = None,
    ) -> "ModelUse":
        """The model as `get` finds it, which stays loaded until the block is left; loaded first, where that is done.

        `most`: the seconds that the load may take, for a request that allows less than the service.
        """
        return ModelUse(self, name, number, key_of, most)

    def hold(self, name: str | None, number: str | None, key_of: KeyOf | None) -> Version | None:
        """The version that answers, held until `release`; `None` if it has to be loaded first: see `hold_loaded`.

        Raises `RequestError` where nothing is loaded for a request.
        """
        served = self._models.get(self.default if name is None else name)
        entry = served.find(number, key_of) if served is not None else None
        if entry is None or entry.model is None or entry.leaving:
            if self.when_wanted is not None:
                return None
            entry = self.version(name, number, key_of)
            self._loaded(entry)
        elif self.when_wanted is not None and not entry.usable():
            return None
        entry.users += 1
        return entry

    async def hold_loaded(
        self, name: str | None, number: str | None, key_of: KeyOf | None, most: float | None
    ) -> Version:
        """The same, when it is loaded. Raises `RequestError`."""
        # In a task of its own: whoever answers a request may have none (`flambeau.system.eager`).
        loading = asyncio.get_running_loop().create_task(self._in_time(name, number, key_of, most))
        try:
            return await loading
        except asyncio.CancelledError:
            if loading.done() and not loading.cancelled() and loading.exception() is None:
                self.release(loading.result())
            raise

    def release(self, entry: Version) -> None:
        """A request that held the version was answered."""
        entry.users -= 1
        entry.used_at = time.monotonic()
        if not entry.users and entry.unused is not None:
            entry.unused.set()

    async def _in_time(self, name: str | None, number: str | None, key_of: KeyOf | None, most: float | None) -> Version:
        """The version, loaded and held within that time."""
        try:
            async with asyncio.timeout(most):
                model = await self._wanted(name, number, key_of)
        except TimeoutError:
            raise RequestError("the model was not loaded in time", code="deadline_exceeded") from None
        entry = self._models[model.name].versions[model.version]
        entry.users += 1  # before anything else gets a turn
        return entry

    async def _wanted(self, name: str | None, number: str | None, key_of: KeyOf | None) -> Model:
        """The model as `get` finds it, loaded if need be. A default that cannot be loaded gives way to another."""
        assert self.when_wanted is not None
        assert self.when_unknown is not None
        try:
            entry = self.version(name, number, key_of)
        except RequestError:
            await self.when_unknown()
            entry = self.version(name, number, key_of)
        while not entry.usable():
            entry.wanted += 1
            try:
                await self.when_wanted(entry)
            finally:
                entry.wanted -= 1
            again = self.version(name, number, key_of)
            if again is entry:
                break
            entry = again
        return self._loaded(entry)

    def declare(self, declared: DeclaredModel) -> ServedModel:
        """Know a model, of which nothing is loaded yet."""
        made = ServedModel(
            declared.name, {version.version: Version(version) for version in declared.versions}, declared.default,
            dict(declared.aliases), repository=declared.repository, on_demand=self._settings.load == "on-demand",
        )  # fmt: skip
        self._models[declared.name] = made
        return made

    def forget(self, name: str) -> None:
        """Know a model no longer, if it was known. None of its versions may be loaded."""
        self._models.pop(name, None)

    def shadow(self, model: Model) -> Shadow | None:
        """The shadow that requests to the model are copied to, if there is one."""
        served = self._models.get(model.name)
        shadow = served.shadow if served is not None else None
        return shadow if shadow is not None and shadow.version != model.version else None

    def take(self, folder: Path, found: Sequence[DeclaredModel]) -> None:
        """Know what a repository holds now. What is loaded stays, and so does what an operator has set."""
        for declared in found:
            served = self._models.get(declared.name) or self.declare(declared)
            if served.repository == folder:
                served.redeclare(declared.versions)
        there = {declared.name for declared in found}
        for served in [each for each in self._models.values() if each.repository == folder]:
            if served.name not in there:
                served.redeclare(())
            if not (served.versions or served.name == self.default or served.changing.locked()):
                del self._models[served.name]


class ModelUse:
    """The model that answers a request, held from the beginning of an `async with` block to its end."""

    __slots__ = ("_asked", "_entry", "_table")

    def __init__(
        self, table: ModelTable, name: str | None, number: str | None, key_of: KeyOf | None, most: float | None
    ) -> None:
        self._table = table
        self._asked = name, number, key_of, most
        self._entry: Version | None = None

    async def __aenter__(self) -> Model:
        name, number, key_of, most = self._asked
        table = self._table
        entry = self._entry = table.hold(name, number, key_of) or await table.hold_loaded(name, number, key_of, most)
        assert entry.model is not None
        return entry.model

    async def __aexit__(self, *_: object) -> None:
        assert self._entry is not None
        self._table.release(self._entry)
