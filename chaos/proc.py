"""What /proc tells about processes. Linux only, as the harness is."""

import contextlib
import os
from pathlib import Path


def children(pid: int) -> list[int]:
    """The child processes of a process that are not zombies."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return sorted(child for child in found if alive(child))


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    return _state(pid) not in ("", "Z", "X")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def zombies(pid: int) -> int:
    """How many children of a process are zombies."""
    found = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += sum(_state(int(child)) == "Z" for child in (task / "children").read_text().split())
    return found


def descriptors(pid: int) -> int:
    """How many files a process has open."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def threads(pid: int) -> int:
    """How many threads a process has."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/task"))
    return 0


def resident(pid: int) -> int:
    """The bytes of memory a process has in use."""
    with contextlib.suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return 0


def mentioning(text: str) -> list[int]:
    """The processes whose command line holds a text."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if text.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
    return sorted(found)


def shared_memory() -> set[str]:
    """What is in /dev/shm."""
    with contextlib.suppress(OSError):
        return set(os.listdir("/dev/shm"))  # noqa: S108
    return set()
