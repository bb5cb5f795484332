"""gRPC beside HTTP: the address is bound before anything loads, and access, rates and memory are the same for both.

The room `flambeau.grpc`, and with it the package protobuf, is imported only here, and only if `--grpc-port` is set, or
when a proxy passes on a first call.
"""

import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flambeau.errors import ConfigError
from flambeau.http.access import NOT_HERE, AccessControl
from flambeau.http.listening import Address, bind, server_context
from flambeau.http.request_body import BodyBuffer, InflightBudget, Share, full
from flambeau.protocols.torchserve_models import ManagedArchives
from flambeau.serving.service import Service
from flambeau.settings.hosts import host_and_port, unix_path
from flambeau.settings.service import Settings
from flambeau.system.machine import pip_install

if TYPE_CHECKING:
    from flambeau.grpc.admission import Admission, Metadata
    from flambeau.grpc.endpoint import GrpcEndpoint
    from flambeau.grpc.proxied import ProxiedCalls

CONNECTIONS = 2
"""Connections of gRPC for each of HTTP: there may be as many calls, and as many public ones; the others are idle."""


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
            f"--grpc-port {settings.grpc_port} needs the package protobuf: {pip_install('grpc')}"
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
    connections: int,
) -> "GrpcEndpoint":
    """The endpoint at an address that was reserved. `managing`: why nothing is managed there, or `None`."""
    from flambeau.grpc.endpoint import GrpcEndpoint

    admission = _admission(service, access, budget, clock, managing=managing)
    return GrpcEndpoint(
        service, admission, address.bound, encryption=_encryption(service.settings),
        connections=CONNECTIONS * connections,
    )  # fmt: skip


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

    def hold(size: int) -> None:
        if budget.used + size > budget.most and not budget.make_room(size, Share(budget, clock, None)):
            raise full()
        budget.used += size

    def release(size: int) -> None:
        budget.used -= size

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
        release=release,
        arrival=lambda size, give_up: LongMessage(budget, clock, size, give_up),
        full=full(),
        managing=managing,
        archives=archives,
    )


def beside(
    service: Service,
    access: AccessControl,
    budget: InflightBudget,
    addresses: Sequence[Address],
    clock: Callable[[], float],
    *,
    connections: int,
) -> "list[tuple[GrpcEndpoint, Address]]":
    """The endpoints at the addresses that were reserved, each with its own. Only at the last anything is managed.

    `connections`: how many of HTTP there may be.
    """
    settings = service.settings
    found = []
    for each in addresses:
        managing = access.managing_over_grpc
        if each is not addresses[-1] or (settings.management_address and not settings.grpc_management_address):
            managing = NOT_HERE
        endpoint = _make(service, access, budget, each, clock, managing=managing, connections=connections)
        found.append((endpoint, each))
    return found


def _encryption(settings: Settings) -> ssl.SSLContext | None:
    """The TLS of HTTP, for HTTP/2."""
    context = server_context(settings)
    if context is not None:
        context.set_alpn_protocols(["h2"])
    return context


class LongMessage:
    """A message that comes in pieces (`flambeau.grpc.admission.LongArrival`): a body, and its share of the budget."""

    def __init__(
        self, budget: InflightBudget, clock: Callable[[], float], size: int, give_up: Callable[[], None]
    ) -> None:
        self._budget = budget
        self._share = Share(budget, clock, give_up)
        self._body = BodyBuffer(size)

    @property
    def left(self) -> int:
        return self._body.most - self._body.size

    def add(self, piece: memoryview) -> None:
        if not self._share.take(len(piece)):
            raise full()
        self._body.add(piece)

    def room(self) -> memoryview | None:
        return self._body.room()

    def filled(self, size: int) -> None:
        if not self._share.take(size):
            raise full()
        self._body.came(size)

    def whole(self) -> bytes | memoryview:
        self._share.whole()
        self._share.close()
        self._budget.used += self._body.size
        return self._body.whole()

    def close(self) -> None:
        self._share.close()


def _peer(peer: str, metadata: "Metadata") -> str:
    """The client's address where no proxy is trusted."""
    return peer
