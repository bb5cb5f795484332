"""`--watch`: a repository's folder is followed. New versions are loaded, deleted ones end.

The folder is read every two seconds, on any file system. A version is loaded when its files were the same at two
readings, so one that is still being copied is waited for. It is tried once; when it cannot be loaded, it is tried again
as soon as its files change.
"""

import asyncio
import time
from collections.abc import Awaitable, Iterator
from itertools import islice
from pathlib import Path

from flambeau.checkpoints import repository
from flambeau.checkpoints.repository import Place
from flambeau.errors import RequestError
from flambeau.serving.loading import Loader
from flambeau.serving.model_table import ModelTable
from flambeau.telemetry import logs

_SECONDS = 2.0
_MOST_FILES = 1000  # of one version; a bundle has ten

FileSignature = tuple[tuple[str, int, int], ...]
"""Path, size and time of change of each file of a version."""

_FilesFound = dict[tuple[str, str], FileSignature]  # by model and version


class RepositoryWatch:
    """Follows one repository for the table of a service."""

    def __init__(self, folder: Path, table: ModelTable, loader: Loader) -> None:
        """Reads the folder: what is there now is not loaded for its own sake. Raises `OSError`."""
        self._folder = folder
        self._table = table
        self._loader = loader
        self._settled = self._last = _read(folder)

    async def run(self) -> None:
        """Follow the folder until cancelled."""
        while True:
            await asyncio.sleep(_SECONDS)
            try:
                await self.step()
            except Exception as error:  # the next reading may succeed
                logs.failure("the repository could not be followed", error, folder=self._folder)

    async def step(self) -> None:
        """Read the folder once, and do what has to be done since the last reading."""
        found = await asyncio.to_thread(_read, self._folder)
        if not found and self._last:
            return  # a volume that is not mounted just now, more likely than a farewell to all models
        gone = self._settled.keys() - found.keys()
        fresh = {
            each: signature
            for each, signature in found.items()
            if self._last.get(each) == signature != self._settled.get(each)
        }
        self._last = found
        if not gone and not fresh:
            return
        await self._loader.refresh()
        for name, version in gone:
            del self._settled[name, version]
            await self._unload(name, version)
        for (name, version), signature in fresh.items():
            self._settled[name, version] = signature
            await self._load(name, version)

    async def _load(self, name: str, version: str) -> None:
        """Load a version that is new, if it is the newest of its model; or that has changed since it failed."""
        served = self._table.named(name)
        entry = served.versions.get(version)
        if entry is None or version != next(iter(served.versions)):
            return
        if entry.model is not None:
            logs.event("files of a loaded version have changed: it stays as it is", model=name, version=version)
            return
        await self._note("load", name, version, self._loader.load(name, version))

    async def _unload(self, name: str, version: str) -> None:
        """End a deleted version; if it was the default, when the newest of those that are left can answer."""
        try:
            entry = self._table.version(name, version)
        except RequestError:  # it was not loaded, and is forgotten
            return
        if entry.model is not None:
            served = self._table.named(name)
            left = next((each for each in served.versions if (name, each) in self._settled), None)
            if served.current == version and left is not None:
                await self._note("load", name, left, self._loader.load(name, left))
            await self._note("unload", name, version, self._loader.unload(name, version))
            await self._loader.refresh()

    async def _note(self, what: str, name: str, version: str, change: Awaitable[object]) -> None:
        before, began, outcome = self._table.named(name).current, time.monotonic(), "done"
        try:
            await change
        except RequestError as error:
            outcome = error.code
        logs.event(
            f"model {what}", by="--watch", model=name, asked=version, before=before,
            default=self._table.named(name).current, outcome=outcome, seconds=f"{time.monotonic() - began:.2f}",
        )  # fmt: skip


def _read(folder: Path) -> _FilesFound:
    return {
        (name, version): tuple(_files(place))
        for name, versions in repository.read(folder).items()
        for version, place in versions.items()
    }


def _files(place: Place) -> Iterator[tuple[str, int, int]]:
    alone = place.source is not None and place.source.is_file() and place.source.parent == place.folder
    files = [place.source] if alone and len(place.candidates) == 1 and place.source else place.folder.rglob("*")
    for file in sorted(islice((each for each in files if each is not None), _MOST_FILES)):
        if file.is_file():
            status = file.stat()
            yield str(file), status.st_size, status.st_mtime_ns
    for file in place.options:
        yield str(file), file.stat().st_size, file.stat().st_mtime_ns
