"""Load a bundle and warm it up as a worker does, and print what came of it: its probes and golden samples too.

`python -m flambeau.doctor.load_child REHEARSAL`. Nobody imports this module.
"""

import contextlib
import sys
import time
from pathlib import Path

import msgspec

from flambeau.bundle import storage
from flambeau.doctor.model import Rehearsal, Rehearsed
from flambeau.errors import SetupError
from flambeau.serving.service import BlockingService, Service
from flambeau.settings.service import Settings
from flambeau.system.machine import resident_mb


def main() -> None:
    """Print a `Rehearsed`."""
    order = msgspec.json.decode(sys.argv[1], type=Rehearsal)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the answer alone
        told = rehearse(order)
    print(msgspec.json.encode(told).decode())


def rehearse(order: Rehearsal) -> Rehearsed:
    """Load it in a thread of this process, which is thrown away after it."""
    settings = Settings(
        runner="threads", replicas=1, engine=order.engine, device=order.device,  # type: ignore[arg-type]
        threshold=order.threshold, allow_code=order.allow_code,
    )  # fmt: skip
    before, began = resident_mb(), time.monotonic()
    try:
        opened = storage.read(Path(order.folder))
        service = BlockingService(lambda: Service([opened], settings))
    except SetupError as error:
        return Rehearsed(error=str(error))
    [model] = service.service.models()
    told = Rehearsed(
        engine=model.engine,
        device=model.device,
        seconds=time.monotonic() - began,
        memory_mb=max(0.0, resident_mb() - before),
    )
    service.close()
    return told


if __name__ == "__main__":
    main()
