"""A dimension of a metric."""

from typing import Any


class Dimension:
    """A name and a value."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"
