"""Bundles by their content on the nodes of a cluster: a folder named by the sha256 of its manifest, whole or absent.

The manifest holds the sha256 of every member, so that its own names the bundle. Two that fill the same folder at once
do no harm: the second finds it there. This module knows files alone, and no Ray.
"""

import contextlib
import hashlib
import shutil
from pathlib import Path

from flambeau.bundle import storage
from flambeau.errors import BundleError
from flambeau.sources.build_cache import cache_folder
from flambeau.system import staging

MANIFEST = storage.MANIFEST


def digest_of(folder: Path) -> str:
    """The sha256 of a bundle's manifest, as hexadecimal digits. Raises `OSError`."""
    return storage.sha256_of(folder / MANIFEST)


def kept_at(digest: str) -> Path:
    """The folder of this node for a bundle."""
    if len(digest) != hashlib.sha256().digest_size * 2 or not set(digest) <= set("0123456789abcdef"):
        raise BundleError(f"{digest!r} is no sha256")
    return cache_folder() / "by-content" / digest


def find(digest: str, shared: str) -> Path | None:
    """Where this node has the bundle: at the path `shared`, if the same bundle is there, else in its own folder.

    The members are verified when they are first used, as those of every bundle.
    """
    for folder in (Path(shared), kept_at(digest)):
        with contextlib.suppress(OSError):
            if digest_of(folder) == digest:
                return folder
    return None


class Arrival:
    """A bundle that arrives in pieces. A file's pieces come in their order, and `finish` verifies all."""

    def __init__(self, digest: str) -> None:
        self._digest = digest
        self._target = kept_at(digest)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        staging.clear(self._target.parent, self._target.name)
        self._filling = contextlib.ExitStack()
        self._folder = self._filling.enter_context(staging.filling(self._target))

    def take(self, name: str, piece: bytes) -> None:
        """Append a piece to a member."""
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts or not parts:
            raise BundleError(f"a member of a bundle cannot be named {name}")
        file = self._folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab") as end:
            end.write(piece)

    def members(self) -> list[str]:
        """The names of the members, once the manifest has come. Raises `BundleError`."""
        return list(storage.read(self._folder, whole=False).manifest.members)

    def finish(self) -> Path:
        """Verify every member, and give the bundle its name. Raises `BundleError`."""
        try:
            if digest_of(self._folder) != self._digest:
                raise BundleError("the manifest that arrived is not the one that was sent")
            storage.read(self._folder)
            try:
                self._folder.rename(self._target)
            except OSError:
                if not self._target.is_dir():
                    raise
                self.drop()  # another process was faster
            return self._target
        except BaseException:
            self.drop()
            raise
        finally:
            self._filling.close()

    def drop(self) -> None:
        """Delete what has arrived."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._filling.close()
