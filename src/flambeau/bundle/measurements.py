"""Measurements of a bundle's engines, as its manifest and `flambeau bench` show them. Value objects only."""

import math

import msgspec

from flambeau.answers.agreement import Agreement


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One engine's measurements on this bundle.

    `ms` is milliseconds per image (or row) by batch size, `load_seconds` the time from importing the engine to its
    first answer, `memory_mb` how much the engine made the process grow, in MiB. `error` says why the trial failed.
    """

    engine: str
    device: str = "cpu"
    ms: dict[int, float] = {}
    load_seconds: float | None = None
    memory_mb: float | None = None
    agreement: Agreement | None = None
    error: str | None = None


class Trials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engines that were tried when the bundle was built, on which `processor`, and why one was chosen."""

    processor: str
    threads: int
    why: str
    engines: tuple[Trial, ...]

    def memory(self, engine: str) -> int | None:
        """The bytes by which that engine made its process grow; `None` if that was not measured."""
        for trial in self.engines:
            if trial.engine == engine and trial.memory_mb:
                return math.ceil(trial.memory_mb * 1024 * 1024)
        return None


class Placed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One placement: `replicas` with `threads` each gave `per_second` answers in total, all working at once."""

    replicas: int
    threads: int
    per_second: float


class Placements(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The placements `tried` on `cores` of the `processor`, and the one chosen (`taken`)."""

    processor: str
    cores: int
    taken: Placed
    tried: tuple[Placed, ...]

    def __str__(self) -> str:
        """For example `2 replicas of 1 thread (166/s; 1 of 2: 122/s)`."""
        taken = self.taken
        others = "; ".join(
            f"{each.replicas} of {each.threads}: {each.per_second:.3g}/s" for each in self.tried if each != taken
        )
        return (
            f"{taken.replicas} replica{'s' if taken.replicas > 1 else ''} of {taken.threads} "
            f"thread{'s' if taken.threads > 1 else ''} ({taken.per_second:.3g}/s{'; ' if others else ''}{others})"
        )


class Quantised(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How well the int8 graph agrees with the network itself on the calibration inputs.

    `top1` is the share with the same top class, 0 to 1, and `None` for a network that is not a classifier;
    `difference` is the largest one, relative as in `Agreement`.
    """

    samples: int
    top1: float | None
    difference: float
