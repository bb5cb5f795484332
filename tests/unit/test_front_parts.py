"""Parts of the front that save work for each request: known heads, ids, deadlines, frames, lines of the log."""

import asyncio
import json
import os
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from flambeau.http.heads import KnownHeads, PredictionHead
from flambeau.http.request_body import JOINED, BodyBuffer
from flambeau.protocols.messages import HttpAnswer, new_id
from flambeau.protocols.routes import Match, Route
from flambeau.runners import wire
from flambeau.runners.base import ReplicaInfo
from flambeau.runners.worker_pipe import WorkerPipe
from flambeau.serving.deadlines import Deadlines
from flambeau.serving.entries import Entry, Request
from flambeau.telemetry import logs
from flambeau.telemetry.log_writer import LogEvent, LogWriter
from flambeau.types import Item, Options, Payload
from tests.support.batch_bench import on_loop

FIELDS = [(b"host", b"x"), (b"content-length", b"5")]
PLAIN = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


def head(*, keep_alive: bool = True) -> PredictionHead:
    async def answer() -> HttpAnswer:
        return HttpAnswer(200, b"")

    match = Match(Route("POST", "/predict", "infer", answer), {})
    headers = {"host": "x", "content-length": "5"}
    return PredictionHead(match, "/predict", "", headers, length=5, keep_alive=keep_alive, root="http://x/")


def test_a_head_is_known_by_all_its_bytes() -> None:
    known, one = KnownHeads(), head()
    known.keep(PLAIN, one, FIELDS)
    assert known.get(PLAIN) is one
    assert known.get(PLAIN.replace(b"5", b"6")) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /predict HTTP/1.1\nHost: x\nContent-Length: 5\n\nhello" + b"GET / HTTP/1.1\r\n\r\n",  # it ended earlier
        PLAIN.replace(b"Host: x", b"Host:\r\n x"),  # a line that goes on
        b"\r\n" + PLAIN,
        PLAIN[:-2],
        PLAIN.replace(b"x\r\n", b"x\r\r\n"),
    ],
)
def test_a_head_whose_end_could_be_disputed_is_not_kept(raw: bytes) -> None:
    known = KnownHeads()
    known.keep(raw, head(), FIELDS)
    assert known.get(raw) is None


def test_a_head_that_closes_its_connection_is_not_kept() -> None:
    known = KnownHeads()
    known.keep(PLAIN, head(keep_alive=False), FIELDS)
    assert known.get(PLAIN) is None


def test_known_heads_are_bounded_and_the_used_ones_stay() -> None:
    known = KnownHeads()
    known.keep(PLAIN, head(), FIELDS)
    for number in range(2000):
        known.keep(PLAIN.replace(b"x\r\n", b"%d\r\n" % number), head(), FIELDS)
        assert known.get(PLAIN) is not None
    assert known.get(PLAIN.replace(b"x\r\n", b"3\r\n")) is None


def test_ids_are_sixteen_digits_and_never_the_same() -> None:
    with ThreadPoolExecutor(4) as threads:
        found = [each for ids in threads.map(lambda _: [new_id() for _ in range(2000)], range(8)) for each in ids]
    assert len(set(found)) == 16_000
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in found)


def test_a_forked_process_gives_other_ids() -> None:
    new_id()
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, new_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 16)[:10] != new_id()[:10].encode()
    os.close(reading)
    os.close(writing)


def entry(deadline: float) -> Entry:
    return Entry(Item(Payload("json", b"1"), Options()), 1, Request(1), 0.0, deadline, 0, 0, False)


@on_loop
async def test_deadlines_pass_in_their_order_and_not_early() -> None:
    now = asyncio.get_running_loop().time()
    passed: list[tuple[Entry, float]] = []
    deadlines = Deadlines(lambda each: passed.append((each, asyncio.get_running_loop().time())))
    after = [0.6, 0.02, -1.0, 0.3, 0.31]
    entries = [entry(now + seconds) for seconds in after]
    gone = entry(now + 0.3)
    near = entry(now + 0.03)
    for each in (*entries, gone, near):
        deadlines.add(each)
    deadlines.remove(gone)
    deadlines.remove(near)
    while len(passed) < len(entries):
        await asyncio.sleep(0.01)
    assert [each for each, _ in passed] == [entries[place] for place in (2, 1, 3, 4, 0)]
    assert all(at >= each.deadline - 0.002 for each, at in passed)


def frame(size: int) -> bytes:
    return wire.pack_ready(7, ReplicaInfo("x" * size))


@pytest.mark.parametrize("piece", [1, 7, 100, 100_000])
def test_frames_are_whole_however_they_come(piece: int) -> None:
    async def test() -> None:
        taken: list[tuple[int, str]] = []
        silences: list[Exception | None] = []

        def take(header: wire.Header, body: wire.Buffer) -> None:
            found = wire.unpack_start(header.kind, body)
            assert isinstance(found, ReplicaInfo)
            taken.append((header.generation, found.device))

        pipe = WorkerPipe(take, silences.append)
        sent = b"".join(map(frame, (0, 300, 2)))
        for start in range(0, len(sent), piece):
            pipe.data_received(sent[start : start + piece])
        assert taken == [(7, ""), (7, "x" * 300), (7, "xx")]
        pipe.data_received(struct.pack("<I", 12) * 20)  # no frame
        pipe.data_received(frame(1))
        assert len(taken) == 3
        [error] = silences
        assert isinstance(error, wire.FrameError)
        assert pipe.ended.done()

    asyncio.run(test())


def test_events_become_lines_in_order_with_what_is_dropped_counted() -> None:
    reading, writing = os.pipe()
    writer = LogWriter(
        writing, lambda lines: b"gap %d\n" % lines, lambda each: f"{each.message}\n".encode(), most_lines=4
    )
    writer.put(b"first\n")
    writer.put_event(LogEvent(0.0, "second", {}))
    assert writer.flush(10)
    assert os.read(reading, 100) == b"first\nsecond\n"
    with writer._lock:  # the thread may collect, but nothing is counted as done
        for number in range(9):
            writer.put_event(LogEvent(0.0, str(number), {}))
    assert writer.flush(10)
    said = os.read(reading, 100).decode().split()
    assert writer.dropped == int(said[said.index("gap") + 1])
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    "text", ["plain", 'a "quoted" one', "\x7f", "\x9b31m", "line\u2028end", "half \ud800", "x" * 900]
)
def test_a_line_made_later_says_what_one_made_at_once_says(text: str) -> None:
    pairs: dict[str, object] = {"id": text, "status": 200, "ms": 1.23456, "code": None, "on": True}
    found = json.loads(logs.rendered(LogEvent(1_700_000_000.5, "POST /predict", pairs), as_json=True))
    assert found["time"] == "2023-11-14T22:13:20.500Z"
    assert (found["status"], found["ms"], found["on"], "code" in found) == (200, 1.235, True, False)
    line = logs.rendered(LogEvent(1_700_000_000.5, "POST /predict", pairs), as_json=False).decode()
    assert line.count("\n") == 1
    assert "status=200 ms=1.2 on=True" in line
    assert line[:-1].isprintable()


def test_the_memory_of_a_body_is_used_again_when_nobody_can_read_it_and_not_before() -> None:
    """No body changes as long as there is a view of it, however small; and a thousand take no more than a few."""

    def body(seed: int, size: int) -> memoryview:
        buffer = BodyBuffer(size)
        data = bytes([seed]) * size
        assert buffer.add(data[:70_000])
        room = buffer.room()
        assert room is not None
        room[:] = data[70_000:]
        buffer.came(len(room))
        found = buffer.whole()
        assert isinstance(found, memoryview)
        return found

    sizes = (602_112, 1024 * 1024, 1024 * 1024 + 1, JOINED + 1)
    held = [(seed, body(seed, sizes[seed % 4])[1000:1010]) for seed in range(100)]
    assert all(bytes(view) == bytes([seed]) * 10 for seed, view in held)
    del held
    tracemalloc.start()
    for seed in range(100):
        assert body(seed, 602_112) == bytes([seed]) * 602_112
    assert tracemalloc.get_traced_memory()[0] < 100_000  # they were there before
    tracemalloc.stop()
