"""What an operator wants changed of a model, as a value: it is checked here, and carried out by the loader."""

import math
from dataclasses import dataclass, field

from flambeau.checkpoints.repository import NAME
from flambeau.errors import RequestError
from flambeau.serving.versions import ServedModel, Traffic
from flambeau.settings.service import Settings
from flambeau.system.machine import usable_cores

_MOST_REPLICAS, _MOST_OF_A_CORE = 16, 4  # replicas that an operator may ask for: so many, or so many for each core


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is to change of a model; what is not named stays. `None` takes a choice back.

    Versions are named by their numbers or aliases.
    """

    named: frozenset[str] = frozenset()
    default: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    traffic: Traffic | None = None
    shadow: str | None = None
    limits: dict[str, int] = field(default_factory=dict)

    def check(self, served: ServedModel, settings: Settings) -> None:
        """Raise `RequestError` for aliases, shares and replicas that cannot be."""
        if (replicas := self.limits.get("replicas")) is not None:
            if settings.runner == "threads":
                raise RequestError(
                    "replicas in threads are as many as were started: they change with --runner processes alone",
                    code="bad_request",
                )
            if settings.runner != "ray" and replicas > (most := max(_MOST_REPLICAS, _MOST_OF_A_CORE * usable_cores())):
                raise RequestError(
                    f"replicas {replicas}: on {usable_cores()} cores a model may have at most {most}",
                    code="bad_request",
                )
        for alias in self.aliases:
            if not NAME.fullmatch(alias) or alias in served.versions:
                raise RequestError(
                    f"{alias} cannot be an alias: it is a version, or has other characters than letters, digits, '.', "
                    "'_' and '-'",
                    code="bad_request",
                )
        if self.traffic is not None:
            shares = self.traffic.shares.values()
            if min(shares, default=0.0) < 0 or not 0 < sum(shares) < math.inf:
                raise RequestError('traffic has no shares above 0: write {"2": 90, "3": 10}', code="bad_request")
