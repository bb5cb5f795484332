"""One request over a connection of ours, from its head until its answer is written. It parses and sends nothing."""

import asyncio
import time
from typing import Protocol

from flambeau.http.answer_bytes import RawAnswer
from flambeau.http.heads import Peer, RequestHead
from flambeau.http.request_body import BodyBuffer, Share
from flambeau.protocols.messages import HttpAnswer, new_id
from flambeau.system.eager import Eager

Answer = HttpAnswer | RawAnswer


class Owner(Protocol):
    """The connection of an exchange."""

    def answered(self, exchange: "Exchange", found: Answer) -> None:
        """The exchange has its answer."""
        ...

    def failed(self, exchange: "Exchange", error: BaseException) -> None:
        """The exchange has no answer: it was cancelled, or something is wrong with us."""
        ...


class Exchange:
    """A request, its body as it comes, and its answer as it goes.

    `body` and `share` are there while it has a body that is not refused; `held` are the bytes of the budget that it
    holds without a share, because its body came with its head. `discarded`: bytes of a body that nobody wants.
    """

    __slots__ = (
        "_owner", "answer", "answering", "body", "discarded", "head", "held", "identity", "keep_alive", "peer",
        "received", "sent", "share", "whole",
    )  # fmt: skip

    def __init__(self, owner: Owner, head: RequestHead, peer: Peer) -> None:
        self._owner = owner
        self.head = head
        self.peer = peer
        self.received = time.monotonic()
        self.identity = head.identity or new_id()
        self.keep_alive = head.keep_alive
        self.body: BodyBuffer | None = None
        self.share: Share | None = None
        self.held = self.discarded = 0
        self.whole = False
        """Whether all of the request has come."""
        self.answering: Eager[HttpAnswer] | asyncio.Task[RawAnswer] | None = None
        self.answer: Answer | None = None
        self.sent = False

    def ended(self, found: Answer | None, error: BaseException | None) -> None:
        """The request was answered, or given up."""
        self.answering = None
        try:
            if found is not None:
                self._owner.answered(self, found)
                return
        except Exception as unsent:  # an answer that cannot be written: its client must not wait, nor hold memory
            error = unsent
        self._owner.failed(self, error or RuntimeError("there is no answer"))

    def task_ended(self, task: "asyncio.Task[RawAnswer]") -> None:
        """The same, for a task."""
        if task.cancelled():
            self.ended(None, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self.ended(None, error)
        else:
            self.ended(task.result(), None)

    def cancel(self) -> None:
        """Nobody waits for the answer: items that are still queued are not computed."""
        if self.answering is not None:
            self.answering.cancel()

    def abandon(self) -> None:
        """The client is gone. What runs in a thread, or changes the service, goes on."""
        match = self.head.match
        if match is not None and match.route.waits:
            self.cancel()
