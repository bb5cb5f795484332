"""What machine this is, for choices that were measured on it and hold for no other."""

import functools
import os
import platform
import sys
from pathlib import Path

from flambeau.config import MIB


@functools.cache
def processor() -> str:
    """The processor's name with what it can compute: two machines that differ in either are held for different ones.

    A name alone does not tell: in a virtual machine it may be "AMD EPYC" whatever the generation.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    found = dict(line.partition(":")[::2] for line in reversed(lines))  # the first core's lines win
    known = {name.strip(): value.strip() for name, value in found.items()}
    units = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "asimd", "sve", "i8mm", "bf16"}
    flags = units & set(known.get("flags", known.get("Features", "")).split())
    return " ".join([known.get("model name", platform.machine()), *sorted(flags)])


def saturates() -> bool:
    """Whether products of bytes are added in 16 bits here: on x86 processors that lack VNNI."""
    return platform.machine() in ("x86_64", "AMD64") and "vnni" not in processor()


def resident_mb() -> float:
    """The memory of this process that is in RAM now, in MiB; where the system does not say, the most it ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource  # not on Windows

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / MIB if sys.platform == "darwin" else most / 1024
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB
