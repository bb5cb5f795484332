"""`flambeau serve`."""

import time
from typing import Any

import click

from flambeau import logs, sources, stray
from flambeau.cli.options import ShowProgress, settings_options, source_options
from flambeau.service import Service, split_options


@click.command()
@source_options
@settings_options
def serve(**options: Any) -> None:
    """Serve SOURCE by HTTP.

    \b
    SOURCE is one of
      (nothing)             EfficientNet-Lite0 with ImageNet weights
      model.pth             weights (their network is found), ONNX, and others: see `flambeau inspect`
      resnet18              any classification model of torchvision; --weights names its file
      file.py:Class         a flambeau.PythonModel, with --allow-code
      a folder              a bundle that `flambeau build` made
    """
    from flambeau.web.server import bind, run

    source_part, settings = split_options(options)
    stray.begin_log(settings.log_level, settings.log_format)
    taken = bind(settings.host, settings.port)  # before anything is loaded: a taken port is known at once
    progress, started = ShowProgress(), time.monotonic()
    try:
        bundle = sources.open_source(source_part, progress=progress)
    finally:
        progress.done()
    logs.event("bundle opened", name=bundle.manifest.name, seconds=f"{time.monotonic() - started:.2f}")
    host, port = taken.getsockname()[:2]

    def announce(service: Service) -> None:
        models = ", ".join(f"{model.name} on {model.engine}, {model.device}" for model in service.models())
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"Flambeau serves {models}: http://{shown}:{port}")

    run(lambda: Service([bundle], settings), taken, on_ready=announce)
