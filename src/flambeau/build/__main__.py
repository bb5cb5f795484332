"""The build process: an order as JSON on standard input, events as lines of JSON on standard output.

`python -m flambeau.build FOLDER PARENT` fills the folder with a bundle, and ends when the process PARENT does.
Standard output belongs to the events: whatever else prints, torch or the user's code, is sent to standard error.
"""

import os
import sys
from pathlib import Path

import msgspec

from flambeau.errors import SetupError
from flambeau.process import end_with_parent
from flambeau.sources import BuildOrder, Event, Failure


def main() -> int:
    """Build one bundle. Returns the exit code."""
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def say(event: Event) -> None:
        channel.write(msgspec.json.encode(event) + b"\n")

    end_with_parent(int(sys.argv[2]))
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=BuildOrder)
    try:
        _require_torch()
        from flambeau.build.build import build

        build(order, Path(sys.argv[1]), say=say)
    except SetupError as error:
        say(Failure(type(error).__name__, str(error)))
        return 1
    except MemoryError:
        say(Failure("SourceError", "this machine has too little memory to build the bundle"))
        return 1
    except Exception as error:
        import traceback

        traceback.print_exc()
        say(Failure("SourceError", f"building failed unexpectedly: {type(error).__name__}: {error}"))
        return 1
    return 0


OLDEST_TORCH = (2, 10)
"""CVE-2026-24747: older versions can be made to corrupt memory by a weights file, even with `weights_only=True`."""


def _require_torch() -> None:
    try:
        import torch
    except ImportError as error:
        raise SetupError(f"building needs PyTorch ({error}): pip install 'flambeau[torch]'") from None
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        raise SetupError(
            f"torch {torch.__version__} reads weights files unsafely (CVE-2026-24747): pip install 'torch>=2.10'"
        )


if __name__ == "__main__":
    sys.exit(main())
