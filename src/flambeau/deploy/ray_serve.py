"""The configuration file of a Ray Serve application: for `serve deploy`, and for KubeRay's RayService."""

import json
from dataclasses import dataclass
from pathlib import Path

from flambeau.bundle.storage import MANIFEST
from flambeau.errors import SourceError
from flambeau.sources.remote import is_remote

GRPC_SERVICES = ("flambeau.ray.add_grpc_services",)
"""What Serve's proxy calls to learn which calls there are; every node can import it."""


@dataclass(frozen=True, slots=True)
class ServeValues:
    """What is filled in. `source` is a path on every node that may have a front, or an address."""

    source: str
    name: str
    fronts: int
    replicas: int
    min_replicas: int | None
    host: str
    port: int
    grpc_port: int | None
    tokens_file: str | None
    allow_code: bool
    num_gpus: float


def place_of(source: str) -> str:
    """The absolute path of a bundle or a repository, or the address of a bundle.

    Raises `SourceError` for what every node would have to build.
    """
    if is_remote(source):
        return source.rstrip("/")
    path = Path(source).resolve()
    if not path.is_dir():
        raise SourceError(
            f"{source} is no folder: each front would build it for itself. Build it once, where every node sees it: "
            f"flambeau build {source} -o /shared/model"
        )
    if not (path / MANIFEST).is_file() and not any(path.iterdir()):
        raise SourceError(f"{source} is empty: name a bundle, or a repository of models")
    return str(path)


def serve_config(values: ServeValues) -> str:
    """The file, as YAML. Strings are written as in JSON, which YAML reads."""
    quoted = json.dumps
    args: dict[str, object] = {
        "source": values.source, "fronts": values.fronts, "replicas": values.replicas,
        "min_replicas": values.min_replicas,
        "tokens_file": values.tokens_file, "allow_code": values.allow_code or None,
        "ray_num_gpus": values.num_gpus or None,
    }  # fmt: skip
    lines = [
        "# A front on each node that has one (queue, ledger, batches), and replicas of its own anywhere.",
        "# serve deploy FILE; or below spec.serveConfigV2 of a RayService",
        "proxy_location: EveryNode",
        "http_options:",
        f"  host: {quoted(values.host)}",
        f"  port: {values.port}",
        *_grpc(values.grpc_port),
        "applications:",
        f"  - name: {quoted(values.name)}",
        "    route_prefix: /",
        '    import_path: "flambeau.ray:build"',
        "    args:",
        *(f"      {name}: {quoted(value)}" for name, value in args.items() if value is not None),
    ]
    return "".join(f"{line}\n" for line in lines)


def _grpc(port: int | None) -> list[str]:
    if port is None:
        return []
    return [
        "grpc_options:  # Serve's proxies listen on all addresses for it",
        f"  port: {port}",
        f"  grpc_servicer_functions: {json.dumps(list(GRPC_SERVICES))}",
    ]
