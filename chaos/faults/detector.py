"""A detector whose workers are killed: no request may fail, and every answer must have its own picture's boxes."""

import asyncio
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from chaos.client import Ask, Client, nonce
from chaos.faults.kills import every, rate
from chaos.ledger import Ledger
from chaos.run import Report, Run, Stage, passing
from chaos.server import ServerError
from chaos.wire import Answer, request, strict_json

_PICTURES = 8
_CLIENTS = 8
_SQUARES = (16, 12)
_SIZE = (480, 360)
_SCORE = 1e-3
_PIXELS = 0.5
_LEAST = 0.4

Objects = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class DetectorAsk(Ask):
    """A picture in which objects are to be found."""

    data: bytes = b""

    def encode(self) -> bytes:
        """As a raw body."""
        headers = (("Content-Type", "image/png"),)
        return request("POST", f"/predict?threshold={_LEAST}", body=self.data, headers=headers)


async def detector(run: Run, fault: str, *, seconds: float) -> Report:
    """kill -9 of a random worker every 2 s, under clients that send pictures to a detector."""
    bundle = await _built(run.folder)
    pictures = [_picture(run.rng()) for _ in range(_PICTURES)]
    period = min(2.0, seconds / 3)
    async with run.stage("", str(bundle), "--replicas", "2") as stage:
        expected = [await _found(stage, data) for data in pictures]
        for place, one in enumerate(expected):
            alike = any(not apart(one, other) for other in expected[:place])
            stage.require(bool(one) and not alike, "two pictures have the same boxes, or one has none")

        def make(rng: random.Random) -> Ask:
            place = rng.randrange(_PICTURES)
            return DetectorAsk(
                nonce(rng), verify=lambda _, answer: _wrong(expected[place], answer), data=pictures[place]
            )

        async with stage.load(make, clients=_CLIENTS), every(period, stage, run.rng(), how_many=1) as kills:
            await passing(seconds)
    stage.require(len(kills) > 1, f"only {len(kills)} kills")
    wrong = sum(bool(row.err) for row in stage.ledger.rows if row.status == 200)
    boxes = sum(map(len, expected)) / _PICTURES
    what = (
        f"a detector of torchvision over {_PICTURES} pictures of {boxes:.0f} boxes: kill -9 of a random worker every "
        f"{period:.1f} s for {seconds:g} s, 2 replicas, {_CLIENTS} clients"
    )
    return run.report(
        fault, what, f"{len(kills)} kills; {rate(stage, seconds)}; {wrong} answers with wrong boxes", stage
    )


async def _built(folder: Path) -> Path:
    """The bundle of the detector."""
    weights, bundle = folder / "detector.pth", folder / "detector"
    await _done(sys.executable, "-m", "benchmarks.places_weights", "ssdlite320_mobilenet_v3_large", "3", str(weights))
    await _done(sys.executable, "-m", "flambeau", "build", str(weights), "-o", str(bundle))
    return bundle


async def _done(*command: str) -> None:
    """Run a command to its end. Raises `ServerError` with what it said when it fails."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    said, _ = await process.communicate()
    if process.returncode:
        raise ServerError(f"{' '.join(command[1:4])}: {said.decode()[-1000:]}")


def _picture(rng: random.Random) -> bytes:
    """Coloured squares, as a PNG."""
    squares = Image.frombytes("RGB", _SQUARES, rng.randbytes(3 * _SQUARES[0] * _SQUARES[1]))
    file = BytesIO()
    squares.resize(_SIZE, Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


async def _found(stage: Stage, data: bytes) -> Objects:
    """What it finds in a picture before anything goes wrong."""
    seen: list[Objects] = []

    def keep(_: str, answer: Answer) -> str:
        seen.append(_objects(answer))
        return ""

    client: Client = stage.client(Ledger())
    try:
        await client.ask(DetectorAsk("00", verify=keep, data=data))
    finally:
        client.close()
    if not seen:
        raise ServerError("the detector did not answer a picture")
    return seen[0]


def _objects(answer: Answer) -> Objects:
    body: Any = strict_json(answer.body)
    found: Objects = body["predictions"]
    return found


def _wrong(expected: Objects, answer: Answer) -> str:
    try:
        return "wrong boxes" if apart(expected, _objects(answer)) else ""
    except (ValueError, LookupError, TypeError) as error:
        return f"no objects: {error}: {json.dumps(answer.body[:80].decode(errors='replace'))}"


def apart(expected: Objects, found: Objects) -> bool:
    """Whether two lists of objects differ. One whose score is at the threshold may be in either alone."""
    left = list(found)
    for each in expected:
        same = next((other for other in left if _same(each, other)), None)
        if same is not None:
            left.remove(same)
        elif each["score"] > _LEAST + _SCORE:
            return True
    return any(other["score"] > _LEAST + _SCORE for other in left)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    near = all(abs(one["box"][side] - other["box"][side]) <= _PIXELS for side in one["box"])
    return near and one["label"] == other["label"] and abs(one["score"] - other["score"]) <= _SCORE
