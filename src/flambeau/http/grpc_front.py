"""gRPC beside HTTP: the address is bound before anything loads, and access, rates and memory are the same for both.

The room `flambeau.grpc`, and with it the package grpcio, is imported only here, and only if `--grpc-port` is set, or
when a proxy passes on a first call.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from flambeau.errors import ConfigError
from flambeau.http.access import AccessControl
from flambeau.http.listening import Address, bind
from flambeau.http.request_body import FULL, InflightBudget, Share
from flambeau.serving.service import Service
from flambeau.settings.hosts import unix_path
from flambeau.settings.service import Settings
from flambeau.system.machine import pip_install

if TYPE_CHECKING:
    from flambeau.grpc.admission import Admission, Metadata
    from flambeau.grpc.endpoint import GrpcEndpoint
    from flambeau.grpc.proxied import ProxiedCalls


def reserve(settings: Settings) -> Address | None:
    """Bind the address of gRPC without listening on it; `None` if it is off.

    Raises `ConfigError` if the extra is missing or the settings do not fit, and `PortInUse`.
    """
    if not settings.grpc_port:
        return None
    try:
        import flambeau.grpc.endpoint  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--grpc-port {settings.grpc_port} needs the package {error.name}: {pip_install('grpc')}"
        ) from error
    if unix_path(settings.host) is not None:
        raise ConfigError(f"--grpc-port {settings.grpc_port} needs a --host that has ports: {settings.host} has none")
    if settings.grpc_port == settings.port:
        raise ConfigError(f"--grpc-port {settings.grpc_port} is also --port: HTTP and gRPC need a port each")
    return bind(settings.host, settings.grpc_port, setting="--grpc-port")


def make(
    service: Service, access: AccessControl, budget: InflightBudget, address: Address, clock: Callable[[], float]
) -> "GrpcEndpoint":
    """The endpoint at an address that was reserved."""
    from flambeau.grpc.endpoint import GrpcEndpoint

    host, port = address.bound.getsockname()[:2]
    return GrpcEndpoint(service, _admission(access, budget, clock), host, port)


def proxied(service: Service, access: AccessControl, budget: InflightBudget) -> "ProxiedCalls":
    """What answers calls that a proxy has received."""
    from flambeau.grpc.proxied import ProxiedCalls

    return ProxiedCalls(service, _admission(access, budget, time.monotonic))


def _admission(access: AccessControl, budget: InflightBudget, clock: Callable[[], float]) -> "Admission":
    from flambeau.grpc.admission import Admission

    def hold(size: int) -> Callable[[], None]:
        share = Share(budget, clock, None)
        if not share.take(size):
            raise FULL
        return share.close

    return Admission(
        refusal=access.refusal_of_call,
        rate=access.rate_call,
        charge=access.charge,
        is_admin=access.is_admin,
        name=access.name_of,
        client=access.forwarding.client if access.forwarding.active else _peer,
        hold=hold,
        managing=access.managing,
    )


def _peer(peer: str, metadata: "Metadata") -> str:
    """The client's address where no proxy is trusted."""
    return peer
