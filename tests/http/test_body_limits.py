"""What all bodies together may hold, on every way, and what a Content-Length may be (A1, A10, A12, P3, P5, P12, U2)."""

import gc
import io
import socket
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import flambeau
from flambeau.http.framing import length_of
from flambeau.runners import wire
from tests.support.fleet import wait_for
from tests.support.server import Serve, ServerProcess
from tests.support.warm import run_with_torch

LIMIT = 1_000_000
MIB = 1 << 20
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A model that says how long its input is, and sleeps for as many seconds as a number says."""
    file = tmp_path_factory.mktemp("length") / "length.py"
    file.write_text(
        "import time\nimport flambeau\n"
        "class Length(flambeau.PythonModel):\n"
        "    def predict(self, batch):\n"
        "        for item in batch:\n"
        "            if isinstance(item, float): time.sleep(item)\n"
        "        return [len(item) if hasattr(item, '__len__') else item for item in batch]\n"
    )
    with serve(f"{file}:Length", "--allow-code", "--replicas", 1, "--max-body-bytes", LIMIT) as started:
        yield started


@pytest.fixture(scope="module")
def small(serve: Serve, double_py: Path) -> Iterator[ServerProcess]:
    """One whose bodies may hold 8 MiB together, and 4 MiB each."""
    with serve(
        f"{double_py}:Double", "--allow-code", "--replicas", 1, "--max-body-bytes", 4 * MIB,
        "--max-inflight-bytes", 8 * MIB, "--body-timeout", 60,
    ) as started:  # fmt: skip
        yield started


def connect(server: ServerProcess) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def to_the_end(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def resident(server: ServerProcess) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


# -- lengths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["00", "01", "0" * 19 + "99999999999", "0" * 30, "1" * 20, "9" * 5000, "+5", "-5", "5_0", "0x5", "5 0", "5,5", "",
     "1e2", "\u0665", "\u00b2", "\uff15", "5\x0b", "5\n"],
)  # fmt: skip
def test_a_length_is_one_plain_decimal_number_a1(text: str) -> None:
    assert length_of(text) is None


@pytest.mark.parametrize(("text", "length"), [("0", 0), ("5", 5), (" 50\t", 50), ("9" * 19, 10**19 - 1)])
def test_a_plain_length_is_read_whole_a1(text: str, length: int) -> None:
    assert length_of(text) == length


@pytest.mark.parametrize("route", [b"/predict", b"/predict/%4c", b"/"])
@pytest.mark.parametrize("length", [b"0" * 19 + b"99999999999", b"00000000005", b"0" * 19 + b"5"])
def test_a_length_with_zeros_in_front_is_refused_before_a_body_is_held_a1(
    server: ServerProcess, route: bytes, length: bytes
) -> None:
    """P3: the check read the first nineteen characters, the parser all of them."""
    with connect(server) as sock:
        before = resident(server)
        sock.sendall(HEAD.replace(b"/predict", route) + b"Content-Length: " + length + b"\r\n\r\n")
        sock.settimeout(60)
        try:
            for _ in range(48):
                sock.sendall(bytes(MIB))
        except OSError:
            pass  # refused, and closed
        assert resident(server) - before < 24 * MIB
    with connect(server) as sock:  # alone, so that the refusal is read for sure
        sock.sendall(HEAD.replace(b"/predict", route) + b"Content-Length: " + length + b"\r\n\r\n")
        answer = to_the_end(sock)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"bad_http"' in answer


def test_no_body_above_the_limit_is_held_whatever_way_it_comes_a1(server: ServerProcess) -> None:
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join([b"10000\r\n" + bytes(65536) + b"\r\n"] * 20)
    declared = HEAD + b"Content-Length: %d\r\n\r\n" % (LIMIT + 1) + bytes(LIMIT + 1)
    for sent in (chunked + b"0\r\n\r\n", declared):
        with connect(server) as sock:
            sock.sendall(sent)
            answer = to_the_end(sock)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"larger than the 976.5 KiB that this server takes (--max-body-bytes)" in answer


@pytest.mark.parametrize("size", [1, 255 * 1024, 256 * 1024, 256 * 1024 + 1, 700_000, LIMIT])
def test_bodies_of_all_sizes_arrive_whole_on_both_ways(server: ServerProcess, size: int) -> None:
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    headers = {"Content-Type": "application/octet-stream"}
    assert server.post(data=body, headers=headers).json() == {"output": size}
    assert server.post(data=iter([body[: size // 2] or b"", body[size // 2 :]]), headers=headers).json() == {
        "output": size
    }


# -- the budget --------------------------------------------------------------------------------------------------


def stall(server: ServerProcess, *, size: int = 4 * MIB - 1, chunked: bool = False) -> socket.socket:
    """An upload of which all but the end has come."""
    sock = connect(server)
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (size + 1)
    sock.sendall(HEAD + length + b"\r\n\r\n")
    sock.sendall(b"%x\r\n" % size + bytes(size) if chunked else bytes(size))
    return sock


@pytest.mark.parametrize("chunked", [False, True])
def test_uploads_together_stay_within_the_budget_and_others_are_answered_a12(
    small: ServerProcess, chunked: bool
) -> None:
    """P12: twelve uploads of 4 MiB, of which 8 MiB may be held."""
    before = resident(small)
    stalled = []
    try:
        for _ in range(12):
            stalled.append(stall(small, chunked=chunked))
            assert small.post(json={"input": 4}).json() == {"output": 8.0}
        assert resident(small) - before < 20 * MIB
        answers = []
        for sock in stalled:
            sock.settimeout(1)
            try:
                answers.append(sock.recv(65536))
            except TimeoutError:
                answers.append(b"")
        refused = [answer for answer in answers if answer]
        assert len(refused) >= 10
        for answer in refused:
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after" in answer
            assert b'"code":"overloaded"' in answer
            assert b"--max-inflight-bytes" in answer
    finally:
        for sock in stalled:
            sock.close()
    wait_for(lambda: resident(small) - before < 4 * MIB)
    assert small.post(json={"input": 5}).json() == {"output": 10.0}


def test_what_came_whole_is_answered_when_the_budget_is_full_a12(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nimport flambeau\n"
        "class Slow(flambeau.PythonModel):\n"
        "    def predict(self, batch):\n"
        "        time.sleep(1)\n"
        "        return [len(item) for item in batch]\n"
    )
    with serve(
        f"{tmp_path}/slow.py:Slow", "--allow-code", "--replicas", 1, "--max-body-bytes", MIB,
        "--max-inflight-bytes", 2 * MIB,
    ) as server:  # fmt: skip
        whole = [connect(server) for _ in range(2)]
        for sock in whole:
            sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % MIB + bytes(MIB))
        wait_for(lambda: _in_flight(server) >= 1)
        with connect(server) as late:
            late.sendall(HEAD + b"Content-Length: 400000\r\n\r\n" + bytes(400_000))
            assert late.recv(65536).startswith(b"HTTP/1.1 503 ")
        for sock in whole:
            assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
            sock.close()
        assert server.post(data=bytes(MIB), headers={"Content-Type": "application/octet-stream"}).json() == {
            "output": MIB
        }


def _in_flight(server: ServerProcess) -> float:
    """How many items are computed or wait."""
    text = server.get("/metrics").text
    lines = [
        line for line in text.splitlines() if line.startswith(("flambeau_queue_items{", "flambeau_batch_size_count"))
    ]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


class Body(io.BytesIO):
    """A body that can be asked whether anybody has it."""


def test_under_plain_wsgi_bodies_are_counted_too_p12(tmp_path: Path) -> None:
    (tmp_path / "gate.py").write_text(
        "import time\nfrom pathlib import Path\nimport flambeau\n"
        "HERE = Path(__file__).parent\n"
        "class Gate(flambeau.PythonModel):\n"
        "    def predict(self, batch):\n"
        f"        while not Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)\n"
        "        return [len(item) for item in batch]\n"
    )
    app = flambeau.create_app(f"{tmp_path}/gate.py:Gate", allow_code=True, max_body_bytes=1000, max_inflight_bytes=1500)
    model = app.extensions["flambeau"].service.get()
    kind = "application/octet-stream"
    try:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(lambda: app.test_client().post("/predict", data=bytes(900), content_type=kind))
            wait_for(lambda: model.metrics.queue()[0] or model._batcher._running)
            body = Body(bytes(900))
            refused = app.test_client().post("/predict", input_stream=body, content_length=900, content_type=kind)
            assert (refused.status_code, refused.get_json()["code"]) == (503, "overloaded")
            assert refused.headers["Retry-After"] == "1"
            let_go = weakref.ref(body)
            del body, refused
            gc.collect()
            assert let_go() is None
            (tmp_path / "go").touch()
            assert first.result().get_json() == {"output": 900}
        for _ in range(50):  # what is answered is let go of
            assert app.test_client().post("/predict", data=bytes(900), content_type=kind).status_code == 200
    finally:
        app.extensions["flambeau"].close()


# -- large frames ------------------------------------------------------------------------------------------------


def test_the_largest_body_that_may_be_set_fits_into_a_frame_p5() -> None:
    header = wire.Header(wire.FrameKind.BATCH, 1, 1, 100, wire.LARGEST_PAYLOADS)
    assert wire.unpack_header(wire.pack_header(header)) == header


def test_a_body_limit_above_what_a_frame_takes_is_refused_at_the_start_p5(double_py: Path) -> None:
    done = run_with_torch("serve", f"{double_py}:Double", "--allow-code", "--max-body-bytes", wire.LARGEST_PAYLOADS + 1)
    assert done.returncode != 0
    assert f"the most is {wire.LARGEST_PAYLOADS}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_budget_below_one_body_is_refused_at_the_start_p12(double_py: Path) -> None:
    """Such a body would be told to try again for ever."""
    done = run_with_torch("serve", f"{double_py}:Double", "--allow-code", "--max-inflight-bytes", 1000)
    assert done.returncode == 78
    assert "--max-body-bytes" in done.stderr


@pytest.mark.slow
def test_a_body_above_256_mib_is_answered_and_kills_no_worker_p5(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "length.py").write_text(
        "import flambeau\n"
        "class Length(flambeau.PythonModel):\n"
        "    def predict(self, batch):\n"
        "        return [len(item) for item in batch]\n"
    )
    size = 300 * MIB
    with serve(f"{tmp_path}/length.py:Length", "--allow-code", "--max-body-bytes", size, "--replicas", 1) as server:
        answer = server.post(data=bytes(size), headers={"Content-Type": "application/octet-stream"})
        assert answer.json() == {"output": size}
        assert "worker lost" not in server.log()


# -- halves and wishes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 0.7])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_client_that_closes_its_half_is_answered_a10(server: ServerProcess, seconds: float, framing: str) -> None:
    """`nc -N`: the end of the input is not the client's absence."""
    body = b'{"input": %.1f}' % seconds
    head = HEAD.replace(b"octet-stream", b"json")
    with connect(server) as sock:
        if framing == "length":
            sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        else:
            sock.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        sock.shutdown(socket.SHUT_WR)
        answer = to_the_end(sock)
    while answer.startswith(b"HTTP/1.1 100 "):
        answer = answer.partition(b"\r\n\r\n")[2]
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b'{"output":%.1f}' % seconds)


def test_requests_sent_ahead_are_all_answered_after_the_end_of_the_input_a10(server: ServerProcess) -> None:
    body = b'{"input": 0.2}'
    one = HEAD.replace(b"octet-stream", b"json") + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with connect(server) as sock:
        sock.sendall(one * 3)
        sock.shutdown(socket.SHUT_WR)
        assert to_the_end(sock).count(b"HTTP/1.1 200 OK") == 3


def test_a_request_cut_short_by_the_end_of_the_input_is_told_so_a10(server: ServerProcess) -> None:
    for sent in (HEAD, HEAD + b"Content-Length: 10\r\n\r\nabc"):
        with connect(server) as sock:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
            answer = to_the_end(sock)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"ended before it was whole" in answer


@pytest.mark.parametrize("wish", ["h2c", "websocket", "TLS/1.0, HTTP/2.0"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_wish_to_change_the_protocol_is_passed_over_u2(server: ServerProcess, wish: str, framing: str) -> None:
    """Java's HttpClient and `curl --http2` send it with every first request; and the connection goes on."""
    body = b'{"input": "four"}'
    head = HEAD.replace(b"octet-stream", b"json")
    head += f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {wish}\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\n".encode()
    if framing == "length":
        one = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    else:
        one = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    with connect(server) as sock:
        for _ in range(2):
            sock.sendall(one)
            answer = b""
            while not answer.endswith(b"}"):
                answer += sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 OK")
            assert answer.endswith(b'{"output":4}')
        sock.sendall(one + one)
        answer = b""
        deadline = time.monotonic() + 30
        while answer.count(b'{"output":4}') < 2 and time.monotonic() < deadline:
            answer += sock.recv(65536)
        assert answer.count(b"HTTP/1.1 200 OK") == 2
