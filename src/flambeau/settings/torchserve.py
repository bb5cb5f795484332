"""TorchServe's `config.properties`: what in it is a setting of ours, and what is passed over, with the reason.

Real files carry keys that are stale or misspelt. None of them is refused. This module reads text; it opens nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from flambeau.errors import ConfigError

_VARIABLE = re.compile(r"\$\$(\w+)\$\$")
_ADDRESS = re.compile(r"(?:(https?)://)?(\[[0-9a-fA-F:]+\]|[^:/\[\]]+)?(?::(\d+))?/?")
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}

_PASSED_OVER = {
    "grpc_ssl": "gRPC has the certificate of the inference address",
    "grpc": "connections of gRPC have limits of their own",
    "number_of_netty_threads": "the front needs no threads",
    "netty_client_threads": "the front needs no threads",
    "install_py_dep_per_model": "--allow-installs permits it",
    "allowed_urls": "nothing is fetched",
    "workflow": "there are no workflows",
    "metrics_mode": "metrics are always there to be collected",
    "max_response_size": "answers are limited by the size of a frame between processes",
    "default_service_handler": "the archive's own handler is used",
    "keystore": "give private_key_file and certificate_file, in PEM",
    "unregister_model_timeout": "a model is unregistered when its last request is answered",
    "enable_model_api": "the model API needs a token, or an address of this machine",
}
"""Why a key has no effect, by the start of its name; of any other only that it has none."""

_NUMBERS = {
    "default_response_timeout": "compute_timeout",
    "default_startup_timeout": "startup_timeout",
    "job_queue_size": "max_queue_size",
    "max_request_size": "max_body_bytes",
    "default_workers_per_model": "replicas",
}


@dataclass(frozen=True, slots=True)
class StartedModel:
    """A model to be served at the start: its archive, and what is set for it alone; by name and version."""

    name: str
    archive: str
    version: str = ""
    default: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TorchServeConfig:
    """What a file says. `settings` are ours by name; `passed_over` says why of each key that has no effect.

    `load` is the list of `load_models`; `models` those with settings of their own, which take its place.
    `envelope`: that of all handlers whose archives name none; empty without one.
    """

    settings: dict[str, Any]
    load: tuple[str, ...]
    models: tuple[StartedModel, ...]
    passed_over: dict[str, str]
    open_to_all: bool
    envelope: str = ""


def parse_properties(text: str) -> dict[str, str]:
    """The keys and values of a Java properties file."""
    found: dict[str, str] = {}
    lines = iter(text.splitlines())
    for raw in lines:
        line = raw.lstrip(" \t\f")
        if not line or line[0] in "#!":
            continue
        while len(line) - len(line.rstrip("\\")) & 1:
            line = line[:-1] + next(lines, "").lstrip(" \t\f")
        key, value = _split(line)
        found[_unescaped(key)] = _unescaped(value)
    return found


def _split(line: str) -> tuple[str, str]:
    match = re.match(r"((?:\\.|[^\\=:\s])*)\s*(?:[=:]\s*)?(.*)", line, re.DOTALL)
    assert match is not None  # every part may be empty
    return match[1], match[2].rstrip()


def _unescaped(text: str) -> str:
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), text)


def read(text: str, environment: Mapping[str, str]) -> TorchServeConfig:
    """What a file says, with the variables `TS_*` if it enables them. Raises `ConfigError` for a bad address."""
    keys = {
        key: _VARIABLE.sub(lambda found: environment.get(found[1], ""), value)
        for key, value in parse_properties(text).items()
    }
    if keys.pop("enable_envvars_config", "").lower() == "true":
        for name, value in environment.items():
            if name.startswith("TS_") and name != "TS_CONFIG_FILE":
                keys[name.removeprefix("TS_").lower()] = value
    settings: dict[str, Any] = {}
    passed_over: dict[str, str] = {}
    load: tuple[str, ...] = ()
    models: tuple[StartedModel, ...] = ()
    encrypted = keys.get("inference_address", "").startswith("https:")
    open_to_all = keys.pop("disable_token_authorization", "").lower() == "true"
    envelope = keys.pop("service_envelope", "")
    no_metrics = keys.pop("enable_metrics_api", "").lower() == "false"
    grpc = {key: keys.pop(key) for key in list(keys) if key in _GRPC}
    for key, value in keys.items():
        try:
            if key in ("inference_address", "management_address", "metrics_address"):
                settings |= _address(key, value)
            elif key == "load_models":
                load = tuple(each.strip() for each in value.split(",") if each.strip() and each.strip() != "none")
            elif key in ("models", "model_snapshot"):
                models += _models(key, value)
            elif key == "model_store":
                settings["model_store"] = value
            elif key in _NUMBERS:
                settings[_NUMBERS[key]] = _whole(value)
            elif key == "private_key_file" and encrypted:
                settings["tls_key"] = value
            elif key == "certificate_file" and encrypted:
                settings["tls_certificate"] = value
            elif key == "cors_allowed_origin" and value not in ("", "*"):
                settings["cors_origins"] = value
            else:
                passed_over[key] = next(
                    (why for start, why in _PASSED_OVER.items() if key.startswith((start, f"enable_{start}"))),
                    "it has no effect here",
                )
        except ValueError as error:
            passed_over[key] = str(error)
    if no_metrics:
        settings.pop("metrics_address", None)
    try:
        settings |= _grpc(grpc, str(settings.get("host", "127.0.0.1")))
    except ValueError as error:
        settings["grpc_port"] = 0
        passed_over |= dict.fromkeys(grpc or ("grpc_inference_address",), str(error))
    return TorchServeConfig(settings, load, models, passed_over, open_to_all, envelope)


def _address(key: str, value: str) -> dict[str, Any]:
    usual = {"inference_address": 8080, "management_address": 8081, "metrics_address": 8082}[key]
    if value.startswith("unix:"):
        if key == "inference_address":
            return {"host": "unix:" + value.removeprefix("unix:").removeprefix("//"), "port": usual}
        raise ValueError("only the inference address may be a Unix socket: everything is answered there")
    found = _ADDRESS.fullmatch(value.strip())
    if found is None:
        raise ConfigError(f"{key}={value} is not an address: write it as in http://127.0.0.1:{usual}")
    scheme, host, port = found[1], (found[2] or "127.0.0.1").strip("[]"), found[3]
    number = int(port) if port else {"inference_address": 443 if scheme == "https" else 80}.get(key, usual)
    if key == "inference_address":
        return {"host": host, "port": number}
    shown = f"[{host}]" if ":" in host else host
    return {key: f"{shown}:{number}"}


_GRPC = {
    "grpc_inference_address": "127.0.0.1", "grpc_inference_port": "7070",
    "grpc_management_address": "127.0.0.1", "grpc_management_port": "7071",
}  # fmt: skip
"""The keys about gRPC's addresses, and what they are where a file says nothing."""

_HERE = {"127.0.0.1", "localhost"}


def _grpc(given: Mapping[str, str], host: str) -> dict[str, Any]:
    """The settings for gRPC; `host` is that of the inference address. Raises `ValueError` for none that we can have."""
    address, port, managed, managed_port = (value.strip() for value in (_GRPC | dict(given)).values())
    if address != host and not {address, host} <= _HERE:
        raise ValueError(f"gRPC would listen on {address} and predictions on {host}: give both one host for gRPC")
    shown = f"[{managed}]" if ":" in managed else managed
    return {"grpc_port": _whole(port), "grpc_management_address": f"{shown}:{_whole(managed_port)}"}


def _whole(value: str) -> int:
    if not (value.strip().isascii() and value.strip().isdigit() and int(value) > 0):
        raise ValueError(f"{value} is no whole number above 0")
    return int(value)


class _ModelEntry(msgspec.Struct, rename="camel"):
    mar_name: str = ""
    default_version: bool = False
    min_workers: int | None = None
    max_workers: int | None = None
    batch_size: int | None = None
    max_batch_delay: int | None = None
    response_timeout: int | None = None
    startup_timeout: int | None = None


class _Snapshot(msgspec.Struct):
    models: dict[str, dict[str, _ModelEntry]] = {}


def _models(key: str, value: str) -> tuple[StartedModel, ...]:
    """The models of `models` or of a snapshot. Raises `ValueError` for what is not understood."""
    try:
        if key == "model_snapshot":
            table = msgspec.json.decode(value, type=_Snapshot).models
        else:
            table = msgspec.json.decode(value, type=dict[str, dict[str, _ModelEntry]])
    except msgspec.DecodeError as error:
        raise ValueError(f"it is not understood: {error}") from None
    found = []
    for name, versions in table.items():
        for version, each in versions.items():
            given = {
                "replicas": each.max_workers or each.min_workers,
                "max_batch_size": each.batch_size,
                "max_queue_delay_ms": each.max_batch_delay if (each.batch_size or 1) > 1 else None,
                "compute_timeout": each.response_timeout,
                "startup_timeout": each.startup_timeout,
            }
            settings = {setting: number for setting, number in given.items() if number}
            archive = each.mar_name or f"{name}.mar"
            found.append(StartedModel(name, archive, version, each.default_version, settings))
    return tuple(found)
