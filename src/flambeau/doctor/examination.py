"""The whole examination, room by room. What takes long runs in processes beside the rest."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from flambeau import sources
from flambeau.config import Settings
from flambeau.doctor import devices, machine, packages, port, source, walls
from flambeau.doctor.finding import Finding
from flambeau.errors import ConfigError
from flambeau.orders import SourceOptions


def _cache() -> Path | None:
    """The folder of built bundles, if there can be one."""
    try:
        return sources.cache_folder()
    except ConfigError:
        return None


def examine(options: SourceOptions, settings: Settings) -> Iterator[tuple[str, list[Finding]]]:
    """The findings by room, in the order they are shown; each room when it is done."""
    with contextlib.ExitStack() as stack:
        locked_in = stack.enter_context(walls.ask())
        torch = devices.ask()
        if torch is not None:
            stack.enter_context(torch)
        yield "machine", [*machine.look(_cache()), *port.look(settings)]
        yield "packages", [*packages.look()]
        yield "sandbox", [*walls.look(locked_in.answer())]
        yield "devices", [*devices.look(torch.answer() if torch else None)]
        yield "source", [*source.look(options, settings)]
