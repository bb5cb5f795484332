"""BentoML: a service class; its workers are processes that share the listening socket."""

from pathlib import Path
from typing import Any

import bentoml

from benchmarks.apps.model import load
from benchmarks.apps.order import ordered

order = ordered()
service = bentoml.service(workers=order.workers, traffic={"timeout": 120}, logging={"access": {"enabled": False}})


class Photographs:
    """Takes a file by multipart, which BentoML hands over as a path."""

    def __init__(self) -> None:
        self.model = load(order)

    @bentoml.api(route="/predict")
    def predict(self, file: Path) -> dict[str, Any]:
        """The class of a photograph."""
        return self.model.answer([self.model.prepare(file.read_bytes())])[0]


class Numbers:
    """Takes the numbers by JSON."""

    def __init__(self) -> None:
        self.model = load(order)

    @bentoml.api(route="/predict")
    def predict(self, input: list[float]) -> dict[str, Any]:  # noqa: A002 (the name in the JSON)
        """The outputs."""
        return self.model.answer([self.model.prepare(input)])[0]


Service = service(Numbers if order.numbers else Photographs)
