"""Lock this process in as the reader of checkpoints is, and print which walls stand. Nobody imports this module.

`python -m flambeau.doctor.sandbox_child`
"""

import os

import msgspec

from flambeau.builder.sandbox import lockdown
from flambeau.builder.sandbox.lockdown import Limits
from flambeau.doctor.sandbox_layers import Walls
from flambeau.system.machine import MIB


def main() -> None:
    """Print `Walls`: what the sandbox says, held against an attempt to open a file."""
    stands = lockdown.enter(Limits(memory=256 * MIB, file_bytes=MIB, cpu_seconds=10))
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
        files = False
    except OSError:
        files = stands.files
    walls = Walls(limits=stands.limits, system_calls=stands.system_calls, files=files)
    os.write(1, msgspec.json.encode(walls))


if __name__ == "__main__":
    main()
