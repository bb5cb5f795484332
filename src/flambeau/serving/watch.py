"""`--watch`: a repository's folder is followed. New versions are loaded, deleted ones end.

The folder is read every `--watch-interval` seconds, on any file system. A version is loaded when its files were the
same at two readings, so one that is still being copied is waited for. It is tried once; when it cannot be loaded, it is
tried again as soon as its files change.
"""

import asyncio
import functools
from collections.abc import Awaitable, Iterator
from itertools import islice
from pathlib import Path

from flambeau.checkpoints import repository
from flambeau.checkpoints.repository import Place, newest_first
from flambeau.errors import RequestError
from flambeau.serving.loading import Loader
from flambeau.serving.model_table import ModelTable
from flambeau.serving.versions import ServedModel
from flambeau.telemetry import logs

_MOST_FILES = 1000  # of one version; a bundle has ten

FileSignature = tuple[tuple[str, int, int], ...]
"""Path, size and time of change of each file of a version."""

_FilesFound = dict[tuple[str, str], FileSignature]  # by model and version


class RepositoryWatch:
    """Follows one repository for the table of a service."""

    def __init__(self, folder: Path, table: ModelTable, loader: Loader, *, seconds: float) -> None:
        """What the table knows by now is not loaded for its own sake: what came while it was started is.

        `seconds`: between two readings.
        """
        self._seconds = seconds
        self._known = {(served.name, version) for served in table.served() for version in served.versions}
        self._folder = folder
        self._table = table
        self._loader = loader
        self._settled: _FilesFound | None = None
        self._last: _FilesFound = {}
        self._busy: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Follow the folder until cancelled."""
        try:
            while True:
                try:
                    await self._step()
                except Exception as error:  # the next reading may succeed
                    logs.failure("the repository could not be followed", error, folder=self._folder)
                await asyncio.sleep(self._seconds)
        finally:
            for task in self._busy.values():
                task.cancel()

    async def _step(self) -> None:
        """Read the folder once, and begin what has to be done since the last reading, model by model."""
        found = await asyncio.to_thread(_read, self._folder)
        if self._settled is None:
            self._settled, self._last = {key: files for key, files in found.items() if key in self._known}, found
            return
        if not found:
            return  # a volume that is not mounted just now, more likely than a farewell to all models
        changed: dict[str, tuple[list[str], list[str]]] = {}  # by model: versions that are gone, and fresh ones
        for name, version in self._settled.keys() - found.keys():
            changed.setdefault(name, ([], []))[0].append(version)
        for (name, version), files in found.items():
            if self._last.get((name, version)) == files != self._settled.get((name, version)):
                changed.setdefault(name, ([], []))[1].append(version)
        self._last = found
        if not changed:
            return
        await self._loader.refresh()
        for name, (gone, fresh) in changed.items():
            if name not in self._busy:
                task = asyncio.get_running_loop().create_task(self._follow(name, gone, fresh, found))
                self._busy[name] = task
                task.add_done_callback(functools.partial(self._done, name))

    def _done(self, name: str, task: "asyncio.Task[None]") -> None:
        self._busy.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logs.failure("the repository could not be followed", error, model=name)

    async def _follow(self, name: str, gone: list[str], fresh: list[str], found: _FilesFound) -> None:
        """Load what is newer than the default, the newest that can be loaded; then end what is gone."""
        assert self._settled is not None
        for version in fresh:
            self._settled[name, version] = found[name, version]
        try:
            served = self._table.named(name)
        except RequestError:  # nothing of it is left, loaded or not
            for version in gone:
                del self._settled[name, version]
            return
        for version in newest_first(fresh):
            entry = served.versions.get(version)
            if entry is not None and entry.model is not None:
                logs.event("files of a loaded version have changed: it stays as it is", model=name, version=version)
            elif (
                entry is not None
                and _newer(version, served.current)
                and await self._tried(self._loader.load(name, version, by="--watch"))
            ):
                break
        for version in gone:
            if await self._end(served, version):
                del self._settled[name, version]

    async def _end(self, served: ServedModel, version: str) -> bool:
        """End a deleted version; if it is the default, when another can answer. Whether that is done."""
        entry = served.versions.get(version)
        if entry is None or (entry.model is None and not entry.opening):
            return True
        if entry.opening:
            return False
        if served.current == version:
            left = [each for each in served.versions if each != version and (served.name, each) in self._last]
            for each in newest_first(left):
                if await self._tried(self._loader.load(served.name, each, by="--watch")):
                    break
            else:
                if left:
                    return False  # it answers on: nothing else can
        if await self._tried(self._loader.unload(served.name, version, by="--watch")):
            await self._loader.refresh()
            return True
        return False

    async def _tried(self, change: Awaitable[object]) -> bool:
        """Whether a change succeeded. Why not is in the log."""
        try:
            await change
        except RequestError:
            return False
        return True


def _newer(version: str, current: str | None) -> bool:
    return current is None or newest_first([version, current])[0] == version


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
    for options in (place.general, place.special):
        if options is not None:
            yield str(options), options.stat().st_size, options.stat().st_mtime_ns
