"""What a handler's worker runs: a function from calls to answers, in a folder of its own."""

import atexit
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from flambeau.bundle.storage import HANDLER_FILES, Bundle
from flambeau.items import HandlerCall
from flambeau.system import staging
from flambeau.tasks.handler import Handled

TS_PATH = Path(__file__).parent / "ts_path"

_NAME = "flambeau-handler"
_LARGEST_COPY = 8 * 2**20

JSON, TEXT, BYTES = "application/json", "text/plain; charset=utf-8", "application/octet-stream"


class HandlerFunction(Protocol):
    """Answers calls together: one answer for each, in order. What it raises is the failure of them all."""

    def __call__(self, calls: Sequence[HandlerCall]) -> list[Handled]: ...


def working_folder(opened: Bundle) -> Path:
    """A new folder with the archive's files in it: the current one, and the first that imports look in.

    Only what the manifest lists is there, verified before any of it runs. Large files are links, others copies: a
    handler may write there, and what it writes is gone with its worker. The bundle stays as it is. What a killed worker
    left behind is deleted first. Raises `BundleError`.
    """
    sweep()
    made = contextlib.ExitStack()
    # locked, for as long as this process lives
    folder = made.enter_context(staging.filling(Path(tempfile.gettempdir(), _NAME)))
    atexit.register(made.close)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in opened.manifest.members:
        source = opened.member(name).resolve()
        if not name.startswith(f"{HANDLER_FILES}/"):
            continue
        place = folder / Path(name).relative_to(HANDLER_FILES)
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_size > _LARGEST_COPY:
            place.symlink_to(source)
        else:
            shutil.copyfile(source, place)
    os.chdir(folder)
    return folder


def sweep() -> None:
    """Delete the working folders of workers that are gone: most are killed, and do it not themselves."""
    staging.clear(Path(tempfile.gettempdir()), _NAME)


def admit_first(folder: Path) -> None:
    """Let imports look in a folder before any other."""
    text = str(folder)
    while text in sys.path:
        sys.path.remove(text)
    sys.path.insert(0, text)


def gpu_id() -> int | None:
    """The number of the accelerator that a handler is to use; `None` without one, or without torch.

    Without a device torch is not imported: a handler may do without it.
    """
    if not Path("/dev/nvidiactl").exists():
        return None
    try:
        import torch
    except ImportError:
        return None
    return 0 if torch.cuda.is_available() else None
