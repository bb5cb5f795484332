"""`flambeau.Client` against real servers: what can be sent, what comes back, and what is asked again."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import flambeau
from flambeau import Client, ClientError
from flambeau.client import InputNotSent, NoAnswer, Prediction, Refused
from tests.support.photographs import photograph
from tests.support.server import Serve, ServerProcess, free_port

GATED = '''
import flambeau


class Gated(flambeau.PythonModel):
    """Gives its input back; {"wait": FIFO} once somebody has closed the other end of that pipe."""

    def predict(self, batch):
        return [self.answer(item) for item in batch]

    def answer(self, item):
        if item == "bad":
            return flambeau.InvalidInput("this is the bad one")
        if isinstance(item, dict) and "wait" in item:
            with open(item["wait"]) as pipe:
                pipe.read()
        return item
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model and a pipe to hold it up."""
    folder = tmp_path_factory.mktemp("gated")
    (folder / "gated.py").write_text(GATED)
    os.mkfifo(folder / "gate")
    return folder


@pytest.fixture(scope="module")
def gated(serve: Serve, folder: Path) -> Iterator[ServerProcess]:
    """A server that computes one item at a time, and lets one wait."""
    arguments = ("--allow-code", "--replicas", 1, "--max-batch-size", 1, "--max-queue-size", 1)
    with serve(f"{folder / 'gated.py'}:Gated", *arguments) as server:
        yield server


@pytest.fixture
def cats(cat_server: ServerProcess) -> Iterator[Client]:
    """A client of the built-in classifier."""
    with Client(cat_server.url) as client:
        yield client


def wait_for(holds: Callable[[], bool], server: ServerProcess) -> None:
    """Return when it holds; raise when the server has ended, or after pytest's own patience."""
    while not holds():
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(0.02)
        assert server.process.poll() is None, server.log()


@contextlib.contextmanager
def scripted(*replies: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A socket that answers each request with the next of the replies, and keeps what it was sent."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for reply in replies:
                connection = listener.accept()[0]
                with connection:
                    heard.append(_request(connection))
                    connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
        thread.join()


def _request(connection: socket.socket) -> bytes:
    """A request with its body, which a client may send after its head."""
    data = b""
    while more := connection.recv(65536):
        data += more
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if end and len(body) >= (int(length[1]) if length else 0):
            break
    return data


def reply(status: str, body: str, **headers: str) -> bytes:
    """An HTTP response that closes its connection."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", body]).encode()


@pytest.mark.parametrize("form", ["path", "text", "bytes", "file", "picture", "array", "grey and alpha"])
def test_an_image_can_be_given_in_any_form(cats: Client, cat: bytes, tmp_path: Path, form: str) -> None:
    path = tmp_path / "chelsea.png"
    path.write_bytes(cat)
    image = photograph("chelsea")
    with path.open("rb") as file:
        items = {
            "path": path, "text": str(path), "bytes": cat, "file": file, "picture": image,
            "array": np.asarray(image), "grey and alpha": image.convert("RGBA"),
        }  # fmt: skip
        answer = cats.predict(items[form])
    assert (answer.class_id, answer.class_name, answer.recognised) == ("n02124075", "Egyptian_cat", True)
    assert answer.json() == {"class_id": "n02124075", "class_name": "Egyptian_cat"}


def test_a_picture_that_png_does_not_know_is_sent_too(cats: Client) -> None:
    assert cats.predict(photograph("chelsea").convert("CMYK")).class_name is not None


def test_what_else_is_asked_comes_with_the_answer(cats: Client, cat: bytes) -> None:
    ranked = cats.predict(cat, top_k=2)
    assert [each.class_name for each in ranked.top] == ["Egyptian_cat", "tabby"]
    assert ranked.top[0].probability > ranked.top[1].probability > 0
    unsure = cats.predict(cat, threshold=0.9)
    assert (unsure.class_name, unsure.recognised) == (None, False)
    assert "below the threshold 0.9" in str(unsure.reason)
    whole = cats.predict(cat, probabilities=True)
    assert (whole.class_index, whole.class_name, len(whole.probabilities)) == (285, "Egyptian_cat", 1000)
    assert ranked.stages.keys() >= {"queue", "preprocess", "inference", "postprocess", "total"}
    assert ranked.request_id
    with pytest.raises(AttributeError):
        ranked.class_name = "dog"  # type: ignore[misc]


def test_a_model_and_a_version_can_be_named(cats: Client, cat: bytes) -> None:
    assert cats.predict(cat, model="efficientnet_lite0", version=1).class_name == "Egyptian_cat"
    with pytest.raises(Refused) as absent:
        cats.predict(cat, model="a/b ?")
    assert (absent.value.code, absent.value.status, absent.value.retryable) == ("model_not_found", 404, False)
    with pytest.raises(ValueError, match="name the model too"):
        cats.predict(cat, version=1)


def test_many_are_answered_in_their_order_and_a_bad_one_fails_alone(cats: Client, cat: bytes, tmp_path: Path) -> None:
    rocket = io.BytesIO()
    photograph("rocket").save(rocket, "JPEG")
    items = [cat, rocket.getvalue(), b"no image", tmp_path / "absent.png", cat] * 3
    answers = list(cats.predict_many((item for item in items), concurrency=4))
    assert len(answers) == len(items)
    for place in range(0, len(items), 5):
        first, second, third, fourth, fifth = answers[place : place + 5]
        assert isinstance(first, Prediction)
        assert isinstance(second, Prediction)
        assert isinstance(fifth, Prediction)
        assert (first.class_name, second.class_name, fifth.class_name) == ("Egyptian_cat", "missile", "Egyptian_cat")
        assert isinstance(third, Refused)
        assert (third.code, third.status) == ("unsupported_image_format", 415)
        assert isinstance(fourth, InputNotSent)


def test_of_many_no_more_are_drawn_than_are_needed(cats: Client, cat: bytes) -> None:
    drawn = 0

    def endless() -> Iterator[bytes]:
        nonlocal drawn
        while True:
            drawn += 1
            yield cat

    answers = cats.predict_many(endless(), concurrency=2)
    assert isinstance(next(answers), Prediction)
    answers.close()  # type: ignore[attr-defined]
    assert drawn == 4


def test_one_client_serves_many_threads(cats: Client, cat: bytes) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = [*pool.map(lambda _: cats.predict(cat).class_name, range(64))]
    assert answers == ["Egyptian_cat"] * 64


def test_values_go_as_json_and_come_back(gated: ServerProcess) -> None:
    with Client(gated.url) as client:
        assert client.predict({"a": [1, None, "ä"]}).output == {"a": [1, None, "ä"]}
        assert client.predict(np.arange(3.0)).output == [0.0, 1.0, 2.0]
        assert client.predict([np.float32(0.5), np.int64(2)]).output == [0.5, 2]
        assert client.predict("text", as_json=True).output == "text"
        assert client.predict(np.zeros((2, 3), np.uint8), as_json=True).output == [[0, 0, 0], [0, 0, 0]]
        assert client.ready()


@pytest.mark.parametrize(
    ("item", "options", "sentence"),
    [
        ("absent.png", {}, "a string is taken for a path unless as_json=True"),
        ([float("nan")], {}, "cannot be sent as JSON"),
        (object(), {}, "object has no JSON form"),
        (io.StringIO("text"), {}, 'open it with the mode "rb"'),
        ([1], {"probabilities": True}, "probabilities are of images"),
    ],
)
def test_what_cannot_be_sent_is_told_before_it_is(item: object, options: dict[str, bool], sentence: str) -> None:
    """Without a server: none is asked."""
    with Client("http://127.0.0.1:1") as client, pytest.raises(InputNotSent, match=sentence) as caught:
        client.predict(item, **options)  # type: ignore[arg-type]
    assert caught.value.attempts <= 1


def test_an_answer_that_another_would_not_change_is_not_asked_for_again(gated: ServerProcess) -> None:
    with Client(gated.url) as client, pytest.raises(Refused, match="this is the bad one") as caught:
        client.predict("bad", as_json=True)
    error = caught.value
    assert (error.code, error.status, error.retryable, error.attempts) == ("input_rejected", 400, False, 1)
    assert f"id={error.request_id} " in gated.log()
    assert isinstance(error, ClientError)
    assert isinstance(error, flambeau.FlambeauError)


def test_a_full_queue_is_asked_again(gated: ServerProcess, folder: Path) -> None:
    """One computes, one waits, and of the two others at least one finds no room, until the first is let go."""
    with Client(gated.url, retries=50) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(client.predict, {"wait": str(folder / "gate")})
        with (folder / "gate").open("w"):  # opens when the model has opened its end
            others = [pool.submit(client.predict, number) for number in range(3)]
            wait_for(lambda: "code=queue_full" in gated.log(), gated)
        assert [other.result().output for other in others] == [0, 1, 2]
        assert max(other.result().attempts for other in others) > 1
        assert first.result().attempts == 1


def test_a_server_killed_in_the_middle_costs_no_prediction(serve: Serve, folder: Path) -> None:
    """The connection breaks while the model computes; another server takes the port, and answers."""
    gate, model = folder / "gate", (f"{folder / 'gated.py'}:Gated", "--allow-code", "--replicas", 1)
    with (
        serve(*model, "--port", free_port()) as killed,
        Client(killed.url, retries=1000) as client,
        ThreadPoolExecutor() as pool,
    ):
        asked = pool.submit(client.predict, {"wait": str(gate)})
        with gate.open("w"):
            killed.process.send_signal(signal.SIGKILL)
            killed.process.wait()
        with serve(*model, "--port", killed.url.rpartition(":")[2]):
            with gate.open("w"):
                pass
            answer = asked.result()
    assert answer.output == {"wait": str(gate)}
    assert answer.attempts > 1


def test_nobody_there_is_told_after_all_attempts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", retries=2) as client:
        assert not client.ready()
        with pytest.raises(NoAnswer, match="cannot be asked") as caught:
            client.predict([1])
    error = caught.value
    assert (error.code, error.status, error.retryable, error.attempts) == ("connection_failed", None, True, 3)


def test_a_server_that_says_nothing_costs_no_more_than_the_timeout() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Client(f"http://127.0.0.1:{silent.getsockname()[1]}") as client,
        pytest.raises(NoAnswer, match=r"no answer within 0\.2 seconds") as caught,
    ):
        client.predict([1], timeout=0.2)
    assert (caught.value.code, caught.value.attempts) == ("timeout", 1)


def test_of_several_addresses_another_answers_when_one_fails() -> None:
    """One breaks in the middle, one is not there, one is stopping: no pause, and the one that answers is kept."""
    stopping = '{"error":"the service is stopping","code":"draining","retryable":true,"request_id":"r"}'
    good = reply("200 OK", '{"output":1}')
    with (
        scripted(b"") as (broken, heard),
        scripted(reply("503 Service Unavailable", stopping, Retry_After="30")) as (ending, _),
        scripted(good, good) as (alive, answered),
        Client([broken, f"http://127.0.0.1:{free_port()}", ending, alive]) as client,
    ):
        began = time.monotonic()
        first, second = client.predict([1], timeout=20), client.predict([2])
        assert time.monotonic() - began < 5
        assert (first.output, first.attempts, second.attempts) == (1, 4, 1)
        assert repr(alive) in repr(client)
    assert heard[0].split(b"\r\n\r\n", 1)[1] == answered[0].split(b"\r\n\r\n", 1)[1]
    for urls in ([], ["http://127.0.0.1:1", "nowhere"]):
        with pytest.raises(ValueError, match="address of a service"):
            Client(urls)


def test_a_change_is_not_repeated_at_another_address() -> None:
    with (
        scripted(b"") as (broken, heard),
        scripted() as (alive, answered),
        Client([broken, alive]) as client,
        pytest.raises(NoAnswer),
    ):
        client.set_default("m", "2")
    assert (len(heard), len(answered)) == (1, 0)


def test_an_answer_of_another_server_on_the_way_is_asked_again_if_it_is_for_a_moment() -> None:
    """A proxy's 502 has no code of ours; its 404 is for good. T-10: the token is sent, and not shown."""
    bad, good = reply("502 Bad Gateway", "<html>"), reply("200 OK", '{"output":1}')
    with scripted(bad, good) as (url, heard), Client(url + "/ours/", "t0k3n") as client:
        answer = client.predict([1], model="m")
        assert (answer.output, answer.attempts) == (1, 2)
        assert "t0k3n" not in repr(client)
    assert heard[0].startswith(b"POST /ours/predict/m HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer t0k3n\r\n" in heard[0]
    identity = [line for line in heard[0].split(b"\r\n") if line.startswith(b"X-Request-ID: ")]
    assert identity == [line for line in heard[1].split(b"\r\n") if line.startswith(b"X-Request-ID: ")]
    with (
        scripted(reply("404 Not Found", "<html>")) as (url, _),
        Client(url) as client,
        pytest.raises(Refused, match="is not one of Flambeau's: is the address right") as caught,
    ):
        client.predict([1])
    assert (caught.value.code, caught.value.attempts) == ("http_404", 1)


@pytest.mark.parametrize("wish", ["30", "Sun, 01 Jan 2090 00:00:00 GMT"])
def test_a_pause_that_the_server_asks_for_is_kept_or_nothing_is_asked(wish: str) -> None:
    """It is longer than the timeout: so there is no second attempt, and no waiting for it."""
    body = '{"error":"too many","code":"queue_full","retryable":true,"request_id":"r"}'
    with (
        scripted(reply("503 Service Unavailable", body, Retry_After=wish)) as (url, _),
        Client(url) as client,
        pytest.raises(Refused, match="too many") as caught,
    ):
        client.predict([1], timeout=20)
    error = caught.value
    assert (error.code, error.retryable, error.request_id, error.attempts) == ("queue_full", True, "r", 1)
    assert error.retry_after is not None
    assert error.retry_after >= 30


@pytest.mark.parametrize("arguments", [("ftp://x",), ("localhost:5000",), ("http://h", "a\nb"), ("http://h", "é")])
def test_an_address_or_a_token_that_is_none_is_told_at_once(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"is not the address|the token has") as caught:
        Client(*arguments)
    assert "a\nb" not in str(caught.value)


def test_the_package_stays_light_and_the_client_without_the_servers_side() -> None:
    heavy = "{'torch', 'flask', 'werkzeug', 'numpy', 'PIL', 'onnxruntime', 'msgspec'} & sys.modules.keys()"
    code = f"import sys, flambeau; assert 'urllib3' not in sys.modules; flambeau.Client; assert not ({heavy}), {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_picture_as_a_grey_array_is_one(cats: Client) -> None:
    grey = np.asarray(photograph("chelsea").convert("L"))
    assert cats.predict(grey).json() == cats.predict(Image.fromarray(grey)).json()
