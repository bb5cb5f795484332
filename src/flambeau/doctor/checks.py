"""The whole examination, room by room. What takes long runs in processes beside the rest."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from flambeau.doctor import devices, machine, model, packages, port, sandbox_layers
from flambeau.doctor.diagnosis import Finding
from flambeau.errors import ConfigError
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache


def _cache() -> Path | None:
    """The folder of built bundles, if there can be one."""
    try:
        return build_cache.cache_folder()
    except ConfigError:
        return None


def examine(options: SourceOptions, settings: Settings) -> Iterator[tuple[str, list[Finding]]]:
    """The findings by room, in the order they are shown; each room when it is done."""
    with contextlib.ExitStack() as stack:
        locked_in = stack.enter_context(sandbox_layers.ask())
        torch = devices.ask()
        if torch is not None:
            stack.enter_context(torch)
        yield "machine", [*machine.look(_cache()), *port.look(settings)]
        yield "packages", [*packages.look()]
        yield "sandbox", [*sandbox_layers.look(locked_in.answer())]
        yield "devices", [*devices.look(torch.answer() if torch else None)]
        yield "source", [*model.look(options, settings)]
