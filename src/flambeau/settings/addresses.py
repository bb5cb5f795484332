"""The settings about where a service listens and who reaches it there. They are part of `flambeau.settings.service`."""

import functools
import re
from dataclasses import dataclass
from typing import get_args

from flambeau.errors import ConfigError
from flambeau.settings.connections import ConnectionSettings
from flambeau.settings.hosts import host_and_port, is_local
from flambeau.settings.platforms import BEHIND_LOOPBACK, PlatformChoice
from flambeau.settings.setting_field import setting

_address = functools.partial(setting, group="Address")
_model = functools.partial(setting, group="Model")


@dataclass(frozen=True, kw_only=True)
class AddressSettings(ConnectionSettings):
    """Platforms, addresses and paths."""

    platform: PlatformChoice = _address(
        "auto",
        "Platform whose contract to follow; auto finds it from the environment, none follows none.",
        choices=get_args(PlatformChoice),
        metavar="NAME",
        long="[Platform](platforms.md) whose contract to follow: `sagemaker`, `vertex`, `cloud-run`, `lambda`, "
        "`azure-ml`, `huggingface`, `kserve` or `kubernetes`. It gives values to settings that nobody set. `auto` "
        "finds it from the environment; `none` follows none.",
    )
    health_route: str | None = _address(
        None,
        "Another path that answers as /readyz does, for a platform that asks there.",
        metavar="PATH",
        long="Another path that answers as `/readyz` does, for a [platform](platforms.md) that asks there.",
    )
    predict_route: str | None = _address(
        None,
        "Another path for predictions of the default model, in the forms of the platform.",
        metavar="PATH",
        long="Another path for predictions of the default model, in the forms of the [platform](platforms.md).",
    )
    multi_model: str | None = _model(
        None,
        "Folder of models that SageMaker loads and unloads, by its own routes in the place of ours at /models.",
        metavar="DIR",
        long="Folder of models that SageMaker [loads and unloads](platforms.md#amazon-sagemaker), by its own routes in "
        "the place of ours at `/models`. Then there is no SOURCE.",
    )
    model_store: str | None = _model(
        None,
        "Folder of archives that TorchServe's management API registers, in the place of our routes at /models.",
        metavar="DIR",
        long="Folder of archives that [TorchServe's management API](migrating-from-torchserve.md#management) "
        "registers, by its routes in the place of ours at `/models`. Then there need be no SOURCE.",
    )
    management_address: str | None = _address(
        None,
        "Another address to listen on, HOST:PORT, and the only one at which anything is managed.",
        metavar="HOST:PORT",
        long="Another address to listen on, as in `127.0.0.1:8081`, and then the only one at which anything is "
        "managed.",
    )
    metrics_address: str | None = _address(
        None,
        "Another address to listen on, HOST:PORT, for those who collect metrics.",
        metavar="HOST:PORT",
        long="Another address to listen on, as in `127.0.0.1:8082`, for those who collect metrics. `/metrics` then "
        "needs no token.",
    )
    host: str = _address(
        "127.0.0.1",
        "Address to listen on, or unix:PATH. Any other than loopback needs tokens, or --insecure-no-auth.",
        long="Address to listen on, or `unix:PATH` for a [Unix socket](operations.md#a-unix-socket). Any other than "
        "these, `127.0.0.1`, `::1` and `localhost` needs [tokens](security.md#tokens), or `--insecure-no-auth`.",
    )
    port: int = _address(
        5000,
        "Port to listen on; 0 takes a free one.",
        long="Port to listen on. 0 takes a free one; the line on standard output says which.",
        minimum=0,
        maximum=65535,
    )
    fronts: int | None = _address(
        1,
        "Processes that hold connections and queues, on one port; auto: as many as the model and the cores can use.",
        long="[Processes that hold connections and queues](operations.md#several-fronts), on one port. `auto`: as many "
        "as the model and the cores [can use](performance.md#one-front-several-several-machines).",
        minimum=1,
        maximum=64,
        metavar="N|auto",
        unset="auto",
    )
    grpc_port: int = _address(
        0,
        "Port for gRPC, on the same host; needs the extra grpc. 0: no gRPC.",
        long="Port for [gRPC](kserve.md#grpc), on the same host, with the same tokens and the same TLS. 0: no gRPC. "
        "Needs the extra `grpc`.",
        minimum=0,
        maximum=65535,
    )
    grpc_management_address: str | None = _address(
        None,
        "Another address for gRPC, HOST:PORT, and the only one at which anything is managed over gRPC.",
        metavar="HOST:PORT",
        long="Another address for gRPC, as in `127.0.0.1:7071`, and then the only one at which anything is managed "
        "over gRPC. Needs `--grpc-port`.",
    )

    insecure_no_auth: bool = _address(False, "Listen beyond loopback without asking anybody for a token.")

    def check_addresses(self) -> None:
        """Raise `ConfigError` for an address or a path that is none."""
        for name in ("management_address", "metrics_address", "grpc_management_address"):
            if (text := getattr(self, name)) is not None:
                host_and_port(name, text)
        for flag, path in (
            ("--health-route", self.health_route),
            ("--predict-route", self.predict_route),
            ("--root-path", self.root_path),
        ):
            if path is not None and not _PATH.fullmatch(path):
                raise ConfigError(
                    f"{flag} {path} is not a path: write it as in /score, with letters, digits and any of - . _ ~ : @"
                )

    @property
    def management_port(self) -> int | None:
        """The port at which alone anything is managed; `None` where there is none of its own."""
        return (
            None if self.management_address is None else host_and_port("management_address", self.management_address)[1]
        )

    @property
    def managed_here(self) -> bool:
        """Whether only this machine's own programs can reach the address at which the service is managed."""
        if self.management_address is None:
            return self.guarded
        host, _ = host_and_port("management_address", self.management_address)
        return self.guarded_at(host)

    @property
    def managed_by_grpc(self) -> bool:
        """The same of the address at which it is managed over gRPC."""
        if self.grpc_management_address is None:
            return self.guarded
        host, _ = host_and_port("grpc_management_address", self.grpc_management_address)
        return self.guarded_at(host)

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """Every host that is listened on, each with its flag."""
        names = ("management_address", "metrics_address", "grpc_management_address")
        more = [(name, getattr(self, name)) for name in names]
        found = [(f"--{name.replace('_', '-')}", host_and_port(name, text)[0]) for name, text in more if text]
        return [("--host", self.host), *found]

    @property
    def guarded(self) -> bool:
        """Whether only this machine's own programs can reach the service, and no proxy on it lets others in."""
        return self.guarded_at(self.host)

    def guarded_at(self, host: str) -> bool:
        """Whether only this machine's own programs can reach what listens on a host, and no proxy lets others in."""
        return is_local(host) and self.platform not in BEHIND_LOOPBACK and self.trusted_proxies is None


_PATH = re.compile(r"/|(?:/[A-Za-z0-9._~:@-]+)+")
