"""Parts of the front that save work for each request: known heads, ids, deadlines, frames, lines of the log."""

import asyncio
import contextlib
import json
import os
import socket
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from flambeau.http import request_body
from flambeau.http.answer_bytes import raw, serialised, serialised_raw
from flambeau.http.framing import Headers
from flambeau.http.heads import KnownHeads, RequestHead
from flambeau.http.loops import loop_factory
from flambeau.http.request_body import JOINED, BodyBuffer
from flambeau.protocols.messages import HttpAnswer, new_id
from flambeau.protocols.routes import Route, RouteTable
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


async def answer() -> HttpAnswer:
    return HttpAnswer(200, b"")


TABLE = RouteTable([Route("POST", "/predict", "infer", answer), Route("GET", "/predict", "infer", answer)])


def head(fields: Headers = FIELDS, *, method: str = "POST", version: str = "1.1", keep: bool = True) -> RequestHead:
    return RequestHead(method, "/predict", "", fields, TABLE, version=version, keep_alive=keep)


def test_a_head_is_known_by_all_its_bytes() -> None:
    known, one = KnownHeads(), head()
    known.keep(PLAIN, one)
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
    known.keep(raw, head())
    assert known.get(raw) is None


@pytest.mark.parametrize(
    "other",
    [
        head(keep=False),
        head(method="GET"),
        head(version="1.0"),
        head([*FIELDS, (b"transfer-encoding", b"chunked")]),
        head([*FIELDS, (b"expect", b"100-continue")]),
        head([(b"host", b"x"), (b"host", b"y")]),
        head([*FIELDS, (b"host", b"y")]),
    ],
    ids=["closes", "no prediction", "1.0", "chunked", "asks first", "no length", "a header twice"],
)
def test_only_the_head_of_a_plain_prediction_is_kept(other: RequestHead) -> None:
    known, raw = KnownHeads(), b"line\r\n" * (1 + len(other.fields)) + b"\r\n"
    known.keep(raw, other)
    assert known.get(raw) is None
    known.keep(raw := b"line\r\n" * 3 + b"\r\n", one := head())
    assert known.get(raw) is one


def test_known_heads_are_bounded_and_the_used_ones_stay() -> None:
    known = KnownHeads()
    known.keep(PLAIN, head())
    for number in range(2000):
        known.keep(PLAIN.replace(b"x\r\n", b"%d\r\n" % number), head())
        assert known.get(PLAIN) is not None
    assert known.get(PLAIN.replace(b"x\r\n", b"3\r\n")) is None


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_has_no_length(status: int) -> None:
    for made in (
        b"".join(serialised(HttpAnswer(status, b"x"), (), keep=True)),
        serialised_raw(raw(HttpAnswer(status, b"x")), keep=True, without_body=False),
    ):
        head, end, body = made.partition(b"\r\n\r\n")
        assert (end, body) == (b"\r\n\r\n", b"")
        assert b"content-length" not in head
    assert b"content-length: 0\r\n" in serialised(HttpAnswer(200, b""), (), keep=True)[0]


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb: c", "a\rb: c"])
def test_no_header_can_add_another_or_a_second_answer(value: str) -> None:
    """A model's own handler may take a header's value from what a client sent."""
    answer = HttpAnswer(200, b"", headers=(("X-Own", value),))
    with pytest.raises(ValueError, match="line end"):
        serialised(answer, (), keep=True)
    with pytest.raises(ValueError, match="line end"):
        serialised_raw(raw(answer), keep=False, without_body=False)


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


def test_what_is_sent_to_a_worker_that_is_gone_is_dropped_on_the_servers_loop_too_f01() -> None:
    """uvloop raises `RuntimeError` for it: the batch failed with `internal`, where it is to be run again."""

    async def test() -> None:
        pipe = WorkerPipe(lambda _, __: None, lambda _: None)
        mine, theirs = socket.socketpair()
        await asyncio.get_running_loop().create_connection(lambda: pipe, sock=mine)
        pipe.write(b"one, ", b"two")
        assert theirs.recv(10) == b"one, two"
        pipe.write(b"unread")
        await asyncio.sleep(0)
        theirs.close()  # with something unread, so that the connection is reset
        await pipe.ended
        for _ in range(3):
            pipe.write(b"late")
            pipe.write(b"later, ", b"still")
            await asyncio.sleep(0)
        await pipe.drain()

    for factory in {None, loop_factory()}:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(test())


def test_events_become_lines_in_order_with_what_is_dropped_counted() -> None:
    class Ending(LogWriter):
        """Its thread ends with an event, and would else stay to the end of the run."""

        def _work(self) -> None:
            with contextlib.suppress(SystemExit):
                super()._work()

    def rendered(each: LogEvent) -> bytes:
        if each.message == "end":
            raise SystemExit
        return f"{each.message}\n".encode()

    reading, writing = os.pipe()
    writer = Ending(writing, lambda lines: b"gap %d\n" % lines, rendered, most_lines=4)
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
    writer.put_event(LogEvent(0.0, "end", {}))
    assert writer._thread is not None
    writer._thread.join(10)
    assert not writer._thread.is_alive()
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
    here = [tracemalloc.Filter(True, request_body.__file__)]  # other threads of this process take memory, too
    found = tracemalloc.take_snapshot().filter_traces(here).statistics("filename")
    tracemalloc.stop()
    assert sum(each.size for each in found) < 100_000  # they were there before
