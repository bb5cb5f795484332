"""Versions added to the repository of a running service: a bundle that was sent, or a file that lies there already.

What is added stands in the folder, so that it is there after a restart, too. The version is known from then on, and
loaded by whoever loads versions.
"""

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flambeau.bundle import storage
from flambeau.checkpoints import repository as layout
from flambeau.checkpoints.repository import NAME, OPTIONS, SUFFIXES
from flambeau.errors import RequestError
from flambeau.serving.service import Service
from flambeau.sources import uploads
from flambeau.system import staging
from flambeau.telemetry import logs


@dataclass(frozen=True, slots=True)
class Addition:
    """A version to add: from `source`, a path below the repository, or from `archive`, a tar archive of a bundle.

    `load`: it is to be loaded, too.
    """

    model: str
    version: str
    source: str | None = None
    archive: bytes | memoryview = b""
    load: bool = False


async def add(service: Service, addition: Addition, *, by: str = "") -> None:
    """Put the version into the repository, and load it if that is wanted. Leaves a line in the log.

    Raises `RequestError`: with code `load_failed` the version is there and cannot be loaded, else nothing has changed.
    """
    began, outcome = time.monotonic(), "failed"
    try:
        await asyncio.to_thread(_store(service, addition))
        outcome = "done"
    except RequestError as error:
        outcome = error.code
        raise
    finally:
        logs.event(
            "model add", by=by, model=addition.model, asked=addition.version, source=addition.source or "upload",
            outcome=outcome, seconds=f"{time.monotonic() - began:.2f}",
        )  # fmt: skip
    await service.loader.refresh()
    if addition.load:
        await service.loader.load(addition.model, addition.version, by=by)


def _store(service: Service, addition: Addition) -> Callable[[], None]:
    """What a thread is to do. Raises `RequestError` for a name that cannot be, and without a repository."""
    if not service.table.repositories:
        raise RequestError(
            "there is no repository to add a version to",
            code="bad_request",
            hint="serve a folder of models: flambeau serve DIR",
        )
    for what, name in (("model", addition.model), ("version", addition.version)):
        if not NAME.fullmatch(name):
            raise RequestError(
                f"{name!r} cannot be a {what}: use letters, digits, '.', '_' and '-'", code="bad_request"
            )
    repository = service.table.repositories[0]
    known = {served.name: served for served in service.table.served()}.get(addition.model)
    if known is not None and (addition.version in known.versions or addition.version in known.aliases):
        raise RequestError(
            f"model '{addition.model}' has a version {addition.version} already",
            code="version_exists",
            hint="a version never changes: give the new one another number",
        )
    target = repository / addition.model / addition.version
    most, source = service.settings.max_upload_bytes, addition.source

    def store() -> None:
        _refuse_beside_an_only_version(repository, target.parent)
        if source is None:
            uploads.store_bundle(addition.archive, target, most=most)
        else:
            _refer(repository, source, target)

    return store


def _refuse_beside_an_only_version(repository: Path, folder: Path) -> None:
    """Raise `RequestError` where a model's folder is a bundle, or holds its one file: it has no room for versions.

    Example: of `dogs/net.onnx`, which is version 1 of dogs, nothing would be found any more beside `dogs/2/`.
    """
    try:
        places = layout.read(repository).get(folder.name, {})
    except OSError as error:
        raise RequestError(f"the repository cannot be read: {error.strerror}", code="internal") from None
    if any(place.folder == folder for place in places.values()):
        raise RequestError(
            f"the folder of model '{folder.name}' is its version 1, and has no room for others",
            code="bad_request",
            hint=f"stop the service, move what is in {folder.name}/ to {folder.name}/1/, and start it again",
        )


def _refer(repository: Path, source: str, target: Path) -> None:
    """Make a version's folder that names a file of the repository, or a bundle in it, as its source."""
    found = _below(repository, source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging.filling(target) as folder:
            path = os.path.relpath(found, target.parent.resolve() / target.name)
            (folder / OPTIONS).write_text(f"source = {json.dumps(path)}\n", encoding="utf-8")
            folder.chmod(0o755)
            uploads.move(folder, target)
    except OSError as error:
        raise RequestError(f"the version cannot be stored: {error.strerror}", code="internal") from None


def _below(repository: Path, source: str) -> Path:
    """The file or bundle of that path, which leads to nothing outside of the repository, by no link either."""
    refusal = RequestError(
        f"{source!r} is no file of a model, and no bundle, in the repository",
        code="bad_request",
        hint='name it as it lies there, such as {"source": "__incoming/cats.pth"}',
    )
    root = repository.resolve()
    try:
        found = (root / source).resolve(strict=True)
    except (OSError, ValueError):
        raise refusal from None
    usable = found.suffix.lower() in SUFFIXES if found.is_file() else (found / storage.MANIFEST).is_file()
    if not usable or root not in found.parents:
        raise refusal
    return found
