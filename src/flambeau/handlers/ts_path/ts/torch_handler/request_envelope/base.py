"""The base of envelopes: they stand between the server and a handler's function."""

from collections.abc import Callable
from typing import Any


class BaseEnvelope:
    """Subclasses say what becomes of requests, and of answers."""

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        self._handle_fn = handle_fn
        self.context: Any = None

    def handle(self, data: Any, context: Any) -> Any:
        """The answers to a request, in their envelope."""
        self.context = context
        found = self._handle_fn(self.parse_input(data) if data else data, context)
        return self.format_output(found) if found else found

    def parse_input(self, data: list[Any]) -> list[Any]:
        """What the handler is given. Raises `PredictionException` for a request that has not the form."""
        raise NotImplementedError

    def format_output(self, data: list[Any]) -> list[Any]:
        """What is answered."""
        raise NotImplementedError


def content(row: Any) -> Any:
    """What a request brought: its field `data`, or its body."""
    return (row.get("data") or row.get("body")) if isinstance(row, dict) else row
