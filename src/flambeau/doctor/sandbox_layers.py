"""The sandbox that checkpoints are read in: which of its walls this system has."""

import sys
from collections.abc import Iterator

import msgspec

from flambeau.doctor.child import ProbeProcess
from flambeau.doctor.diagnosis import Finding

_SECONDS = 20.0


class Walls(msgspec.Struct, frozen=True):
    """Which walls stand, as `flambeau.builder.sandbox.lockdown` has them."""

    limits: bool
    system_calls: bool
    files: bool


def ask() -> ProbeProcess[Walls]:
    """Start a process that locks itself in."""
    return ProbeProcess("flambeau.doctor.sandbox_child", Walls, seconds=_SECONDS)


def look(walls: Walls | str) -> Iterator[Finding]:
    """What stands; a text says why it could not be tried."""
    if isinstance(walls, str):
        yield Finding("sandbox", "broken", f"entering it {walls}", "report this, with the output of flambeau doctor")
        return
    parts = {"limits": walls.limits, "seccomp": walls.system_calls, "Landlock": walls.files}
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
