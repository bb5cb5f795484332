"""`flambeau serve`."""

import logging
import os
import sys
import threading
import time
from dataclasses import replace
from typing import Any

import click

from flambeau.bundle.storage import Bundle
from flambeau.cli.options import (
    HELP,
    SettingsCommand,
    config_option,
    file_of,
    more_sources,
    place_of,
    profile_of,
    settings_options,
    source_options,
)
from flambeau.cli.platform_start import BuildWindow, begin, model_of
from flambeau.cli.terminal import ShowProgress
from flambeau.serving.opening import open_models
from flambeau.serving.service import Service, split_options
from flambeau.settings import table
from flambeau.settings.hosts import host_and_port
from flambeau.settings.table import SECRET_VARIABLES
from flambeau.telemetry import logs, stderr_capture

_EXAMPLES = """
\b
Examples:
  flambeau serve                                        the built-in classifier, on http://127.0.0.1:5000
  flambeau serve my.pth --labels names.txt --threshold 0.5
  flambeau serve net.pth --arch net.py:Net --allow-code
  flambeau serve cats=cats.pth dogs=dogs-bundle/        several models: POST /predict/cats, /predict/dogs
  flambeau config --toml > flambeau.toml                a file to start from; then: flambeau serve
"""


@click.command(cls=SettingsCommand, context_settings=HELP, epilog=_EXAMPLES)
@config_option
@source_options
@more_sources
@settings_options
@click.pass_context
def serve(ctx: click.Context, /, more: tuple[str, ...], **options: Any) -> None:
    """Serve SOURCE over HTTP, or several models: NAME=SOURCE NAME=SOURCE.

    \b
    SOURCE is one of
      (nothing)             EfficientNet-Lite0 with ImageNet weights
      model.pth             weights (their network is found), ONNX, and others: see `flambeau inspect`
      resnet18              any classification model of torchvision; --weights names its file
      file.py:Class         a flambeau.PythonModel, with --allow-code
      a folder              a bundle that `flambeau build` made, or a repository: models in folders or files

    Every option can also be set in the environment (FLAMBEAU_MAX_ITEMS=16) or in a file flambeau.toml
    (max_items = 16): `flambeau config` shows what is in force.
    """
    from flambeau.fronts import sharing
    from flambeau.http import grpc_front, systemd
    from flambeau.http.access import open_access
    from flambeau.http.listening import Address, bind, lent, refuse_one_port, server_context

    source_part, settings = split_options(options)
    output = stderr_capture.begin_log(settings.log_level, settings.log_format)
    profile = profile_of(ctx)
    if profile is not None:
        begin(profile, settings)
    supervisor, given = systemd.Supervisor(os.environ), systemd.socket_from(os.environ)
    if given is not None:  # before access control, which judges by the address
        host, port = systemd.host_and_port(given)
        settings = replace(settings, host=host, port=port)
        logs.event("listening on the socket of systemd", host=host, port=port)
    access, encryption = open_access(settings, ours=True), server_context(settings)
    for variable in systemd.VARIABLES:  # of this process, and not of its workers
        os.environ.pop(variable, None)
    for variable in SECRET_VARIABLES:  # nobody else may read them, models least of all
        os.environ.pop(variable, None)
    if file := file_of(ctx):
        logs.event("settings read", file=file)
    sharing.refuse(settings)
    # before anything is loaded: a taken port is reported at once
    address = bind(settings.host, settings.port) if given is None else lent(given)
    grpc_addresses: list[Address] = []
    further: list[Address] = []
    try:
        grpc_addresses = grpc_front.reserve(settings)
        for name in ("management_address", "metrics_address"):
            text = getattr(settings, name)
            if text is not None and host_and_port(name, text) != (settings.host, settings.port):
                further.append(bind(*host_and_port(name, text), setting=f"--{name.replace('_', '-')}"))
        refuse_one_port([address, *further])
        progress, started = ShowProgress() if profile is None else BuildWindow(profile), time.monotonic()
        if profile is not None:
            source_part = model_of(source_part, profile, given=place_of(ctx, table.rows()["source"]))
        try:
            models = open_models(source_part, settings, progress=progress, more=more)
        finally:
            progress.done()
        names = (each.manifest.name if isinstance(each, Bundle) else each.declared.name for each in models)
        logs.event("models opened", names=",".join(names), seconds=f"{time.monotonic() - started:.2f}")
        where = address.url("http" if encryption is None else "https")

        def announce(lines: list[str]) -> None:
            _announce(lines, where, output=output)

        settings = sharing.settled(settings, models)
        if settings.fronts != 1:
            from flambeau.fronts import supervisor as several

            several.supervise(
                lambda: open_models(source_part, settings, progress=lambda _: None, more=more),
                models, settings, address, access.held.given, where=where, announce=announce, told=supervisor,
            )  # fmt: skip
            return
        from flambeau.http.announcement import lines_about
        from flambeau.http.server import run

        grpc = ", ".join(each.name() for each in grpc_addresses) or None
        run(
            lambda: Service(models, settings), address, access, encryption=encryption, grpc_addresses=grpc_addresses,
            more=further, supervisor=supervisor,
            on_ready=lambda service: announce(
                lines_about(service, where, grpc=grpc, more=[each.name() for each in further])
            ),
        )  # fmt: skip
    finally:
        for each in filter(None, (address, *grpc_addresses, *further)):
            each.close()


def _announce(lines: list[str], url: str, *, output: int) -> None:
    """Print lines to a descriptor without waiting: nobody may be reading it, or its terminal may be stopped."""

    def write() -> None:
        data = "".join(f"{line}\n" for line in lines).encode(sys.stdout.encoding if sys.stdout else "utf-8", "replace")
        try:
            while data:
                data = data[os.write(output, data) :]
        except OSError as error:
            why = error.strerror or error
            logs.event("standard output does not take the address", level=logging.WARNING, url=url, error=why)

    threading.Thread(target=write, name="announcement", daemon=True).start()
