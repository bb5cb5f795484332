"""A bundle that was sent as a tar archive: unpacked beside its place, verified, then moved there whole.

An archive is data from outside. Only regular files with plain names are written, no more bytes than allowed, and
nothing that the manifest does not list. A bundle that brings code is refused when it was sent over HTTP, with or
without `--allow-code`.
"""

import os
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import IO

from flambeau.bundle import storage
from flambeau.bundle.storage import Bundle, PythonConfig
from flambeau.errors import BundleError, RequestError
from flambeau.system import staging

_MOST_FILES = 10_000  # a bundle has ten, and its golden samples
_PIECE = 1024 * 1024


def store_bundle(archive: bytes | memoryview, target: Path, *, most: int) -> None:
    """Make `target`, a folder that must not be there yet, from a tar archive (plain or gzip) of a bundle.

    The archive holds the bundle's files, or one folder with them; `most` are the bytes that they may have together.
    Raises `RequestError` with code `bundle_refused`, `version_exists`, or `out_of_memory` if the disk is full; then
    nothing is left behind.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent) as packed:
            packed.write(archive)
            packed.seek(0)
            store_archive(packed, target, most=most)
    except OSError as error:
        raise _of_disk(error) from None


def store_archive(packed: IO[bytes], target: Path, *, most: int, allow_code: bool = False) -> None:
    """As `store_bundle`, from a file that is open at its beginning. `allow_code`: a bundle may bring code."""
    try:
        with staging.filling(target) as folder:
            _unpack(packed, folder, most=most)
            root = _root(folder)
            _check(root, allow_code=allow_code)
            root.chmod(0o755)  # as for every folder of a repository: others may serve it, too
            move(root, target)
            if root != folder:
                shutil.rmtree(folder)
    except OSError as error:
        raise _of_disk(error) from None


def _of_disk(error: OSError) -> RequestError:
    if staging.no_space(error):
        return RequestError("the repository's disk has no space for the bundle", code="out_of_memory")
    return _refusal(f"it cannot be stored: {error.strerror}")


def move(folder: Path, target: Path) -> None:
    """Rename a complete folder to its place. Raises `RequestError` with code `version_exists` if that is taken."""
    try:
        folder.rename(target)
    except OSError:
        if target.exists():
            raise RequestError(
                f"version {target.name} of model '{target.parent.name}' is there already",
                code="version_exists",
                hint="a version never changes: give the new one another number",
            ) from None
        raise


def _refusal(why: str) -> RequestError:
    hint = "send a tar archive of a bundle, as flambeau build writes it"
    return RequestError(f"the upload is not stored: {why}", code="bundle_refused", hint=hint)


def _unpack(packed: IO[bytes], folder: Path, *, most: int) -> None:
    zipped = packed.read(2) == b"\x1f\x8b"
    packed.seek(0)
    left, count = most, 0
    try:
        with tarfile.open(fileobj=packed, mode="r:gz" if zipped else "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                count += 1
                content = archive.extractfile(member) if member.isreg() else None
                if content is None:
                    raise _refusal(f"{member.name} is no regular file")
                if count > _MOST_FILES:
                    raise _refusal(f"it has more than {_MOST_FILES:,} files")
                target = folder.joinpath(*_parts(member.name))
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    while piece := content.read(_PIECE):
                        left -= len(piece)
                        if left < 0:
                            raise _refusal(f"unpacked it has more than {most:,} bytes (--max-upload-bytes)")
                        file.write(piece)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise _refusal(f"it is no tar archive: {error}") from None


def _parts(name: str) -> tuple[str, ...]:
    """The path of an entry, part by part; it leads nowhere but down."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
        raise _refusal(f"{name!r} leads out of it")
    return path.parts


def _root(folder: Path) -> Path:
    """The bundle's own folder: what was unpacked, or the one folder in it."""
    entries = list(folder.iterdir())
    if len(entries) == 1 and entries[0].is_dir():
        return entries[0]
    return folder


def _check(folder: Path, *, allow_code: bool) -> None:
    """Raise `RequestError` unless the folder is a complete bundle, and holds nothing else; code only if allowed."""
    try:
        bundle = storage.read(folder)
    except BundleError as error:
        raise _refusal(str(error).replace(str(folder), "upload")) from None
    if not allow_code and _brings_code(bundle):
        raise _refusal("it brings Python code, which is never taken over the network")
    for root, _, names in os.walk(folder):
        for name in names:
            found = Path(root, name).relative_to(folder).as_posix()
            if found != storage.MANIFEST and found not in bundle.manifest.members:
                raise _refusal(f"{found} is not a member of the bundle")


def _brings_code(bundle: Bundle) -> bool:
    manifest = bundle.manifest
    of_network = manifest.architecture is not None and manifest.architecture.code is not None
    return of_network or isinstance(manifest.pipeline, PythonConfig)
