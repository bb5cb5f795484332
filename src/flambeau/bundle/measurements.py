"""What was measured of a bundle's engines, as its manifest and `flambeau bench` show it. Value objects only."""

import msgspec

from flambeau.answers.agreement import Agreement


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


class Placed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """So many `replicas` with so many `threads` each gave `per_second` answers, all of them at work."""

    replicas: int
    threads: int
    per_second: float


class Placements(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How replicas were placed on so many `cores` of the `processor`: what was `tried`, and what of it is `taken`."""

    processor: str
    cores: int
    taken: Placed
    tried: tuple[Placed, ...]

    def __str__(self) -> str:
        """Such as `2 replicas of 1 thread (166/s; 1 of 2: 122/s)`."""
        taken = self.taken
        others = "; ".join(
            f"{each.replicas} of {each.threads}: {each.per_second:.3g}/s" for each in self.tried if each != taken
        )
        return (
            f"{taken.replicas} replica{'s' if taken.replicas > 1 else ''} of {taken.threads} "
            f"thread{'s' if taken.threads > 1 else ''} ({taken.per_second:.3g}/s{'; ' if others else ''}{others})"
        )


class Quantised(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well the int8 graph answers the calibration inputs as eager PyTorch does.

    `top1` is the share of them with the same top class, of 1, and `None` for what is no classifier; `difference` the
    largest, relative as in `Agreement`.
    """

    samples: int
    top1: float | None
    difference: float
