"""`flambeau torchserve`: TorchServe's command line, for scripts and images that have it.

It makes a repository of the archives that are to be served, in a folder of its own, and then is `flambeau serve`.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from flambeau.checkpoints import model_archive
from flambeau.checkpoints.repository import NAME
from flambeau.errors import ConfigError, SetupError
from flambeau.handlers.torchserve import ENVELOPE
from flambeau.settings import torchserve as properties
from flambeau.settings.torchserve import StartedModel, TorchServeConfig
from flambeau.sources.request import model_name
from flambeau.system import process
from flambeau.system.machine import pip_install
from flambeau.telemetry import logs
from flambeau.version import VERSION

_ADDRESSES = {"host": "127.0.0.1", "port": 8080, "management_address": "127.0.0.1:8081",
              "metrics_address": "127.0.0.1:8082"}  # fmt: skip
_STOP_SECONDS = 60.0
_LONGEST_NOTE = 128
_IDLE = ("log_config", "workflow_store", "plugins_path", "cpp_log_config")
"""Arguments that are taken and have no effect."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def torchserve(arguments: tuple[str, ...]) -> None:
    """TorchServe's command line: --start, --stop, --model-store, --models, --ts-config, --foreground."""
    asked, unknown = _parser().parse_known_args(arguments)
    if asked.version:
        click.echo(f"Flambeau {VERSION}, in the place of TorchServe")
    elif asked.stop:
        _stop()
    elif asked.foreground or asked.inner:
        _serve(asked, unknown)
    else:
        _start(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("flambeau torchserve", description="TorchServe's command line.")
    parser.add_argument("-v", "--version", action="store_true", help="Say what this is.")
    parser.add_argument("--start", action="store_true", help="Start a server: in the background, without --foreground.")
    parser.add_argument("--stop", action="store_true", help="Stop the server that --start has started.")
    parser.add_argument("--foreground", action="store_true", help="Stay in the foreground.")
    parser.add_argument("--model-store", metavar="DIR", help="Folder of archives.")
    parser.add_argument("--models", nargs="*", default=[], metavar="M", help="all, FILE.mar or NAME=FILE.mar.")
    parser.add_argument("--ts-config", metavar="FILE", help="config.properties.")
    parser.add_argument("--ncs", "--no-config-snapshots", action="store_true", help="None are written in any case.")
    parser.add_argument("--disable-token-auth", nargs="?", const="true", help="Serve everybody who can reach it.")
    parser.add_argument("--tokens-file", metavar="FILE", help="Serve who has a token in it (Flambeau's own).")
    parser.add_argument("--enable-model-api", nargs="?", const="true", help="The model API is always there.")
    parser.add_argument("--allow-code", action="store_true", help="Run the handlers of the archives (Flambeau's own).")
    parser.add_argument("--allow-installs", action="store_true", help="Install their packages (Flambeau's own).")
    for name in _IDLE:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="X", help="Taken, and passed over.")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    return parser


def _serve(asked: argparse.Namespace, unknown: list[str]) -> None:
    from flambeau.cli.serve import serve

    config = _config(asked)
    for name in [*unknown, *(f"--{each.replace('_', '-')}" for each in _IDLE if getattr(asked, each))]:
        logs.event("argument passed over", argument=name)
    for key, why in config.passed_over.items():
        logs.event("config.properties: passed over", key=key, why=why)
    settings: dict[str, Any] = {**_ADDRESSES, "platform": "none", **config.settings}
    store = asked.model_store or settings.get("model_store") or os.environ.get("TS_MODEL_STORE")
    if not store:
        raise ConfigError("Missing mandatory parameter --model-store: name the folder of archives")
    if not Path(store).is_dir():
        raise ConfigError(f"--model-store {store} is not a folder: name the folder of archives")
    settings["model_store"] = str(Path(store).resolve())
    if _same_address(settings, "management_address"):
        del settings["management_address"]
    if _same_address(settings, "metrics_address"):
        del settings["metrics_address"]
        settings["metrics_public"] = True
    if settings["grpc_port"] and (missing := _missing_for_grpc()):
        logs.event("gRPC is off", missing=missing, remedy=pip_install("grpc"))
        settings["grpc_port"] = 0
    if not settings["grpc_port"]:
        settings.pop("grpc_management_address", None)
    models = _models(asked, config, Path(store))
    argv = [text for name, value in settings.items() for text in _flag(name, value)]
    if config.open_to_all or asked.disable_token_auth == "true":  # noqa: S105
        argv.append("--insecure-no-auth")
    if asked.tokens_file:
        argv += ["--tokens-file", asked.tokens_file]
    if asked.allow_code or os.environ.get("FLAMBEAU_ALLOW_CODE", "").lower() in ("1", "true", "yes", "on"):
        argv.append("--allow-code")
    if asked.allow_installs:
        argv.append("--allow-installs")
    os.environ.pop(ENVELOPE, None)  # it counts if the file says so
    if config.envelope:
        os.environ[ENVELOPE] = config.envelope  # workers have the variables of this process
    with tempfile.TemporaryDirectory(prefix="flambeau-torchserve-") as folder:
        if models:
            _write_repository(Path(folder), models)
            argv.append(folder)
        serve.main(argv, prog_name="flambeau torchserve", standalone_mode=False)


def _config(asked: argparse.Namespace) -> TorchServeConfig:
    """The file that is to be read, or the one in the current folder; without one what an empty file says."""
    named = os.environ.get("TS_CONFIG_FILE") or asked.ts_config
    file = Path(named or "config.properties")
    if not file.is_file():
        if named:
            raise ConfigError(f"--ts-config file not found: {file}")
        return properties.read("", os.environ)
    try:
        return properties.read(file.read_text(encoding="utf-8"), os.environ)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None


def _missing_for_grpc() -> str | None:
    """A package that gRPC needs and that is not installed; `None` if it can be had."""
    return next((each for each in ("grpc", "grpc_reflection") if importlib.util.find_spec(each) is None), None)


def _same_address(settings: dict[str, Any], name: str) -> bool:
    host = settings["host"]
    return settings.get(name) == f"{f'[{host}]' if ':' in host else host}:{settings['port']}"


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


def _models(asked: argparse.Namespace, config: TorchServeConfig, store: Path) -> list[StartedModel]:
    """The models to serve at the start, each with the path of its archive."""
    listed = list(config.models)
    if asked.models or not listed:
        listed = []
        for text in asked.models or config.load:
            if text.lower() == "all":
                listed += [StartedModel("", each.name) for each in sorted(store.iterdir()) if _is_archive(each)]
            else:
                name, equals, archive = text.partition("=")
                listed.append(StartedModel(name if equals else "", archive if equals else name))
    return [_placed(each, store) for each in listed]


def _is_archive(path: Path) -> bool:
    return path.suffix == ".mar" or path.name.endswith((".tar.gz", ".tgz")) or (path / model_archive.MANIFEST).is_file()


def _placed(model: StartedModel, store: Path) -> StartedModel:
    path = store / model.archive  # an absolute path stays what it is
    if not path.exists():
        raise ConfigError(f"Model not found at: {model.archive} (in the model store {store})")
    name, version = model.name, model.version
    with contextlib.suppress(SetupError):  # which is told when it is opened
        if (found := model_archive.read(path)) is not None:
            name, version = name or found.name, version or found.version
    name = name or model_name(path.name.partition(".")[0])
    version = version if NAME.fullmatch(version) else "1.0"
    return StartedModel(model_name(name), str(path.resolve()), version, model.default, model.settings)


def _write_repository(folder: Path, models: list[StartedModel]) -> None:
    """A folder for each version, in which a file names the archive and what is set for it."""
    defaults = {each.name: each.version for each in models}
    defaults |= {each.name: each.version for each in models if each.default}
    for each in models:
        place = folder / each.name / each.version
        try:
            place.mkdir(parents=True)
        except FileExistsError:
            raise ConfigError(f"Model version {each.version} is already registered for model {each.name}") from None
        lines = [f"{name} = {json.dumps(value)}" for name, value in {"source": each.archive, **each.settings}.items()]
        (place / "model.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, version in defaults.items():
        (folder / name / "model.toml").write_text(f"default_version = {json.dumps(version)}\n", encoding="utf-8")


# In the background: one server of each user, found again by a file with its process id, and with what tells that
# process from a later one of the same id.


def _pid_file() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir(), f".flambeau-torchserve-{os.getuid()}.pid")


def _running() -> int | None:
    """The process of the server that was started in the background; `None` if there is none."""
    try:
        held = os.open(_pid_file(), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(held) as file:
        if os.fstat(file.fileno()).st_uid != os.getuid():
            return None
        pid, _, which = file.read(_LONGEST_NOTE).strip().partition(" ")
    return int(pid) if pid.isdigit() and which and process.identity(int(pid)) == which else None


def _start(arguments: tuple[str, ...]) -> None:
    if _running() is not None:
        click.echo("TorchServe has already started.")
        return
    started = subprocess.Popen(
        [sys.executable, "-m", "flambeau", "torchserve", *arguments, "--inner"],
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    with contextlib.suppress(FileNotFoundError):
        _pid_file().unlink()
    held = os.open(_pid_file(), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(held, "w") as file:
        file.write(f"{started.pid} {process.identity(started.pid)}")


def _stop() -> None:
    pid = _running()
    if pid is None:
        click.echo("TorchServe is not currently running.")
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        while _running() == pid and time.monotonic() < deadline:
            time.sleep(0.05)  # it is not our child: nothing tells when it ends
    with contextlib.suppress(FileNotFoundError):
        _pid_file().unlink()
    click.echo("TorchServe has stopped.")
