"""The machine: cores, memory, processor, files, and the folder that bundles are kept in. Linux says most of it."""

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

from flambeau.config import MIB, usable_cores
from flambeau.doctor.finding import Finding
from flambeau.machine import processor, saturates

_GROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # what control groups of version 1 call no limit is a number near 2**63
_LITTLE_MEMORY = 1024 * MIB
_FEW_FILES = 1024
_LITTLE_DISK = 1024 * MIB
_LITTLE_SHARED = 64 * MIB


def look(cache: Path) -> Iterator[Finding]:
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
    quota = _quota_of_version_1()
    if quota is not None and quota < usable:
        advice = f"say --replicas {max(1, int(quota))} --threads 1, for more threads than that only wait for each other"
        return Finding("cores", "warning", f"{found}, and the control group allows the time of {quota:.1f}", advice)
    return Finding("cores", "fine", found)


def _quota_of_version_1() -> float | None:
    """The cores whose time the control group (v1) allows, which `usable_cores` does not ask for."""
    quota, period = _number(_GROUPS / "cpu/cpu.cfs_quota_us"), _number(_GROUPS / "cpu/cpu.cfs_period_us")
    return quota / period if quota and period and quota > 0 else None


def _memory() -> Iterator[Finding]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    free, whole = kilobytes["MemAvailable"] * 1024, kilobytes["MemTotal"] * 1024
    found = f"{_size(free)} of {_size(whole)} are free"
    limit = _number(_GROUPS / "memory.max") or _number(_GROUPS / "memory/memory.limit_in_bytes")
    if limit is not None and limit < min(whole, _UNLIMITED):
        found += f", and the control group allows {_size(limit)}"
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


def _disk(cache: Path) -> Finding:
    existing = next(each for each in (cache, *cache.parents) if each.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            "cache", "broken", f"{cache} cannot be written to", "name another folder: FLAMBEAU_CACHE=/path/to/folder"
        )
    free = shutil.disk_usage(existing).free
    found = f"{cache}, with {_size(free)} free"
    if free < _LITTLE_DISK:
        return Finding("cache", "warning", found, "make room, or name another folder: FLAMBEAU_CACHE=/path/to/folder")
    return Finding("cache", "fine", found)


def _number(file: Path) -> int | None:
    """The whole number that a file of the kernel holds; none where there is no such file, or it says max."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
