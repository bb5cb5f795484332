"""Pictures that are small to send and dear to decode: A2."""

import json
import random
from dataclasses import dataclass

from chaos import pictures
from chaos.client import OK, Ask, nonce
from chaos.ledger import Ledger, Row, percentile
from chaos.run import Report, Run, passing
from chaos.wire import Answer, request

_GREEDY = 8  # clients that send them
_MOST_SLOWDOWN = 2.0  # of the others' p99
_SLACK = 0.05  # seconds; a p99 of a few milliseconds is within the noise of a busy machine
_FLAGS = ("--replicas", "2", "--compute-timeout", "10")


@dataclass(frozen=True)
class PictureAsk(Ask):
    """A picture to be classified; the nonce is not in it, for there is nothing in an answer to find it by."""

    data: bytes = b""

    def encode(self) -> bytes:
        """As a raw body."""
        return request("POST", "/predict", body=self.data, headers=(("Content-Type", "application/octet-stream"),))


def _is_class(_: str, answer: Answer) -> str:
    return "" if "class_id" in json.loads(answer.body) else f"no class: {answer.body[:120]!r}"


async def dear_pictures(run: Run) -> Report:
    """A JPEG of 40 megapixels and 7,000 scans, from eight clients, beside others with an honest one."""
    honest, dear = pictures.small("JPEG", (640, 480)), pictures.repeated_scans(6300, 7000)

    def other(rng: random.Random) -> Ask:
        return PictureAsk(nonce(rng), group="other", verify=_is_class, data=honest)

    def greedy(rng: random.Random) -> Ask:
        refused = frozenset({(413, "image_too_large")})
        return PictureAsk(nonce(rng), "dear", group="dear", expect=refused, verify=_is_class, data=dear)

    alone = Ledger()
    async with run.stage("", *_FLAGS, deadline=60.0) as stage:
        async with stage.load(other, clients=4, ledger=alone):
            await passing(run.seconds / 2)
        async with stage.load(other, clients=4), stage.load(greedy, clients=_GREEDY):
            await passing(run.seconds / 2)
        lost = stage.server.logged("worker lost")
        stage.require(not lost, f"{lost} workers lost")
    others = [row for row in stage.ledger.rows if row.group == "other"]
    before, beside = _p99(alone.rows), _p99(others)
    failed = sum((row.status, row.code) != OK for row in others)
    stage.require(not failed, f"{failed} of {len(others)} requests of others failed")
    stage.require(
        beside <= _MOST_SLOWDOWN * before + _SLACK, f"the others' p99 is {beside / before:.1f} times what it was"
    )
    dear_rows = [row for row in stage.ledger.rows if row.group == "dear"]
    figures = (
        f"others' p99 {1000 * before:.0f} ms before, {1000 * beside:.0f} ms beside it, "
        f"{failed} of {len(others)} failed; "
        f"{len(dear_rows)} dear pictures, p99 {1000 * _p99(dear_rows):.0f} ms; "
        f"{lost} workers lost; {stage.ledger.summary()}"
    )
    what = f"{_GREEDY} clients with a JPEG of 6300 × 6300 pixels in 7,000 scans ({len(dear) // 1024} KiB)"
    return run.report("A2/pictures", f"{what} beside 4 with an honest one, for {run.seconds / 2:g} s", figures, stage)


def _p99(rows: list[Row]) -> float:
    return percentile((row.seconds for row in rows), 0.99)
