"""What can compute besides the processor: as torch sees it, and as the system does."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from flambeau.doctor.child import ProbeProcess
from flambeau.doctor.diagnosis import Finding
from flambeau.doctor.packages import version
from flambeau.system.machine import pip_install

_SECONDS = 60.0


class TorchDevices(msgspec.Struct, frozen=True):
    """What torch sees: `made_for` is the version of CUDA or ROCm, and `None` where it was made for none."""

    version: str
    made_for: str | None
    gpus: list[str]
    mps: bool


def ask() -> ProbeProcess[TorchDevices] | None:
    """Start to import torch in a process of its own; `None` where there is none."""
    return ProbeProcess("flambeau.doctor.torch_child", TorchDevices, seconds=_SECONDS) if version("torch") else None


def look(seen: TorchDevices | str | None) -> Iterator[Finding]:
    """What was seen; a text says why nothing was, and `None` that there is no torch."""
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
