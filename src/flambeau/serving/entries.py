"""What waits in a queue: the items of a request, each with its one outcome. It knows no queue and no runner."""

import asyncio
from typing import Any

from flambeau.types import Item, Outcome


class Request:
    """The outcomes of one request's items, which its caller awaits together.

    `left`: how many items have no outcome yet. `gone`: the caller does not wait any more.
    """

    __slots__ = ("_outcomes", "answered", "gone", "left")

    def __init__(self, items: int) -> None:
        self._outcomes: list[Any] = [None] * items
        self.left = items
        self.gone = False
        self.answered: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        if not items:
            self.answered.set_result([])

    def take(self, place: int, outcome: Outcome) -> None:
        """Take the outcome of one item, once."""
        self._outcomes[place] = outcome
        self.left -= 1
        if not self.left and not self.answered.done():
            self.answered.set_result(self._outcomes)


class Entry:
    """An item in a queue, until it has its outcome.

    `size` in bytes; `queued_at` and `deadline` are times of the loop's clock; `number` is the request's, and `place`
    the item's among those of its request. `hung`: it was in a batch that hung; `hurried`: it hung alone, and was ended
    early.
    """

    __slots__ = (
        "deadline", "done", "heavy", "hung", "hurried", "item", "kills", "losses", "number", "place", "queued_at",
        "request", "size", "waits",
    )  # fmt: skip

    def __init__(
        self,
        item: Item,
        size: int,
        request: Request,
        queued_at: float,
        deadline: float,
        number: int,
        place: int,
        heavy: bool,
    ) -> None:
        self.item = item
        self.size = size
        self.request = request
        self.queued_at = queued_at
        self.deadline = deadline
        self.number = number
        self.place = place
        self.heavy = heavy
        self.waits = self.done = self.hung = self.hurried = False
        self.losses = self.kills = 0

    def resolve(self, outcome: Outcome) -> None:
        """Give it its outcome. Call it once."""
        self.done = True
        self.request.take(self.place, outcome)
