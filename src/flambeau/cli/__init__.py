"""The command line: the only place that reads argv, and settings from the environment.

Four other things are read from the environment where they are used: tokens (`http.access`), the cache folder
(`sources`), OpenTelemetry's own variables (`tracing`), and the compiler's (`engines.pytorch`). SOURCE_DATE_EPOCH is no
setting either: `flambeau package` reads it.
"""

import importlib
import logging
import os
import signal
import sys

import click

from flambeau.errors import SetupError
from flambeau.system.process import NO_TELEMETRY, open_standard_streams
from flambeau.telemetry import logs, stderr_capture
from flambeau.version import VERSION

_COMMANDS = {
    "serve": "serve", "build": "source", "inspect": "source", "package": "package", "predict": "predict",
    "bench": "bench", "deploy": "deploy", "fetch": "deploy", "models": "models", "config": "config", "doctor": "doctor",
    "health": "health", "token": "config", "torchserve": "torchserve",
    "convert": "convert",
}  # fmt: skip
"""The module of each command; its function has the command's name."""

_METRICS_IN_FILES = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")
"""Variables that make the Prometheus library share its counts in files. Nobody reads them here, and a full volume would
end the service."""


class _Commands(click.Group):
    """A group that imports a command only when it is called: a server does not wait for code that it never runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"flambeau.cli.{_COMMANDS[cmd_name]}"), cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
def cli() -> None:
    """Give it a trained PyTorch model, get a service that people can use.

    \b
      flambeau serve                                          the embedded ImageNet classifier
      flambeau serve my.pth --labels names.txt                a file: its network is found
      flambeau serve double.py:Double --allow-code            a model in your own Python
      flambeau inspect my.pth                                 what it is, whether it is safe, how it is served
      flambeau build my.pth -o bundle                         once, then: flambeau serve bundle
      flambeau package my.pth -o image --build                a container image of it, without PyTorch
      flambeau predict default photos/ -o answers.csv         many files at once, without a server
      flambeau bench default                                  the engines of this machine, side by side
      flambeau deploy kubernetes my.pth --tokens-secret t     manifests that run its image; or deploy compose
      flambeau models load cats 2                             of a running service: load, switch, unload versions
      flambeau config                                         what is set, and where it was set
      flambeau doctor                                         what is wrong with this machine, and how to fix it
      flambeau health                                         whether the server here is ready
      flambeau token                                          a fresh token for --tokens-file
      flambeau convert model.mar -o bundle                    an archive of TorchServe, and what became of it
      flambeau torchserve --start --model-store d ...         TorchServe's command line
    """


def main() -> None:
    """Run a command. A problem that the operator must fix is one line on standard error, and an exit code."""
    open_standard_streams()
    stderr_capture.forgive()
    os.environ.update(NO_TELEMETRY)
    for name in _METRICS_IN_FILES:
        os.environ.pop(name, None)
    logs.configure()
    _stop_orderly()
    try:
        code = cli.main(standalone_mode=False)  # the command's exit code, if it sets one
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SetupError as error:
        if logs.in_json():
            logs.event(str(error), level=logging.ERROR, exit=error.exit_code)
        else:
            from flambeau.cli.terminal import printable

            click.echo(f"flambeau: {printable(str(error))}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        raise KeyboardInterrupt from None


def _stop_orderly() -> None:
    """Make SIGTERM, and SIGHUP unless under nohup, end the process with its clean-up done."""
    asked = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asked.append(signal.SIGHUP)
    for each in asked:
        signal.signal(each, lambda number, _: sys.exit(128 + number))
