"""Every setting of a service, defined once: name, default, meaning and bounds.

Flags, environment variables, the keys of `flambeau.toml` and the documentation are made from this table and that of the
source (`flambeau.settings.table`); `create_app` takes the same names as keywords. This module reads neither argv, nor
the environment, nor a file.
"""

import functools
import os
import typing
from dataclasses import dataclass, fields
from typing import Literal, get_args

from flambeau.errors import ConfigError
from flambeau.settings.addresses import AddressSettings
from flambeau.settings.schema import Setting, kind_of
from flambeau.settings.setting_field import setting
from flambeau.system.machine import MIB, usable_cores

RunnerName = Literal["processes", "threads", "ray"]
EngineName = Literal["onnxruntime", "openvino", "eager", "compile", "onnxruntime-int8"]
EngineChoice = Literal["auto", EngineName]

LoadTime = Literal["start", "on-demand"]

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "text", "json"]


_model = functools.partial(setting, group="Model")
_queue = functools.partial(setting, group="Batches and queue")
_limit = functools.partial(setting, group="Limits of a request")
_worker = functools.partial(setting, group="Workers")
_log = functools.partial(setting, group="Log and traces")


@dataclass(frozen=True, kw_only=True)
class Settings(AddressSettings):
    """How a service runs. Durations are seconds unless the name ends in `_ms`; sizes are bytes."""

    name: str | None = _model(
        None,
        "Name of the model in URLs. Default: taken from the source.",
        long="Name of the model in URLs: letters, digits, `.`, `_` and `-`. Not set: taken from the source.",
    )
    default: str | None = _model(
        None,
        "Model that answers POST /predict, of several. Default: the first.",
        long="Of [several models](models.md), the one that answers `POST /predict`, which names none. Not set: the "
        "first.",
        metavar="NAME",
    )
    strict: bool = _model(
        False,
        "Of several models, start only if all can be loaded.",
        long="Of [several models](models.md), start only if all can be loaded. Not set: those that can are served.",
    )
    load: LoadTime = _model(
        "start",
        "When models of a repository are loaded: at the start, or on-demand, when the first request wants them.",
        long="When the models of a [repository](models.md#memory) are loaded: at the `start`, or `on-demand`, when the "
        "first request wants them.",
        choices=get_args(LoadTime),
    )
    max_memory: int | None = _model(
        None,
        "Bytes that all models may take together. Default: nine tenths of the memory.",
        long="Bytes that [all models may take together](models.md#memory). Not set: nine tenths of what the machine "
        "and its control groups allow.",
        minimum=1024 * 1024,
    )
    watch: bool = _model(
        False,
        "Follow the repository's folder: load new versions, end deleted ones.",
        long="Follow the folder of a [repository](models.md#a-repository): load new versions, and end deleted ones.",
    )
    watch_interval: float = _model(
        2.0,
        "Seconds between two readings of the folder that --watch follows.",
        long="Seconds between two readings of the folder that `--watch` follows. A version is loaded when its files "
        "were the same at two of them.",
        minimum=0.1,
    )
    keep_loaded: int = _model(
        1,
        "Former default versions of a model that stay loaded, so that going back to them takes no time.",
        long="How many former default versions of a model stay loaded when [a newer one takes over](models.md), so "
        "that going back to them takes no time. Each takes the memory of a model.",
        minimum=0,
    )
    keep_versions: int | None = _model(
        None,
        "The newest versions of a model that are known; older ones are not served. Default: all.",
        long="How many versions of a model in a [repository](models.md#a-repository) are known: the newest ones, and "
        "those that its `model.toml` names. Older ones are not served; their files stay. Not set: all.",
        minimum=1,
    )
    engine: EngineChoice = _model(
        "auto",
        "Engine that runs the model; auto is the bundle's own choice: checked, and measured if there are several.",
        long="Engine that runs the model: `onnxruntime`, `openvino`, `eager` (PyTorch itself), `compile`, "
        "`onnxruntime-int8`, or `auto`, the bundle's own choice. See [engines.md](engines.md).",
        choices=get_args(EngineChoice),
        metavar="ENGINE",
    )
    device: str = _model(
        "auto",
        "cpu, cuda, cuda:N or mps; auto takes an accelerator if the engine has one.",
        long="`cpu`, `cuda`, `cuda:N` or `mps`. `auto` takes an accelerator if the engine has one, else the CPU.",
        metavar="DEVICE",
    )
    runner: RunnerName = _worker(
        "processes" if os.name == "posix" else "threads",
        "Where replicas live: in processes that may crash without harm, in threads of this one, or on a ray cluster.",
        long="Where replicas live: in `processes` that may crash without harm, in `threads` of this one, or on the "
        "nodes of a [`ray`](cluster.md) cluster. On Windows, and for `create_app`, the default is `threads`.",
        choices=get_args(RunnerName),
    )
    ray_address: str = _worker(
        "auto",
        "Ray cluster of --runner ray: auto, HOST:PORT of its head, or local to start one on this machine.",
        metavar="ADDRESS",
        long="[Ray cluster](cluster.md) of `--runner ray`: `auto` is the one that this machine is a node of, "
        "`HOST:PORT` is its head's, and `local` starts one on this machine, which ends with the service. Needs the "
        "extra `ray`.",
    )
    ray_num_gpus: float = _worker(
        0.0,
        "GPUs that Ray reserves for each replica of --runner ray; parts of one are possible.",
        long="GPUs that [Ray](cluster.md#gpus) reserves for each replica of `--runner ray`; `0.5` puts two on one.",
        minimum=0,
    )
    replicas: int | None = _worker(
        None,
        "Replicas of the model, one batch each at a time. Default: auto, as many as the build measured best.",
        long="Replicas of the model, one batch each at a time. Not set, or `auto`: what the build "
        "[measured](engines.md#replicas-and-threads) to give the highest throughput on this machine; if nothing was "
        "measured, one per core on the CPU, one on an accelerator, one for Python models; two with `--runner ray`. "
        "Beside other models, [the most that it may have](models.md#cores-and-workers).",
        minimum=1,
        metavar="N|auto",
        unset="auto",
    )
    min_replicas: int | None = _worker(
        None,
        "Fewest replicas: there are as many as it needs, up to --replicas. Default: all, if a model is served alone.",
        long="Fewest replicas. There are [as many as the model needs](models.md#cores-and-workers) from this number up "
        "to `--replicas`: more while items wait, fewer after half a minute in which they were not needed. Not set: a "
        "model that is served alone keeps all, and of several each has at least one.",
        minimum=1,
    )
    threads: int | None = _worker(
        None,
        "Threads of each replica's engine. Default: auto, the cores shared between the replicas.",
        long="Threads of each replica's engine. Not set, or `auto`: the cores shared between the replicas, at least "
        "one, and for a batch that is alone [all of them](engines.md#replicas-and-threads).",
        minimum=1,
        metavar="N|auto",
        unset="auto",
    )
    max_batch_size: int = _queue(
        0,
        "Most items in a batch. 0: measured, as many as pay off, or one; 8 for Python models.",
        long="Most items in a batch. 0: [measured](performance.md#batches), as many as pay off; 8 for Python models.",
        minimum=0,
    )
    max_queue_delay_ms: float = _queue(
        0.0, "Milliseconds to hold a free replica back, waiting for a batch to fill.", minimum=0
    )
    max_queue_size: int = _queue(
        256,
        "Most items waiting; further ones are answered 503 queue_full.",
        long="Most items waiting. Further ones are answered 503 `queue_full`.",
        minimum=1,
    )
    max_queue_bytes: int = _queue(
        256 * MIB,
        "Most bytes waiting; further ones are answered 503.",
        long="Most bytes waiting (256 MiB, and at least one body). Further ones are answered 503 `queue_full`.",
        minimum=1,
    )
    deadline: float = _limit(
        60.0,
        "Seconds within which a request is answered, once it is complete.",
        long="Seconds within which a request is answered. After that it is answered 504.",
        minimum=0,
    )
    threshold: float | None = _model(
        None,
        "Probability below which nothing counts as recognised. Default: the bundle's own.",
        long="Probability, 0 to 1, below which nothing counts as recognised. Not set: the bundle's own, which is 0.2 "
        "for the built-in model and 0 for others.",
        minimum=0,
        maximum=1,
    )
    max_body_bytes: int = _limit(
        32 * MIB,
        "Largest request body; larger ones are answered 413.",
        long="Largest request body (32 MiB; at most 1 GiB). Larger ones are answered 413.",
        minimum=1,
        maximum=1024 * MIB,
    )
    max_upload_bytes: int = _limit(
        512 * MIB,
        "Largest bundle that may be added to a repository over HTTP, sent and unpacked.",
        long="Largest bundle that [may be added to a repository](models.md#adding-versions) over HTTP (512 MiB), as it "
        "is sent and as it is unpacked. While it arrives it is held in memory, within --max-inflight-bytes.",
        minimum=1,
        maximum=16 * 1024 * MIB,
    )
    max_inflight_bytes: int | None = _limit(
        None,
        "Most bytes of all request bodies together. Default: a quarter of the memory.",
        long="Most bytes of all request bodies together, from their first byte until they are answered. If more "
        "arrive, the largest incomplete uploads are answered 503. Not set: a quarter of the memory that the machine "
        "and the control groups leave to the process, and room for at least one body.",
        minimum=1,
    )
    max_json_depth: int = _limit(
        32,
        "Deepest nesting of a JSON body.",
        long="Deepest nesting of a JSON body, its outer object included.",
        minimum=1,
    )
    max_items: int = _limit(
        64, "Most items in one request.", long="Most items in one request, and most parts in one form.", minimum=1
    )
    max_image_pixels: int = _limit(
        40_000_000,
        "Largest image, as its header says; larger ones are answered 413.",
        long="Largest image, width times height as its header says. Larger ones are answered 413.",
        minimum=1,
    )
    fast_decode: bool = _model(
        False,
        "Decode large JPEGs to fewer pixels: faster, and off by up to four grey levels.",
        long="Decode large JPEGs to fewer pixels: faster, and off by up to four grey levels from "
        "[exact decoding](performance.md#photographs).",
    )
    compute_timeout: float = _worker(
        20.0, "Seconds a worker process may take for a batch before it counts as hung and is killed.", minimum=0.1
    )
    startup_timeout: float = _worker(120.0, "Seconds a worker process may take to become warm.", minimum=0.1)
    max_worker_memory: int | None = _worker(
        None,
        "Bytes of address space a worker process may take. Default: unbounded.",
        long="Bytes of address space a worker process may take. Not set: unbounded.",
        minimum=64 * MIB,
    )
    drain_timeout: float = _worker(30.0, "Seconds a stopping service has to answer what it has received.", minimum=0)
    log_level: LogLevel = _log(
        "info",
        "Lowest level that is logged; debug adds tracebacks.",
        long="Lowest level that is logged. `debug` adds the tracebacks of failed models.",
        choices=("debug", "info", "warning", "error"),
    )
    allow_code: bool = _model(
        False,
        "Run code that the source carries (Python models, your own architectures).",
        long="Run code that the source carries: Python models, your own architectures.",
    )
    allow_installs: bool = _model(
        False,
        "Install the packages that an archive's requirements.txt names, for its workers alone.",
        long="Install the packages that an archive's `requirements.txt` names, with pip, "
        "[for its workers alone](migrating-from-torchserve.md#packages).",
    )

    # Log and traces
    log_format: LogFormat = _log(
        "auto",
        "How the log is written: text for people, json for machines; auto is text on a terminal.",
        choices=get_args(LogFormat),
        long="How the [log](observability.md#logs) is written: `text` for people, `json` for machines. `auto` is "
        "text on a terminal and JSON elsewhere.",
    )
    otel_endpoint: str | None = _log(
        None,
        "Where OpenTelemetry spans go, over HTTP; needs the extra otel. Default: nowhere.",
        metavar="URL",
        long="Where [OpenTelemetry spans](observability.md#traces) go: the base URL of a collector that speaks "
        "OTLP over HTTP. Needs the extra `otel`.",
    )

    def __post_init__(self) -> None:
        for each in rows():
            value = getattr(self, each.name)
            try:
                each.check(value)
            except ValueError as error:
                raise ConfigError(f"{each.flag} {value} {error}") from None
        if self.max_inflight_bytes is not None and self.max_inflight_bytes < self.max_body_bytes:
            raise ConfigError(
                f"--max-inflight-bytes {self.max_inflight_bytes} is less than --max-body-bytes {self.max_body_bytes}: "
                "one body has to fit"
            )
        self.check_addresses()

    @property
    def cores(self) -> int:
        """The cores that one front and its workers may use: its part of those that this process may."""
        return max(1, usable_cores() // (self.fronts or 1))


@functools.cache
def rows() -> tuple[Setting, ...]:
    """The table: a row for every field of `Settings`, in their order."""
    hints = typing.get_type_hints(Settings)
    return tuple(
        Setting(name=each.name, kind=kind_of(hints[each.name]), default=each.default, **each.metadata)
        for each in fields(Settings)
    )
