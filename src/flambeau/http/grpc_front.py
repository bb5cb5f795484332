"""gRPC beside HTTP: the address is bound before anything loads, and access, rates and memory are the same for both.

The room `flambeau.grpc`, and with it the package grpcio, is imported only here, and only if `--grpc-port` is set, or
when a proxy passes on a first call.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flambeau.errors import ConfigError
from flambeau.http.access import NOT_HERE, AccessControl
from flambeau.http.listening import Address, bind
from flambeau.http.request_body import FULL, InflightBudget, Share
from flambeau.protocols.torchserve_models import ManagedArchives
from flambeau.serving.service import Service
from flambeau.settings.hosts import host_and_port, unix_path
from flambeau.settings.service import Settings
from flambeau.system.machine import pip_install

if TYPE_CHECKING:
    from flambeau.grpc.admission import Admission, Metadata
    from flambeau.grpc.endpoint import GrpcEndpoint
    from flambeau.grpc.proxied import ProxiedCalls


def reserve(settings: Settings) -> list[Address]:
    """Bind the addresses of gRPC without listening on them: that of predictions, and that of management if it has one.

    Empty if gRPC is off. Raises `ConfigError` if the extra is missing or the settings do not fit, and `PortInUse`.
    """
    managed = settings.grpc_management_address
    if not settings.grpc_port:
        if managed is not None:
            raise ConfigError(f"--grpc-management-address {managed} needs --grpc-port")
        return []
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
    found = [bind(settings.host, settings.grpc_port, setting="--grpc-port")]
    if managed is not None:
        where = host_and_port("grpc_management_address", managed)
        try:
            found.append(bind(*where, setting="--grpc-management-address"))
        except BaseException:
            found[0].close()
            raise
    return found


def _make(
    service: Service,
    access: AccessControl,
    budget: InflightBudget,
    address: Address,
    clock: Callable[[], float],
    *,
    managing: str | None,
) -> "GrpcEndpoint":
    """The endpoint at an address that was reserved. `managing`: why nothing is managed there, or `None`."""
    from flambeau.grpc.endpoint import GrpcEndpoint

    host, port = address.bound.getsockname()[:2]
    return GrpcEndpoint(service, _admission(service, access, budget, clock, managing=managing), host, port)


def proxied(service: Service, access: AccessControl, budget: InflightBudget) -> "ProxiedCalls":
    """What answers calls that a proxy has received."""
    from flambeau.grpc.proxied import ProxiedCalls

    managing = access.managing_over_grpc
    return ProxiedCalls(service, _admission(service, access, budget, time.monotonic, managing=managing))


def _admission(
    service: Service,
    access: AccessControl,
    budget: InflightBudget,
    clock: Callable[[], float],
    *,
    managing: str | None,
) -> "Admission":
    from flambeau.grpc.admission import Admission

    def hold(size: int) -> Callable[[], None]:
        share = Share(budget, clock, None)
        if not share.take(size):
            raise FULL
        return share.close

    archives = None
    if (store := service.settings.model_store) is not None:
        archives = ManagedArchives(Path(store), tokens=bool(access.held))
    return Admission(
        refusal=access.refusal_of_call,
        rate=access.rate_call,
        charge=access.charge,
        is_admin=access.is_admin,
        name=access.name_of,
        client=access.forwarding.client if access.forwarding.active else _peer,
        hold=hold,
        managing=managing,
        archives=archives,
    )


def beside(
    service: Service,
    access: AccessControl,
    budget: InflightBudget,
    addresses: Sequence[Address],
    clock: Callable[[], float],
) -> "list[tuple[GrpcEndpoint, Address]]":
    """The endpoints at the addresses that were reserved, each with its own. Only at the last anything is managed."""
    settings = service.settings
    found = []
    for each in addresses:
        managing = access.managing_over_grpc
        if each is not addresses[-1] or (settings.management_address and not settings.grpc_management_address):
            managing = NOT_HERE
        found.append((_make(service, access, budget, each, clock, managing=managing), each))
    return found


def _peer(peer: str, metadata: "Metadata") -> str:
    """The client's address where no proxy is trusted."""
    return peer
