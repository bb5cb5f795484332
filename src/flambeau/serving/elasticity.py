"""When a model gets more workers, and when it gives some back: decided from what is seen of it. No clock, no process.

It grows when items wait for a worker most of the time while there is room on the cores, to twice as many: 1, 2, 4 ...
It shrinks when it did not need all of its workers at any time for half a minute, to as many as it needed. A short burst
does not make it grow, and a pause does not make it shrink: a worker costs a start, which takes a core for as long.
"""

from collections import deque
from dataclasses import dataclass

PERIOD = 0.1
"""Seconds from one look at a model to the next."""

_LOOKS, _LACKING = 5, 3  # of the last five looks, so many must have found items that wait for a worker
_IDLE_SECONDS = 30.0  # after which workers that were not needed end
_RETRY_SECONDS = 30.0  # after which workers that could not be started are tried again


@dataclass(frozen=True, slots=True)
class Demand:
    """What is seen of a model at one moment. Its `replicas`, the `warm` ones among them, and the `busy` ones among
    those; how many items wait, and how many batches it may run beside the other models. `given_up` counts the further
    replicas that could not be started, since it was loaded.
    """

    replicas: int
    warm: int
    busy: int
    waiting: int
    room: float
    given_up: int = 0

    @property
    def lacking(self) -> bool:
        """Whether items wait for a worker, and a further one would have a core."""
        return self.waiting > 0 and self.busy >= self.warm == self.replicas and self.room > self.busy


class ReplicaPolicy:
    """The decisions about one model."""

    def __init__(self, *, idle_seconds: float | None = None) -> None:
        self._idle_seconds = _IDLE_SECONDS if idle_seconds is None else idle_seconds
        self._looks: deque[bool] = deque(maxlen=_LOOKS)
        self._given_up = 0
        self._not_before = 0.0
        self._most_busy = 0
        self._since: float | None = None

    def wanted(self, now: float, demand: Demand, *, least: int, most: int) -> int:
        """How many replicas the model should have, from `least` to `most`. `now` is in seconds of any clock."""
        if demand.given_up > self._given_up:
            self._given_up = demand.given_up
            self.pause(now)
        self._looks.append(demand.lacking)
        wanted = min(self._unneeded(now, demand), most)
        if sum(self._looks) >= _LACKING:
            wanted = min(2 * demand.replicas, most)
        wanted = max(wanted, least)
        if wanted > demand.replicas and now < self._not_before:
            return demand.replicas
        if wanted != demand.replicas:
            self._looks.clear()
        return wanted

    def pause(self, now: float) -> None:
        """There cannot be more now: it is tried again after a while."""
        self._not_before = now + _RETRY_SECONDS

    def _unneeded(self, now: float, demand: Demand) -> int:
        """The replicas without those that were not needed for long."""
        if self._since is None or demand.busy >= demand.replicas or demand.waiting or demand.warm < demand.replicas:
            self._since, self._most_busy = now, 0
        self._most_busy = max(self._most_busy, demand.busy)
        if now - self._since < self._idle_seconds:
            return demand.replicas
        needed = max(1, self._most_busy)
        self._since, self._most_busy = now, 0
        return needed
