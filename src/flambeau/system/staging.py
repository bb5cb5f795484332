"""Folders that are filled beside their target and then renamed, so that a target is complete or absent; locks by name.

A process that fills a folder holds a lock on it. An unfinished folder without a lock was left behind by a killed
process, and the next process deletes it. The module does not know what the folders contain.
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
"""Part of the name of every unfinished folder, and of no other: a folder with this mark may be deleted."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WORDS_OF_NO_SPACE = ("No space left on device", "File too large", "os error 28", "os error 27", "Disk quota exceeded")


@contextlib.contextmanager
def filling(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, for the caller to fill and rename. If the block raises, the folder is deleted.

    Raises `OSError` if it cannot be made.
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
    """A new folder and its lock. If another process deletes the folder before it is locked, make one more."""
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
    """Delete the unfinished folders for `name` in `parent` whose process is gone."""
    for folder in parent.glob(f".{name}{_MARK}*"):
        with contextlib.suppress(OSError):  # another process was faster, or it is another user's
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _take(held):
                    shutil.rmtree(folder)
            finally:
                os.close(held)


def _take(held: int) -> bool | None:
    """Lock an open folder. Returns whether it worked, or `None` if the system has no such locks."""
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
    """Hold the lock of a name; other processes that want it wait. Raises `OSError`."""
    home.mkdir(parents=True, exist_ok=True)
    if fcntl is None:  # without a lock two builds cost time, and the second rename fails with a clear error
        yield
        return
    with (home / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def no_space_at(folder: Path) -> str:
    """The message when no space is left. `folder` is an unfinished folder or any other."""
    return (
        f"{folder.parent if _MARK in folder.name else folder} has no space left for the bundle, or a limit on the size "
        "of files is set: make room, or lift the limit (ulimit -f)"
    )


def no_space(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means that there was no space left to write.

    Libraries in other languages say so only in the text of their errors.
    """
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        if any(words in str(error) for words in _WORDS_OF_NO_SPACE):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
