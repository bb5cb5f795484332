"""What passes between a contest and its contestants, as lines of JSON."""

import msgspec

from flambeau.agreement import Agreement


class Entry(msgspec.Struct, frozen=True):
    """What a contestant is told when it is started. `batches` are the numbers of rows it will be asked for."""

    bundle: str
    engine: str
    device: str
    threads: int
    batches: tuple[int, ...]
    allow_code: bool
    parent: int


class Round(msgspec.Struct, frozen=True):
    """Compute batches of `batch` rows for at least `seconds`, and at least once."""

    batch: int
    seconds: float


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The contestant is warm. `agreement` is `None` for a bundle without probes."""

    device: str
    load_seconds: float
    memory_mb: float
    agreement: Agreement | None


class Timed(msgspec.Struct, frozen=True, tag="timed"):
    """The median milliseconds of a row in a round."""

    ms: float


class GaveUp(msgspec.Struct, frozen=True, tag="gave_up"):
    """The contestant cannot go on, and ends."""

    reason: str


Reply = Loaded | Timed | GaveUp
