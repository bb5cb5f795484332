"""How often: requests by the `limits` library where a rate is set, and wrong tokens always. Memory is bounded."""

import math
import time
from collections import OrderedDict

from flambeau.errors import ConfigError
from flambeau.system.machine import pip_install

_MOST_KEYS = 4096
_ATTEMPTS, _ATTEMPT_WINDOW = 10, 60.0


class Rate:
    """So many requests in so much time for each key: two counters a key, whatever the rate."""

    def __init__(self, text: str) -> None:
        """`text` is as in `100/minute`. Raises `ConfigError`."""
        try:
            import limits
            from limits.storage import MemoryStorage
            from limits.strategies import SlidingWindowCounterRateLimiter
        except ImportError as error:
            raise ConfigError(f"--rate-limit needs the package limits: {pip_install('rate-limit')}") from error
        try:
            self._rate = limits.parse(text)
        except ValueError:
            raise ConfigError(f"--rate-limit {text} is not a rate: write it as in 100/minute or 5/second") from None
        self.most: int = self._rate.amount
        self._storage = MemoryStorage()
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    def take(self, key: str, items: int = 1) -> int:
        """Count so many items of `key`: 0 when they may go on, else the seconds after which it may try again.

        What may not go on is not counted.
        """
        if (
            len(self._storage.storage) > 2 * _MOST_KEYS
            and self._limiter.get_window_stats(self._rate, key).remaining == self._rate.amount
        ):
            key = "others"  # newcomers share one, so that a flood of addresses cannot take the memory
        if self._limiter.hit(self._rate, key, cost=items):
            return 0
        return max(1, math.ceil(self._limiter.get_window_stats(self._rate, key).reset_time - time.time()))


class Attempts:
    """Wrong tokens by client address. A right token is never refused for another's wrong ones behind one address."""

    def __init__(self) -> None:
        self._failed: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when its window began, and how many

    def note(self, address: str) -> int:
        """Count a wrong token: 0 while that may be a mistake, else the seconds after which it may try again."""
        now = time.monotonic()
        began, count = self._failed.get(address, (now, 0))
        if now - began >= _ATTEMPT_WINDOW:
            began, count = now, 0
        self._failed[address] = (began, count + 1)
        self._failed.move_to_end(address)
        if len(self._failed) > _MOST_KEYS:
            self._failed.popitem(last=False)
        return 0 if count < _ATTEMPTS else math.ceil(_ATTEMPT_WINDOW - (now - began))
