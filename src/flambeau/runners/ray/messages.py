"""What a front and the hosts of its replicas tell each other beside batches: plain structs, sent as MessagePack."""

from typing import TypeVar

import msgspec

from flambeau.runners.base import ReplicaSpec

T = TypeVar("T")


class HostPlace(msgspec.Struct, frozen=True):
    """Where a host is. `flambeau` is the version that it runs; `node` is Ray's id."""

    node: str
    address: str
    pid: int
    flambeau: str

    @property
    def name(self) -> str:
        """Address and the beginning of the id: a machine may have several nodes."""
        return f"{self.address}/{self.node[:8]}"


class HostOrder(msgspec.Struct, frozen=True):
    """What a host is to open, and the limits of its worker: seconds and bytes."""

    spec: ReplicaSpec
    compute_timeout: float
    startup_timeout: float
    max_worker_memory: int | None
    log_level: str


class HostState(msgspec.Struct, frozen=True):
    """The state of a host's worker. `number` grows with every change.

    `losses` counts the batches that it has reported lost. `memory` is the resident bytes of host and worker.
    """

    number: int = 0
    warm: bool = False
    failed: bool = False
    losses: int = 0
    memory: int = 0
    restarts: dict[str, int] = {}


def pack(message: msgspec.Struct) -> bytes:
    """A message as bytes."""
    return msgspec.msgpack.encode(message)


def unpack(data: bytes, kind: type[T]) -> T:
    """A message from its bytes. Raises `msgspec.DecodeError`."""
    return msgspec.msgpack.decode(data, type=kind)
