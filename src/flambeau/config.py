"""Every setting once: its name, default, meaning and bounds.

The command line makes its flags from this table (`flambeau.cli.options`) and `create_app` takes the same names as
keywords. This module reads neither argv, nor the environment, nor a file.
"""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from flambeau.errors import ConfigError

Runner = Literal["processes", "threads"]
EngineName = Literal["onnxruntime", "openvino", "eager", "compile", "onnxruntime-int8"]
Engine = Literal["auto", EngineName]

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "text", "json"]

MIB = 1024 * 1024


def _setting(default: Any, meaning: str, **bounds: Any) -> Any:
    """A dataclass field that carries its own documentation. `bounds`: minimum, maximum, choices, metavar."""
    return field(default=default, metadata={"help": meaning, **bounds})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a service runs. Durations are seconds unless the name ends in `_ms`; sizes are bytes."""

    host: str = _setting("127.0.0.1", "Address to listen on. Any other than loopback needs --insecure-no-auth.")
    port: int = _setting(5000, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    name: str | None = _setting(None, "Name of the model in URLs. Default: taken from the source.")
    engine: Engine = _setting(
        "auto",
        "What runs the model; auto is the bundle's own choice, checked and where there are several measured.",
        choices=get_args(Engine),
    )
    device: str = _setting(
        "auto", "cpu, cuda, cuda:N or mps; auto takes an accelerator if the engine has one.", metavar="DEVICE"
    )
    runner: Runner = _setting(
        "processes" if os.name == "posix" else "threads",
        "Where replicas live: in processes that may die without harm, or in threads of this one.",
        choices=("processes", "threads"),
    )
    replicas: int | None = _setting(
        None,
        "Replicas of the model, one batch each at a time. Default: one per core, one for Python models.",
        minimum=1,
    )
    threads: int | None = _setting(
        None, "Threads of each replica's engine. Default: the cores shared between the replicas.", minimum=1
    )
    max_batch_size: int = _setting(
        0,
        "Most items computed together. 0: by measurement, as many as pay, or one; 8 for Python models.",
        minimum=0,
    )
    max_queue_delay_ms: float = _setting(
        0.0, "Milliseconds to hold a free replica back, waiting for a batch to fill.", minimum=0
    )
    max_queue_size: int = _setting(256, "Most items waiting; further ones are answered 503 queue_full.", minimum=1)
    max_queue_bytes: int = _setting(256 * MIB, "Most bytes waiting; further ones are answered 503.", minimum=1)
    deadline: float = _setting(
        60.0, "Seconds within which a request is answered, once it is received whole.", minimum=0
    )
    threshold: float | None = _setting(
        None, "Probability below which nothing counts as recognised. Default: the bundle's own.", minimum=0, maximum=1
    )
    max_body_bytes: int = _setting(32 * MIB, "Largest request body; larger ones are answered 413.", minimum=1)
    max_json_depth: int = _setting(32, "Deepest nesting of a JSON body.", minimum=1)
    max_items: int = _setting(64, "Most items in one request.", minimum=1)
    max_image_pixels: int = _setting(40_000_000, "Largest image, read from its header; larger is 413.", minimum=1)
    fast_decode: bool = _setting(
        False, "Decode large JPEGs to fewer pixels: faster, and up to four grey levels off the exact way."
    )
    compute_timeout: float = _setting(
        20.0, "Seconds a worker process may take over a batch before it is taken for hung and killed.", minimum=0.1
    )
    startup_timeout: float = _setting(120.0, "Seconds a worker process may take to become warm.", minimum=0.1)
    max_worker_memory: int | None = _setting(
        None, "Bytes of address space a worker process may take. Default: unbounded.", minimum=64 * MIB
    )
    drain_timeout: float = _setting(30.0, "Seconds a stopping service gives to what it has received.", minimum=0)
    log_level: LogLevel = _setting(
        "info", "Least that is logged; debug adds tracebacks.", choices=("debug", "info", "warning", "error")
    )
    allow_code: bool = _setting(False, "Run code that the source carries (Python models, own architectures).")
    insecure_no_auth: bool = _setting(False, "Listen beyond loopback although nobody is asked who they are.")
    # What operators see
    log_format: LogFormat = _setting(
        "auto",
        "How the log is written: text for people, json for machines; auto is text on a terminal.",
        choices=get_args(LogFormat),
    )
    otel_endpoint: str | None = _setting(
        None, "Where OpenTelemetry spans go, over HTTP; needs the extra otel. Default: nowhere.", metavar="URL"
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            _check(each.name, getattr(self, each.name), each.metadata)
        if self.host not in LOOPBACK and not self.insecure_no_auth:
            raise ConfigError(
                f"--host {self.host} would serve everybody who can reach this machine, without asking who they are: "
                "stay on 127.0.0.1, or add --insecure-no-auth if the network in front of it is trusted"
            )


LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def _check(name: str, value: Any, bounds: Any) -> None:
    flag = "--" + name.replace("_", "-")
    if value is None:
        return
    if "choices" in bounds and value not in bounds["choices"]:
        raise ConfigError(f"{flag} {value} is not one of {', '.join(bounds['choices'])}")
    # `not (a <= b)` and not `a > b`: NaN compares false with everything and must not slip through
    if "minimum" in bounds and not (bounds["minimum"] <= value):
        raise ConfigError(f"{flag} {value} is too small: the least is {bounds['minimum']}")
    if "maximum" in bounds and not (value <= bounds["maximum"]):
        raise ConfigError(f"{flag} {value} is too large: the most is {bounds['maximum']}")


def usable_cores() -> int:
    """The cores this process may use: its affinity mask, cut to the CPU quota of its control group (v2)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            allowed = min(allowed, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass  # no control groups of version 2 here: the mask is all there is
    return allowed


@dataclass(frozen=True)
class Placement:
    """How many replicas run, and how many threads each engine may use."""

    replicas: int
    threads: int


def place(replicas: int | None, threads: int | None, *, default: int, cores: int) -> Placement:
    """Share `cores` between replicas: the one place where the thread budget is decided.

    More runnable threads than cores is a cliff for OpenMP and for spinning thread pools, so a replica gets
    `cores // replicas` threads and at least one. Only who asks for more, in replicas or in threads, gets more.
    """
    count = replicas or default
    return Placement(replicas=count, threads=threads or max(1, cores // count))
