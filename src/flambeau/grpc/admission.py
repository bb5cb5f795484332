"""What the server that starts this room decides about calls: who may make them, and what they may hold.

Access control, rates and the memory for bodies are one for all protocols, and belong to the HTTP server's room, which
this one does not know. So that room fills in these functions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from flambeau.errors import RequestError
from flambeau.protocols.messages import Charge
from flambeau.protocols.routes import RequiredScope
from flambeau.protocols.torchserve_models import ManagedArchives

Metadata = Mapping[str, str]
"""A call's metadata: names in lower case, as gRPC has them."""


class LongArrival(Protocol):
    """A long message as it comes. Its bytes are counted as they do, and its place is there before."""

    @property
    def left(self) -> int:
        """The bytes that have not come."""
        ...

    def add(self, piece: memoryview) -> None:
        """Add the next piece. Raises `RequestError` where there is no memory for it."""
        ...

    def room(self) -> memoryview | None:
        """Where the rest may be written, if it has its place; call `filled` with what was."""
        ...

    def filled(self, size: int) -> None:
        """So many bytes were written into `room`. Raises `RequestError` as `add` does."""
        ...

    def whole(self) -> bytes | memoryview:
        """The message. Its bytes are then held as if by `Admission.hold`."""
        ...

    def close(self) -> None:
        """Give up what has come."""
        ...


@dataclass(frozen=True, slots=True)
class Admission:
    """The decisions. `client` is always the client's address; `client(peer, metadata)` is that address where `peer`
    may be a trusted proxy.

    `refusal(scope, metadata, client)`: why a call is refused, or `None`. `rate(metadata, client)`: counts a prediction
    towards the rate limit, and raises `RequestError` above it. `charge(metadata, client)`: what charges the items of a
    prediction after its first, if rates are limited.
    `is_admin(metadata)`: whether the caller may manage the server. `name(metadata, client)`: who it is, for the log.
    `hold(size)`: counts the bytes of a message until `release(size)`, or raises `RequestError`.
    `arrival(size, give_up)`: room for a message that comes in pieces; `give_up` is called where its memory is needed
    for others, which is told as `full`. `managing`: why nobody may load or unload models at this
    address, or `None`. `archives`: the functions of TorchServe's management API, where there is a model store.
    """

    refusal: Callable[[RequiredScope, Metadata, str], RequestError | None]
    rate: Callable[[Metadata, str], None]
    charge: Callable[[Metadata, str], Charge | None]
    is_admin: Callable[[Metadata], bool]
    name: Callable[[Metadata, str], str]
    client: Callable[[str, Metadata], str]
    hold: Callable[[int], None]
    release: Callable[[int], None]
    arrival: Callable[[int, Callable[[], None]], LongArrival]
    full: RequestError
    managing: str | None
    archives: ManagedArchives | None = None
