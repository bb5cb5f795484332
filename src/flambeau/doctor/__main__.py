"""A probe of the doctor, run as a process: `python -m flambeau.doctor sandbox`, `torch` or `load REQUEST`.

It prints one JSON object. Each probe imports only what it tries itself. No module imports this one.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from flambeau.doctor.probes import LoadRequest, LoadResult, SandboxLayers, TorchDevices
from flambeau.system.machine import MIB, resident_mb


def _sandbox() -> SandboxLayers:
    """The layers that the sandbox reports; that of files is checked by an attempt to open one."""
    from flambeau.builder.sandbox import lockdown

    stands = lockdown.enter(lockdown.Limits(memory=256 * MIB, file_bytes=MIB, cpu_seconds=10))
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
        files = False
    except OSError:
        files = stands.files
    return SandboxLayers(limits=stands.limits, system_calls=stands.system_calls, files=files)


def _torch() -> TorchDevices:
    import torch

    cuda = torch.cuda.is_available()
    seen = TorchDevices(
        version=str(torch.__version__),
        made_for=torch.version.cuda or torch.version.hip,
        gpus=[torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())] if cuda else [],
        mps=torch.backends.mps.is_available(),
    )
    if cuda:  # a visible GPU may still not compute: the driver may be too old
        torch.ones(8, device="cuda").sum().item()
    return seen


def _load(text: str) -> LoadResult:
    """Load a bundle in a thread of this process, which ends afterwards. Its probes and golden samples run too."""
    from flambeau.bundle import storage
    from flambeau.errors import SetupError
    from flambeau.serving.service import BlockingService, Service
    from flambeau.settings.service import Settings

    request = msgspec.json.decode(text, type=LoadRequest)
    settings = Settings(
        runner="threads", replicas=1, engine=request.engine, device=request.device,  # type: ignore[arg-type]
        threshold=request.threshold, allow_code=request.allow_code,
    )  # fmt: skip
    before, began = resident_mb(), time.monotonic()
    try:
        opened = storage.read(Path(request.folder))
        service = BlockingService(lambda: Service([opened], settings))
    except SetupError as error:
        return LoadResult(error=str(error))
    [model] = service.service.models()
    result = LoadResult(
        engine=model.engine,
        device=model.device,
        seconds=time.monotonic() - began,
        memory_mb=max(0.0, resident_mb() - before),
    )
    service.close()
    return result


_PROBES: dict[str, Callable[..., msgspec.Struct]] = {"sandbox": _sandbox, "torch": _torch, "load": _load}


def main() -> None:
    """Run the probe that argv names, and print its result."""
    name, *arguments = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the result alone
        result = _PROBES[name](*arguments)
    os.write(1, msgspec.json.encode(result))


if __name__ == "__main__":
    main()
