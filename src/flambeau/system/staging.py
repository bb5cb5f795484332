"""A folder that is filled beside its place and then moved there, so that it is whole or absent; and locks by name.

Whoever fills a folder holds a lock on it. What nobody holds was left behind by a process that was killed, and is
cleared away by the next one. It knows nothing of what the folders hold.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked, so nothing is cleared away either
    fcntl = None  # type: ignore[assignment]

_MARK = ".flambeau-unfinished-"
"""Stands in the name of every such folder, and in no other: what has it may be deleted."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS_OF_NO_SPACE = ("No space left on device", "File too large", "os error 28", "os error 27", "Disk quota exceeded")


@contextlib.contextmanager
def filling(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, to be filled and renamed; it is gone afterwards if it was not.

    Raises `OSError` where it cannot be made.
    """
    held, folder = _made(target)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(held)


def _made(target: Path) -> tuple[int, Path]:
    """A folder and its lock. Between the two another process may take it for one that nobody holds: then one more."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}{_MARK}", dir=target.parent))
        held = None
        with contextlib.suppress(FileNotFoundError):
            held = os.open(folder, os.O_RDONLY)
        if held is None:
            continue
        if _take(held) is not False and folder.exists():
            return held, folder
        os.close(held)


def clear(parent: Path, name: str = "*") -> None:
    """Delete the unfinished folders for `name` in `parent` that nobody fills any more."""
    for folder in parent.glob(f".{name}{_MARK}*"):
        with contextlib.suppress(OSError):  # another process was faster, or it is another user's
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _take(held):
                    shutil.rmtree(folder)
            finally:
                os.close(held)


def _take(held: int) -> bool | None:
    """Lock what is open: whether that went well, or `None` where the system cannot tell."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network disk without locks
        return None
    return True


@contextlib.contextmanager
def lock(home: Path, name: str) -> Iterator[None]:
    """Keep other processes from working at the same name at the same time: they wait. Raises `OSError`."""
    home.mkdir(parents=True, exist_ok=True)
    if fcntl is None:  # two builds at once cost time, and the later rename fails with a clear error
        yield
        return
    with (home / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def no_space_at(folder: Path) -> str:
    """What to say then. `folder` is an unfinished one, or any other."""
    return (
        f"{folder.parent if _MARK in folder.name else folder} has no space left for the bundle, or a limit on the size "
        "of files is set: make room, or lift the limit (ulimit -f)"
    )


def no_space(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that what was written found no room.

    Libraries in other languages say it by their words alone.
    """
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        if any(words in str(error) for words in _WORDS_OF_NO_SPACE):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
