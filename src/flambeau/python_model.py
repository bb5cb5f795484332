"""The base class for models written in Python."""

from abc import ABC, abstractmethod
from typing import Any


class PythonModel(ABC):
    """A model in your own code, served by `flambeau serve file.py:Class --allow-code`.

    One instance is made per replica and is used by one thread at a time, so it needs no locks.
    """

    def load(self) -> None:  # noqa: B027 (a model without weights has nothing to load)
        """Prepare the model: read weights, build tables. Called once per replica, before the first `predict`."""

    @abstractmethod
    def predict(self, batch: list[Any]) -> list[Any]:
        """Answer a batch: as many answers as items, in the same order.

        An item is the JSON value under `"input"`, or the uploaded bytes. An answer is a JSON-able value, a numpy
        array or a torch tensor; an exception instance as an answer fails that item alone. Raise
        `flambeau.InvalidInput("...")` (or return it) to say that the input is at fault.
        """
