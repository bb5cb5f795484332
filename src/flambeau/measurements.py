"""What was measured of a bundle's engines, as its manifest and `flambeau bench` show it. Value objects only."""

import msgspec

from flambeau.agreement import Agreement


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an engine did when it was tried on this bundle.

    `ms` is milliseconds an image (or row) by batch size, `load_seconds` from a bare Python to the first answer,
    `memory_mb` how much the process grew by the engine, in MiB. `error` says why it could not be tried to the end.
    """

    engine: str
    device: str = "cpu"
    ms: dict[int, float] = {}
    load_seconds: float | None = None
    memory_mb: float | None = None
    agreement: Agreement | None = None
    error: str | None = None


class Trials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engines that were tried when the bundle was built, on which `processor`, and why one was taken."""

    processor: str
    threads: int
    why: str
    engines: tuple[Trial, ...]


class Quantised(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well the int8 graph answers the calibration inputs as eager PyTorch does.

    `top1` is the share of them with the same top class, of 1, and `None` for what is no classifier; `difference` the
    largest, relative as in `Agreement`.
    """

    samples: int
    top1: float | None
    difference: float
