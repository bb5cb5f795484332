"""The life of a server process: what it says, when it listens, how it stops, and what it never imports."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from flambeau.bundle.storage import Bundle
from flambeau.protocols import dispatch
from flambeau.protocols.messages import HttpRequest
from flambeau.protocols.routes import RouteTable
from tests.support.server import FLAMBEAU, Serve, ServerProcess, run_anew

SLOW = """
import threading, time
import flambeau

class Slow(flambeau.PythonModel):
    def predict(self, batch):
        time.sleep(float(batch[0]))
        return batch
"""
COUNTING = '''
import os
import time
import flambeau

class Counting(flambeau.PythonModel):
    """It says how many it has computed, and for some waits until it may."""

    def load(self):
        self.computed = 0

    def predict(self, batch):
        for item in batch:
            while item == "wait" and not os.path.exists({go!r}):
                time.sleep(0.01)
            self.computed += 1
        return [self.computed] * len(batch)
'''


def test_the_first_recipes_script_runs_unmodified(cat_server: ServerProcess, cat: bytes, tmp_path: Path) -> None:
    (tmp_path / "chelsea.png").write_bytes(cat)
    script = (
        "import requests\n"
        f'resp = requests.post("{cat_server.url}/predict",\n'
        '                     files={"file": open("chelsea.png", "rb")})\n'
        "print(resp.json())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "{'class_id': 'n02124075', 'class_name': 'Egyptian_cat'}\n"


def test_serving_the_default_bundle_imports_no_torch_anywhere(cat_server: ServerProcess, cat: bytes) -> None:
    """I7: neither the front nor a worker has torch's libraries mapped, and only workers have the engine's."""
    cat_server.post(files={"file": cat})
    front = cat_server.process.pid
    workers = Path(f"/proc/{front}/task/{front}/children").read_text().split()
    assert workers
    maps = {process: Path(f"/proc/{process}/maps").read_text() for process in (str(front), *workers)}
    assert not any("torch" in each for each in maps.values())
    assert [process for process, each in maps.items() if "onnxruntime" in each] == workers


def test_importing_flambeau_imports_neither_torch_nor_flask() -> None:
    code = "import flambeau, sys; print([m for m in ('torch', 'flask', 'PIL', 'numpy', 'uvicorn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_worker_of_an_image_model_imports_only_what_answers() -> None:
    """What reads checkpoints, knows networks or runs others' handlers takes memory in each worker, and time."""
    rooms = ("identify", "checkpoints", "architectures", "handlers")
    idle = {f"flambeau.{room}" for room in rooms} | {"asyncio", "email"}
    code = (
        f"import sys, flambeau.runners.worker, flambeau.runners.replica, flambeau.engines.onnxruntime as engine; "
        f"print([m for m in {idle} if m in sys.modules], engine.onnxruntime.__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["[]", "onnxruntime"]


def test_it_listens_on_loopback_only(cat_server: ServerProcess) -> None:
    """T-08."""
    port = int(cat_server.url.rsplit(":", 1)[1])
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = {each[1] for each in listening if each[3] == "0A" and each[1].endswith(f":{port:04X}")}
    assert addresses == {f"0100007F:{port:04X}"}


def test_another_address_needs_an_explicit_flag() -> None:
    """T-08: exit 78, one line that says what to do, and nothing loaded."""
    done = run_anew("serve", "--host", "0.0.0.0")
    assert done.returncode == 78
    assert done.stderr.count("\n") == 1
    assert "--insecure-no-auth" in done.stderr


def test_a_taken_port_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    """F-22."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_anew("serve", str(tmp_path / "not-even-there.pth"), "--port", port)
    assert done.returncode == 69
    assert done.stderr == (
        f"flambeau: cannot listen on 127.0.0.1:{port} (Address already in use): "
        "stop what runs there, or take another --port\n"
    )


@pytest.mark.long
def test_a_model_that_cannot_load_never_listens(tmp_path: Path) -> None:
    """F-26: one line that says why, a non-zero exit, and at no time a port that answers."""
    model = tmp_path / "broken.py"
    model.write_text(
        "import flambeau\n"
        "class Broken(flambeau.PythonModel):\n"
        "    def load(self): raise FileNotFoundError('weights.bin is not here')\n"
        "    def predict(self, batch): return batch\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*FLAMBEAU, "serve", f"{model}:Broken", "--allow-code", "--port", str(port)],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    answered = 0
    while process.poll() is None:
        with socket.socket() as probe:
            answered += probe.connect_ex(("127.0.0.1", port)) == 0
    output, errors = process.communicate()
    last = errors.splitlines()[-1]
    assert process.returncode == 1
    assert answered == 0
    assert last.startswith("flambeau: ")
    assert "FileNotFoundError: weights.bin is not here" in last
    assert "Traceback" not in errors
    assert output == ""


def test_a_second_start_reuses_the_cached_bundle(serve: Serve, default_bundle: Bundle) -> None:
    with serve() as server:
        assert "exporting" not in server.log()
        assert "model ready" in server.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_what_was_received_and_exits_0(serve: Serve, tmp_path: Path, number: signal.Signals) -> None:
    """F-19."""
    (tmp_path / "counting.py").write_text(COUNTING.format(go=str(tmp_path / "go")))
    arguments = (f"{tmp_path}/counting.py:Counting", "--allow-code", "--replicas", 1, "--max-batch-size", 1)
    with serve(*arguments) as server, ThreadPoolExecutor(4) as pool:
        running = [pool.submit(server.post, json={"input": "wait"}) for _ in range(4)]
        wait_for_metric(server, "flambeau_queue_items", 3)
        server.process.send_signal(number)
        wait_for_log(server, "stopping: answering", lambda: None)
        (tmp_path / "go").touch()
        answers = [each.result() for each in running]
        assert server.process.wait(60) == 0
    assert [each.status_code for each in answers] == [200] * 4
    assert sorted(each.json()["output"] for each in answers) == [1, 2, 3, 4]
    assert "stopped" in server.log()


def wait_for_log(server: ServerProcess, text: str, poke: object) -> None:
    """Poke the server until its log holds the text."""
    deadline = time.monotonic() + 20
    while text not in server.log():
        assert time.monotonic() < deadline, server.log()
        poke()  # type: ignore[operator]


@pytest.mark.long
def test_a_second_signal_ends_it_at_once(serve: Serve, tmp_path: Path) -> None:
    """F-19."""
    (tmp_path / "slow.py").write_text(SLOW)
    with serve(f"{tmp_path}/slow.py:Slow", "--allow-code") as server:
        client = threading.Thread(target=lambda: _ignore_loss(server))
        client.start()
        wait_for_metric(server, "flambeau_batch_size_count", 1)
        server.process.terminate()
        wait_for_log(server, "stopping: answering", lambda: None)
        started = time.monotonic()
        server.process.terminate()
        assert server.process.wait(60) == 128 + signal.SIGTERM
        assert time.monotonic() - started < 25
        client.join()


def _ignore_loss(server: ServerProcess) -> None:
    with contextlib.suppress(requests.ConnectionError):
        server.post(json={"input": 30})


@pytest.mark.long
def test_a_client_that_asks_first_reads_the_refusal_before_it_sends(serve: Serve, default_bundle: Bundle) -> None:
    """F-35, F-36: with `Expect: 100-continue` the body over the limit is never sent."""
    with serve("--max-body-bytes", 1000) as server, _connect(server) as sock:
        sock.sendall(b"POST /predict HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.long
def test_a_chunked_body_over_the_limit_is_refused(serve: Serve, default_bundle: Bundle) -> None:
    """F-35."""
    with serve("--max-body-bytes", 1000) as server:
        answered = server.post(data=iter([b"x" * 600] * 3), headers={"Content-Type": "image/png"})
        assert answered.json()["code"] == "body_too_large"
        answered = server.post(data=iter([b"x" * 500] * 2), headers={"Content-Type": "image/png"})
        assert answered.json()["code"] == "unsupported_image_format"


def test_a_client_that_leaves_in_the_middle_harms_nobody(cat_server: ServerProcess, cat: bytes) -> None:
    """F-10."""
    for cut in (10, 60, 120, 5000):
        with _connect(cat_server) as sock:
            head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
            sock.sendall((head % len(cat) + cat)[:cut])
    assert cat_server.post(files={"file": cat}).status_code == 200
    assert "unexpectedly" not in cat_server.log()


@pytest.mark.long
def test_what_a_gone_client_waited_for_is_not_computed(serve: Serve, tmp_path: Path) -> None:
    """F-11: of a running request and two queued ones, those whose clients leave are dropped before compute."""
    (tmp_path / "counting.py").write_text(COUNTING.format(go=str(tmp_path / "go")))
    source = f"{tmp_path}/counting.py:Counting"
    arguments = (source, "--allow-code", "--replicas", 1, "--max-batch-size", 1)
    with serve(*arguments) as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.post, json={"input": "wait"})
        wait_for_metric(server, "flambeau_batch_size_count", 1)
        leaving = [_connect(server) for _ in range(2)]
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Request-ID: "
        body = b'{"input": 0}'
        leaving[0].sendall(head + b"connection\r\nContent-Length: 12\r\n\r\n" + body)
        leaving[1].sendall(head + b"asgi\r\nTransfer-Encoding: chunked\r\n\r\nc\r\n" + body + b"\r\n0\r\n\r\n")
        wait_for_metric(server, "flambeau_queue_items", 2)
        for sock in leaving:
            sock.close()
        wait_for_metric(server, "flambeau_queue_items", 0)
        (tmp_path / "go").touch()
        assert running.result().json() == {"output": 1}
        assert server.post(json={"input": 0}).json() == {"output": 2}
        for identity in ("connection", "asgi"):
            wait_for_log(server, f"the client is gone id={identity} ", lambda: None)


def test_a_request_keeps_its_id_where_its_client_gave_none_p16() -> None:
    """The line "the client is gone" had another than the answer would have had."""
    request = HttpRequest("GET", "/livez", "", {"x-request-id": "not harmless!"}, b"")
    match = RouteTable(dispatch.NATIVE).find("GET", "/livez")
    assert match is not None
    answer = asyncio.run(dispatch.answer(None, match, request))  # type: ignore[arg-type]  # this route asks nothing of it
    assert dict(answer.headers)["X-Request-ID"] == request.identity != "not harmless!"


def wait_for_metric(server: ServerProcess, name: str, value: float) -> None:
    """Read /metrics until one has the value."""
    deadline = time.monotonic() + 20
    while not re.search(rf"^{name}{{[^}}]*}} {value:g}(\.0)?$", server.get("/metrics").text, re.MULTILINE):
        assert time.monotonic() < deadline, server.get("/metrics").text


def test_connections_are_kept_alive(cat_server: ServerProcess) -> None:
    host, port = cat_server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    sockets = set()
    for _ in range(3):
        connection.request("GET", "/livez")
        assert json.load(connection.getresponse()) == {"status": "live"}
        sockets.add(connection.sock)
    connection.close()
    assert len(sockets) == 1


def test_user_text_cannot_forge_a_log_line(cat_server: ServerProcess, cat: bytes) -> None:
    """T-27: the log has one line per event whatever a client writes into names, paths and headers."""
    for path in ("/predict/a%0a2026-01-01 INFO forged", "/%1b[31mred", "/x?a=%0d%0aforged"):
        cat_server.post(path, files={"file": ("a\nforged.png", cat)}, headers={"User-Agent": "forged"})
    assert "forged" not in cat_server.log()
    assert "\x1b" not in cat_server.log()


def test_a_log_line_names_request_model_status_and_milliseconds(cat_server: ServerProcess, cat: bytes) -> None:
    cat_server.post(files={"file": cat}, headers={"X-Request-ID": "look-for-me"})
    [line] = [line for line in cat_server.log().splitlines() if "look-for-me" in line]
    assert "POST /predict id=look-for-me model=efficientnet_lite0 status=200 ms=" in line


@pytest.mark.long
def test_concurrent_clients_get_their_own_answers(serve: Serve, double_py: Path) -> None:
    """I2, and batches form while the one replica is busy."""
    with serve(f"{double_py}:Double", "--allow-code") as server:
        session = requests.Session()
        session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=32))

        def ask(number: int) -> bool:
            return bool(
                session.post(server.url + "/predict", json={"input": number}).json() == {"output": 2.0 * number}
            )

        with ThreadPoolExecutor(32) as pool:
            assert all(pool.map(ask, range(1500)))
        session.close()


def _connect(server: ServerProcess) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def test_the_environment_can_set_what_flags_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMBEAU_HOST", "0.0.0.0")
    assert run_anew("serve").returncode == 78
    assert os.environ["FLAMBEAU_HOST"] == "0.0.0.0"
