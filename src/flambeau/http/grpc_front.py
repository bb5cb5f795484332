"""gRPC beside HTTP: the address is bound before anything loads, and access, rates and memory are the same for both.

The room `flambeau.grpc`, and with it the package protobuf, is imported only here, and only if `--grpc-port` is set.
"""

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from flambeau.errors import ConfigError
from flambeau.http.access import AccessControl
from flambeau.http.listening import Address, bind, server_context
from flambeau.http.request_body import FULL, BodyBuffer, InflightBudget, Share
from flambeau.serving.service import Service
from flambeau.settings.hosts import unix_path
from flambeau.settings.service import Settings
from flambeau.system.machine import pip_install

if TYPE_CHECKING:
    from flambeau.grpc.admission import Metadata
    from flambeau.grpc.endpoint import GrpcEndpoint


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
            f"--grpc-port {settings.grpc_port} needs the package protobuf: {pip_install('grpc')}"
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
    from flambeau.grpc.admission import Admission
    from flambeau.grpc.endpoint import GrpcEndpoint

    def hold(size: int) -> None:
        if budget.used + size > budget.most and not budget.make_room(size, Share(budget, clock, None)):
            raise FULL
        budget.used += size

    def release(size: int) -> None:
        budget.used -= size

    admission = Admission(
        refusal=access.refusal_of_call,
        rate=access.rate_call,
        charge=access.charge,
        is_admin=access.is_admin,
        name=access.name_of,
        client=access.forwarding.client if access.forwarding.active else _peer,
        hold=hold,
        release=release,
        arrival=lambda size, give_up: LongMessage(budget, clock, size, give_up),
        full=FULL,
        managing=access.managing,
    )
    return GrpcEndpoint(service, admission, address.bound, encryption=_encryption(service.settings))


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
            raise FULL
        self._body.add(piece)

    def room(self) -> memoryview | None:
        return self._body.room()

    def filled(self, size: int) -> None:
        if not self._share.take(size):
            raise FULL
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
