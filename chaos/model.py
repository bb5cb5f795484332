"""The models the server is started with: each answer proves which request it belongs to, and items ask for faults.

An item is `{"nonce": hex, "do": command, ...}`. Its answer holds the SHA-256 of the nonce, so that the client can
recompute it. A batch takes the time of its class, however many items it has. Where one item asks for a fault, the
whole batch suffers it, as it does with real models.
"""

import ctypes
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flambeau

Item = dict[str, Any]
Answers = list[Any]

BROKEN_FLAG = "broken"
"""A file of this name in TMPDIR keeps `Mendable` from loading."""

HUGE_BYTES = 300 * 1024 * 1024


class Unspeakable:
    """An object that has no JSON form."""


def answer(item: Item) -> dict[str, Any]:
    """What belongs to this item and to no other."""
    return {"hash": hashlib.sha256(str(item["nonce"]).encode()).hexdigest()}


def _fail(item: Item) -> None:
    raise RuntimeError("this item makes the whole batch fail")


def _leave(item: Item) -> None:
    sys.exit(3)


def _crash(item: Item) -> None:
    ctypes.string_at(0)


def _abort(item: Item) -> None:
    os.abort()


def _exit(item: Item) -> None:
    os._exit(3)


def _hang(item: Item) -> None:
    while True:
        pass


def _sleep(item: Item) -> None:
    time.sleep(float(item["seconds"]))


def _allocate(item: Item) -> None:
    block = bytearray(int(item["bytes"]))
    block[-1] = 1


def _print(item: Item) -> None:
    for _ in range(int(item["lines"])):
        print("x" * 500)


BEFORE: dict[str, Callable[[Item], None]] = {
    "raise": _fail,
    "sys_exit": _leave,
    "segv": _crash,
    "abort": _abort,
    "exit": _exit,
    "hang": _hang,
    "sleep": _sleep,
    "allocate": _allocate,
    "print": _print,
}
"""Commands that befall the batch before it is answered."""


def _nan(item: Item) -> dict[str, Any]:
    bad = [float("nan"), float("inf"), -float("inf"), 1.5]
    return answer(item) | {"numbers": bad}


def _circle() -> Answers:
    circle: Answers = []
    circle.append(circle)
    return circle


ALONE: dict[str, Callable[[Item], Any]] = {
    "invalid": lambda item: flambeau.InvalidInput("this item says of itself that it is invalid"),
    "error": lambda item: ValueError("this item fails alone"),
    "nan": _nan,
    "object": lambda item: Unspeakable(),
    "complex": lambda item: complex(1, 2),
    "function": lambda item: _nan,
    "circle": lambda item: _circle(),
    "odd_keys": lambda item: {(1, 2): 3},
    "huge": lambda item: "x" * HUGE_BYTES,
}
"""Commands whose answer takes the place of the item's own."""

WHOLE: dict[str, Callable[[Answers], Any]] = {
    "too_many": lambda answers: [*answers, {"hash": "nobody's"}],
    "too_few": lambda answers: answers[:-1],
    "none": lambda answers: None,
    "text": lambda answers: "x" * len(answers),
    "mapping": lambda answers: dict(enumerate(answers)),
    "number": lambda answers: 7,
    "generator": lambda answers: (each for each in answers),
}
"""Commands that spoil the list of answers as a whole."""


def _answer_alone(item: Item) -> Any:
    command: Callable[[Item], Any] = ALONE.get(item["do"], answer)
    return command(item)


class Echo(flambeau.PythonModel):
    """Answers at once."""

    PER_BATCH = 0.0  # seconds

    def predict(self, batch: list[Item]) -> Any:
        """Do what the items say, and answer those that are left to be answered."""
        if self.PER_BATCH:
            time.sleep(self.PER_BATCH)
        for item in batch:
            if before := BEFORE.get(item["do"]):
                before(item)
        answers = [_answer_alone(item) for item in batch]
        for item in batch:
            if whole := WHOLE.get(item["do"]):
                return whole(answers)
        return answers


class Same(flambeau.PythonModel):
    """Answers with what it was given, whatever that is; with numbers that are none for `nan`."""

    def predict(self, batch: list[Any]) -> Any:
        """The items themselves."""
        return [[float("nan"), float("inf")] if item == "nan" else item for item in batch]


class Slow20(Echo):
    """20 ms a batch."""

    PER_BATCH = 0.02


class Slow50(Echo):
    """50 ms a batch."""

    PER_BATCH = 0.05


class Recording(Echo):
    """50 ms a batch; remembers when it began to compute which nonce, and tells it to an item that asks `report`."""

    PER_BATCH = 0.05

    def load(self) -> None:
        self.began: dict[str, float] = {}

    def predict(self, batch: list[Item]) -> Any:
        """As `Echo`, with a record. Times are of CLOCK_MONOTONIC, which all processes of a machine share."""
        now = time.monotonic()
        self.began |= {str(item["nonce"]): now for item in batch if item["do"] != "report"}
        answers: Answers = super().predict(batch)
        return [
            each | {"began": self.began} if item["do"] == "report" else each
            for item, each in zip(batch, answers, strict=True)
        ]


class Slow300Recording(Recording):
    """As `Recording`, 300 ms a batch."""

    PER_BATCH = 0.3


class Broken(Echo):
    """Cannot start."""

    def load(self) -> None:
        raise RuntimeError("the weights are not there")


class Mendable(Slow20):
    """Cannot start while a file in TMPDIR forbids it."""

    def load(self) -> None:
        if Path(tempfile.gettempdir(), BROKEN_FLAG).exists():
            raise RuntimeError("the weights are broken for now")


class LateStarter(Slow20):
    """Takes a second to load."""

    def load(self) -> None:
        time.sleep(1.0)
