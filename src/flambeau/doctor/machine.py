"""The machine: cores, memory, processor, files, and the folder that bundles are kept in. Linux says most of it."""

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from flambeau.doctor.diagnosis import Finding
from flambeau.settings.service import usable_cores
from flambeau.system import machine
from flambeau.system.machine import MIB, processor, saturates

_LITTLE_MEMORY = 1024 * MIB
_FEW_FILES = 1024
_LITTLE_DISK = 1024 * MIB
_LITTLE_SHARED = 64 * MIB
_NAME_ANOTHER = "name another folder: FLAMBEAU_CACHE=/path/to/folder"


def look(cache: Path | None) -> Iterator[Finding]:
    """What the machine is like. `cache` is the folder of built bundles."""
    yield Finding("python", "fine", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield _cores()
    yield from _memory()
    yield _processor()
    yield from _open_files()
    yield from _shared_memory()
    yield _disk(cache)


def _cores() -> Finding:
    usable, all_cores = usable_cores(), os.cpu_count() or 1
    found = f"{usable} of {all_cores} cores may be used"
    quota = machine.cpu_quota()
    return Finding("cores", "fine", found if quota is None else f"{found}: control groups allow the time of {quota:g}")


def _memory() -> Iterator[Finding]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    free, whole = kilobytes["MemAvailable"] * 1024, kilobytes["MemTotal"] * 1024
    found = f"{_size(free)} of {_size(whole)} are free"
    limit = machine.memory_limit()
    if limit < whole:
        found += f", and the control groups allow {_size(limit)}"
        free = min(free, limit)
    if free < _LITTLE_MEMORY:
        yield Finding("memory", "warning", found, "free some, or take --replicas 1: each worker holds its own model")
    else:
        yield Finding("memory", "fine", found)


def _processor() -> Finding:
    name = processor()
    if platform.machine() in ("x86_64", "AMD64") and "avx2" not in name.split():
        return Finding("processor", "warning", name, "it lacks AVX2, so models take several times as long: use another")
    if saturates():
        return Finding("processor", "note", name, "it lacks VNNI: a graph of --int8 is not faster here, and less exact")
    return Finding("processor", "fine", name)


def _open_files() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"at most {soft} open files"
    if 0 <= soft < _FEW_FILES:
        advice = f"raise it, for each connection is one: ulimit -n {max(4096, hard)}"
        yield Finding("open files", "warning", found, advice)
    else:
        yield Finding("open files", "fine", found)


def _shared_memory() -> Iterator[Finding]:
    folder = "/dev/shm"  # noqa: S108 (its size is asked for, nothing is put there)
    with contextlib.suppress(OSError):
        whole = shutil.disk_usage(folder).total
        if whole <= _LITTLE_SHARED:
            advice = "Flambeau does not need it; code of yours that uses torch's DataLoader may"
            yield Finding(folder, "note", f"{_size(whole)} of shared memory", advice)
        else:
            yield Finding(folder, "fine", f"{_size(whole)} of shared memory")


def _disk(cache: Path | None) -> Finding:
    if cache is None:
        return Finding("cache", "broken", "this user has no home to keep it in", _NAME_ANOTHER)
    existing = next(each for each in (cache, *cache.parents) if each.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding("cache", "broken", f"{cache} cannot be written to", _NAME_ANOTHER)
    free = shutil.disk_usage(existing).free
    found = f"{cache}, with {_size(free)} free"
    if free < _LITTLE_DISK:
        return Finding("cache", "warning", found, f"make room, or {_NAME_ANOTHER}")
    return Finding("cache", "fine", found)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
