"""TorchServe: a handler in worker processes behind its Java front. It is given lists of requests, always."""

import json
from typing import Any

from benchmarks.apps.model import Model, load
from benchmarks.apps.order import ordered

order = ordered()


class Handler:
    """The class-based entry point that TorchServe looks for."""

    model: Model

    def initialize(self, _: Any) -> None:
        """Load the model, in each worker."""
        self.model = load(order)

    def handle(self, requests: list[dict[str, Any]], _: Any) -> list[dict[str, Any]]:
        """The answers to a batch of requests."""
        return self.model.answer([self.model.prepare(_given(request)) for request in requests])


def _given(request: dict[str, Any]) -> Any:
    body = request.get("file") or request.get("body") or request.get("data")
    if not order.numbers:
        return bytes(body)  # type: ignore[arg-type]
    return (body if isinstance(body, dict) else json.loads(body))["input"]  # type: ignore[arg-type]
