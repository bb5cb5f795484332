"""Checks of the machine: cores, memory, files, the folder of bundles, the address, the sandbox and devices.

Most of it comes from Linux; the results of the processes of `probes` are passed in.
"""

import contextlib
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from flambeau.doctor import Finding
from flambeau.doctor.probes import SandboxLayers, TorchDevices
from flambeau.errors import PortInUse
from flambeau.http.listening import bind
from flambeau.settings.hosts import is_local, unix_path
from flambeau.settings.service import Settings
from flambeau.system import machine
from flambeau.system.machine import MIB, pip_install, processor, saturates, usable_cores

_LITTLE_MEMORY = 1024 * MIB
_FEW_FILES = 1024
_LITTLE_DISK = 1024 * MIB
_LITTLE_SHARED = 64 * MIB
_NAME_ANOTHER = "name another folder: FLAMBEAU_CACHE=/path/to/folder"


def check_machine(cache: Path | None) -> Iterator[Finding]:
    """Check the machine itself. `cache` is the folder of built bundles."""
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
        advice = f"raise the limit, because each connection takes one: ulimit -n {max(4096, hard)}"
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


# The address that a service would listen on: whether it is free, and who can reach it.


def check_address(settings: Settings) -> Iterator[Finding]:
    """Check the address by taking it for a moment."""
    host, port = settings.host, settings.port
    if unix_path(host) is not None:
        yield _socket_file(host)
        return
    where = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        yield Finding(
            "address", "broken", f"{where} cannot be listened on: {error.strerror}",
            "stop the process that has it, or take another: --port 0 takes a free one",
        )  # fmt: skip
        return
    reach = "this machine alone" if is_local(host) else "everybody who can reach this machine"
    yield Finding("address", "fine", f"{where} is free, for {reach}")


def _socket_file(host: str) -> Finding:
    try:
        bind(host, 0).close()
    except PortInUse as error:
        what, _, remedy = str(error).rpartition(": ")
        return Finding("address", "broken", what, remedy)
    return Finding("address", "fine", f"{host} is free, for this machine alone")


# The layers of the sandbox in which checkpoints are read.


def check_sandbox(layers: SandboxLayers | str) -> Iterator[Finding]:
    """Check which sandbox layers work here. A string says why they could not be tried."""
    if isinstance(layers, str):
        yield Finding("sandbox", "broken", f"entering it {layers}", "report this, with the output of flambeau doctor")
        return
    parts = {"limits": layers.limits, "seccomp": layers.system_calls, "Landlock": layers.files}
    standing = ", ".join(name for name, stands in parts.items() if stands)
    if all(parts.values()):
        yield Finding("sandbox", "fine", f"checkpoints are read behind {standing}")
        return
    missing = ", ".join(name for name, stands in parts.items() if not stands)
    advice = "read checkpoints of strangers elsewhere"
    if sys.platform == "linux":
        advice = "Landlock needs Linux 5.13 and seccomp x86-64 or aarch64; a container's own filter may forbid both"
    found = f"without {missing}" + (f"; there is {standing}" if standing else "")
    yield Finding("sandbox", "warning", found, advice)


# Accelerators, as torch sees them and as the system does.


def check_devices(seen: TorchDevices | str | None) -> Iterator[Finding]:
    """Check the accelerators. A string in `seen` says why torch could not be asked; `None` means there is no torch."""
    graphics = Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists()
    if isinstance(seen, str):
        advice = f"run python -c 'import torch' to see why, and install it again: {pip_install('torch')}"
        yield Finding("torch", "broken", f"importing it {seen}", advice)
        return
    if seen is not None and (seen.gpus or seen.mps):
        names = ", ".join(seen.gpus) or "an Apple GPU"
        yield Finding("devices", "fine", f"{names}, by torch {seen.version}; ONNX Runtime computes on the processor")
    elif graphics and seen is not None and seen.made_for is None:
        advice = "to use it, install a torch made for CUDA: https://pytorch.org/get-started/locally"
        yield Finding("devices", "warning", f"an NVIDIA GPU, and torch {seen.version} made for the processor", advice)
    elif graphics and seen is not None:
        advice = "see nvidia-smi: the driver may be too old for it, or the container was started without --gpus all"
        yield Finding("devices", "warning", f"an NVIDIA GPU that torch {seen.version} cannot use", advice)
    else:
        yield Finding("devices", "fine", "the processor")
