"""A reader of the log that stops to read, and reads again: A21."""

import asyncio
import os
import random
import re
import time

from chaos.client import Ask, get, nonce
from chaos.run import Report, Run, Stage, passing
from chaos.server import eventually
from chaos.wire import LostError

_LOUD, _LINES = 0.125, 100  # the share of the items over which the model prints, and how many lines
_GAP = re.compile(rb'"lines of the log were dropped","dropped":(\d+)')
_CATCH_UP_SECONDS = 20.0


class _Reader:
    """Somebody who reads the log, or does not."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.gaps: list[int] = []
        self._tail = b""
        os.set_blocking(self.reading, False)

    def go_on(self) -> None:
        """Read from now on."""
        asyncio.get_running_loop().add_reader(self.reading, self._read)

    def stop(self) -> None:
        """Read no more."""
        asyncio.get_running_loop().remove_reader(self.reading)

    def _read(self) -> None:
        *lines, self._tail = (self._tail + os.read(self.reading, 1 << 20)).split(b"\n")
        self.gaps += [int(found[1]) for line in lines if (found := _GAP.search(line))]

    def close(self) -> None:
        """Let go of the pipe."""
        self.stop()
        os.close(self.reading)
        os.close(self.writing)


class _Asker:
    """Asks, and now and then for something to be printed."""

    group = "read"

    def make(self, rng: random.Random) -> Ask:
        """The next request."""
        if rng.random() < _LOUD:
            return Ask(nonce(rng), "print", {"lines": _LINES}, group=self.group)
        return Ask(nonce(rng), group=self.group)


async def stalled_reader(run: Run) -> Report:
    """The reader of standard error reads, does not, reads again; and does not when the service is stopped."""
    reader, asker = _Reader(), _Asker()
    window = run.seconds / 2
    flags = ("--replicas", "2", "--max-batch-size", "8", "--log-format", "json")
    try:
        async with run.stage("Echo", *flags, stderr=reader.writing) as stage:
            async with stage.load(asker.make):
                reader.go_on()
                await passing(window)
                asker.group = "stalled"
                reader.stop()
                await passing(window)
            lost = await _dropped(stage)
            stage.require(lost > 0, "nothing was dropped: the reader did not stall long enough")
            reader.go_on()
            # a slow machine may have told of some already, while the reader read
            told = await eventually(lambda: sum(reader.gaps) >= lost, _CATCH_UP_SECONDS)
            stage.require(told, f"{lost} lines were dropped, {sum(reader.gaps)} were told")
            reader.stop()
            async with stage.load(asker.make):
                await passing(min(1.0, window))
            stopping = time.monotonic()
        stopped = time.monotonic() - stopping
    finally:
        reader.close()
    figures = (
        f"read {_rate(stage, 'read', window)}, stalled {_rate(stage, 'stalled', window)}; "
        f"{lost} lines dropped, told by {len(reader.gaps)}; ended after {stopped:.1f} s; {stage.ledger.summary()}"
    )
    what = f"standard error is a pipe that is read for {window:g} s, then not; {_LINES} lines printed over an item in 8"
    return run.report("A21", what, figures, stage)


async def _dropped(stage: Stage) -> int:
    try:
        answer = await get(stage.server.port, "/metrics")
    except LostError as error:
        stage.require(False, f"/metrics: {error}")
        return 0
    found = re.search(rb"^flambeau_log_dropped_total (\S+)$", answer.body, re.MULTILINE)
    return int(float(found[1])) if found else 0


def _rate(stage: Stage, group: str, seconds: float) -> str:
    good = sum(row.good and row.group == group for row in stage.ledger.rows)
    return f"{good / seconds:.0f}/s with p99 {1000 * stage.latency(group=group):.0f} ms"
