"""A timer for the steps of a handler."""

import functools
import time
from collections.abc import Callable
from typing import Any


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Measure a method of a handler, and report it to the handler's metrics."""

    @functools.wraps(function)
    def measured(self: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        result = function(self, *args, **kwargs)
        metrics = getattr(getattr(self, "context", None), "metrics", None)
        if metrics is not None:
            metrics.add_time(f"ts_handler_{function.__name__}", 1000 * (time.monotonic() - started))
        return result

    return measured
