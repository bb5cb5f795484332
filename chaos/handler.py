"""A handler of TorchServe that answers as `chaos.model` does, and does what items ask for.

It is the file of a `.mar`, with `model.py` beside it. Two commands befall handlers more than others: memory that is
never given back, and children that stay.
"""

import os
import time
from typing import Any

from model import BEFORE, answer  # type: ignore[import-not-found]  # chaos/model.py, in the archive

_kept: list[bytearray] = []


def _leak(item: dict[str, Any]) -> None:
    block = bytearray(int(item["bytes"]))
    block[::4096] = b"x" * len(block[::4096])
    _kept.append(block)


def _fork(item: dict[str, Any]) -> None:
    if not os.fork():
        time.sleep(600)
        os._exit(0)


_COMMANDS = {**BEFORE, "leak": _leak, "fork": _fork}


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[Any] | None:
    """The function that TorchServe calls: once with `None`, then with each batch."""
    if data is None:
        return None
    items = [row["body"] for row in data]
    time.sleep(0.02)
    for item in items:
        if command := _COMMANDS.get(item["do"]):
            command(item)
    return [answer(item) for item in items]
