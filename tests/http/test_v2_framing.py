"""The binary framing of KServe v2 under mutation: lengths that lie, overlap and overflow; no 5xx, and no wrong answer.

Every mutated request is also read by a second, plain reader (`read`). Where it finds the tensors of the model, the
server must answer with exactly their outputs; where it does not, the server must refuse. Seeds make every run the same.
"""

import contextlib
import http.client
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.support.server import Serve, ServerProcess
from tests.support.tensor_bundles import Several, several

LENGTH = "Inference-Header-Content-Length"
DTYPES = {"FP32": "<f4", "INT64": "<i8", "INT32": "<i4", "FP64": "<f8", "UINT8": "u1", "BOOL": "?", "FP16": "<f2"}
OWN = {"a": ("FP32", [4]), "b": ("INT64", [2, 3])}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Several:
    return several(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module")
def server(serve: Serve, network: Several) -> Iterator[ServerProcess]:
    with serve(network.bundle.path, "--replicas", "1", "--max-body-bytes", "1000000") as running:
        yield running


class WrongError(Exception):
    """The plain reader finds a request that is none."""


def wrong(text: str) -> Any:
    raise WrongError(text)


def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(found)


def read(length: str | None, body: bytes) -> dict[str, Any]:
    """The tensors of a request to the model. Raises `WrongError`."""
    size = len(body)
    if length is not None:
        if not length.isascii() or not length.isdigit() or int(length) > size or int(length) == 0:
            wrong("length")
        size = int(length)
    try:
        document = json.loads(body[:size].decode(), parse_constant=wrong, object_pairs_hook=pairs)
    except ValueError:
        wrong("no JSON")
    rest, found = body[size:], {}
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        wrong("no inputs")
    outputs = document.get("outputs", [])
    if not isinstance(document.get("id", ""), str) or not isinstance(outputs, list):
        wrong("id or outputs")
    names = [each.get("name") if isinstance(each, dict) else None for each in outputs]
    if names.count("sums") > 1 or names.count("scores") > 1 or not {*names} <= {"sums", "scores"}:
        wrong("outputs")
    for each in document["inputs"]:
        if not isinstance(each, dict) or not all(isinstance(each.get(key), str) for key in ("name", "datatype")):
            wrong("no tensor")
        name, shape = each["name"], each.get("shape")
        if name in found or name not in OWN or each["datatype"] != OWN[name][0]:
            wrong("another tensor")
        if not isinstance(shape, list) or any(type(size) is not int for size in shape) or shape[1:] != OWN[name][1]:
            wrong("shape")
        dtype = np.dtype(DTYPES[each["datatype"]])
        told = each.get("parameters", {})
        if not isinstance(told, dict) or "shared_memory_region" in told:
            wrong("parameters")
        if not all(isinstance(value, str | int | float) for value in told.values()):
            wrong("a parameter")
        if "binary_data_size" in told:
            size = told["binary_data_size"]
            if "data" in each or type(size) is not int or not 0 <= size <= len(rest):
                wrong("size")
            data, rest = rest[:size], rest[size:]
            if not 0 < shape[0] <= 10**6 or len(data) != int(np.prod(shape)) * dtype.itemsize:
                wrong("size of shape")
            found[name] = np.frombuffer(data, dtype).reshape(shape)
        else:
            found[name] = in_json(each.get("data"), shape, dtype)
    if rest or found.keys() != OWN.keys() or len(found["a"]) != len(found["b"]):
        wrong("left over")
    return found


def in_json(data: Any, shape: list[int], dtype: Any) -> Any:
    numbers = []
    waiting = [data]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting.extend(reversed(each))
        elif isinstance(each, bool) or not isinstance(each, int | (float if dtype.kind == "f" else int)):
            wrong("no number")
        else:
            numbers.append(each)
    if not isinstance(data, list):
        wrong("no list")
    if dtype.kind == "i" and any(not -(2**63) <= each < 2**63 for each in numbers):
        wrong("too large")
    nested = any(isinstance(each, list) for each in data)
    try:
        array = np.array(data if nested else numbers, dtype)
    except ValueError:
        wrong("ragged")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        wrong("too large")
    if shape[0] < 1 or array.size != int(np.prod(shape)) or (nested and list(array.shape) != shape):
        wrong("shape of data")
    return array.reshape(shape)


# Mutations


def valid(numbers: random.Random) -> tuple[str | None, bytes]:
    """A request that is right, in one of its forms."""
    rows = numbers.choice([1, 1, 2, 3, 200])
    arrays: dict[str, np.ndarray] = {
        "a": np.array([[numbers.gauss(0, 1) for _ in range(4)] for _ in range(rows)], np.float32),
        "b": np.array([[[numbers.randrange(9) for _ in range(3)] for _ in range(2)] for _ in range(rows)], np.int64),
    }
    inputs: list[dict[str, Any]] = []
    tail = b""
    for name in numbers.sample(["a", "b"], 2):
        each = arrays[name]
        head: dict[str, Any] = {"name": name, "shape": list(each.shape), "datatype": OWN[name][0]}
        if numbers.random() < 0.75:
            head["parameters"] = {"binary_data_size": each.nbytes}
            tail += each.tobytes()
        else:
            head["data"] = each.tolist() if numbers.random() < 0.5 else each.ravel().tolist()
        inputs.append(head)
    text = json.dumps({"id": "x", "inputs": inputs, "outputs": [{"name": "sums"}, {"name": "scores"}]}).encode()
    return (str(len(text)) if tail or numbers.random() < 0.5 else None), text + tail


def lie_about_the_length(numbers: random.Random, length: str | None, body: bytes) -> tuple[str | None, bytes]:
    size = int(length or len(body))
    other = numbers.choice(
        [size - 1, size + 1, size + 8, 0, 1, -1, len(body), len(body) + 1, 2**31, 2**32 + size, 2**63]
    )
    return numbers.choice([str(other), None, f"+{size}", f"{size}.0", f"0{size}", "1e2"]), body


def cut_or_add(numbers: random.Random, length: str | None, body: bytes) -> tuple[str | None, bytes]:
    by = numbers.choice([1, 2, 4, 8, 16, 100])
    return length, numbers.choice([body[:-by], body + bytes(by), body + body[-by:], body[by:], body * 2])


def number_elsewhere(numbers: random.Random, length: str | None, body: bytes) -> tuple[str | None, bytes]:
    """Another number in the JSON, with the length told rightly or as it was."""
    size = int(length or len(body))
    document = json.loads(body[:size])
    each = numbers.choice(document["inputs"])
    odd: Any = numbers.choice(
        [0, 1, -1, 2, 3, 8, 2**31, 2**32, 2**63, 2**64, 2**70, 1.0, 1.5, True, None, "8", [1], {}]
    )
    if numbers.random() < 0.5 and "parameters" in each:
        each["parameters"]["binary_data_size"] = numbers.choice([odd, each["parameters"]["binary_data_size"] + 4])
    elif numbers.random() < 0.7:
        each["shape"][numbers.randrange(len(each["shape"]))] = odd
    else:
        each["shape"] = numbers.choice([[], [2], each["shape"] * 2, each["shape"][::-1], odd, [1] * 40])
    return rewritten(numbers, length, document, body[size:])


def structure(numbers: random.Random, length: str | None, body: bytes) -> tuple[str | None, bytes]:
    """Tensors twice, swapped, renamed, of another type, with two places for their data or none."""
    size = int(length or len(body))
    document = json.loads(body[:size])
    inputs = document["inputs"]
    each = numbers.choice(inputs)
    change = numbers.randrange(8)
    if change == 0:
        inputs.append(dict(each))
    elif change == 1:
        inputs.reverse()
    elif change == 2:
        each["name"] = numbers.choice(["a", "b", "c", "", 7])
    elif change == 3:
        each["datatype"] = numbers.choice([*DTYPES, "BYTES", "BF16", "fp32", 3])
    elif change == 4:
        each["data"] = numbers.choice([[], [1], [[1.5] * 4], "x", {}, 1])
    elif change == 5:
        each.pop("data", None)
        each.pop("parameters", None)
    elif change == 6:
        inputs.remove(each)
    else:
        each.setdefault("parameters", {})[numbers.choice(["shared_memory_region", "x", "binary_data_size"])] = "y"
    return rewritten(numbers, length, document, body[size:])


def flip_bytes(numbers: random.Random, length: str | None, body: bytes) -> tuple[str | None, bytes]:
    changed = bytearray(body)
    for _ in range(numbers.choice([1, 1, 2, 5])):
        changed[numbers.randrange(min(len(changed), 600))] = numbers.choice(
            [0, 34, 44, 91, 93, 123, 125, 48, 57, 92, 255]
        )
    return length, bytes(changed)


def rewritten(numbers: random.Random, length: str | None, document: Any, tail: bytes) -> tuple[str | None, bytes]:
    text = json.dumps(document).encode()
    return (length if length is None or numbers.random() < 0.2 else str(len(text))), text + tail


Mutation = Callable[[random.Random, str | None, bytes], tuple[str | None, bytes]]
MUTATIONS: list[Mutation] = [lie_about_the_length, cut_or_add, number_elsewhere, structure, flip_bytes]


def ask(connection: http.client.HTTPConnection, length: str | None, body: bytes) -> tuple[int, bytes]:
    connection.request("POST", "/v2/models/several/infer", body, {} if length is None else {LENGTH: length})
    answer = connection.getresponse()
    return answer.status, answer.read()


def check(server: ServerProcess, network: Several, *, seeds: range) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    answered = refused = 0
    for seed in seeds:
        numbers = random.Random(seed)
        length, body = valid(numbers)
        for _ in range(numbers.choice([0, 1, 1, 1, 2])):
            with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):  # it is too broken already
                length, body = numbers.choice(MUTATIONS)(numbers, length, body)
        status, text = ask(connection, length, body)
        try:
            tensors = read(length, body)
        except WrongError:
            assert 400 <= status < 500 or status == 501, (seed, status, text, length, body[:700])
            assert json.loads(text).keys() == {"error"} or status != 400, (seed, text)
            refused += 1
            continue
        assert status == 200, (seed, status, text, length, body[:700])
        right = network.answers({name: each.copy() for name, each in tensors.items()})
        found = {each["name"]: each for each in json.loads(text)["outputs"]}
        answered += 1
        if np.abs(tensors["b"].astype(np.float64)).max() > 2**40:  # engines differ in sums that overflow
            continue
        assert found.keys() == {"sums", "scores"}, seed
        assert found["sums"]["data"] == right["sums"].ravel().tolist(), seed
        scores, expected = np.array(found["scores"]["data"], np.float64), right["scores"].ravel().astype(np.float64)
        expected[~np.isfinite(expected)] = np.nan  # null in JSON
        close = np.isclose(scores, expected, rtol=1e-4, atol=1e-4 + 1e-5 * np.nanmax(np.abs(expected)), equal_nan=True)
        assert close.all(), (seed, scores, expected)
    connection.close()
    assert min(answered, refused) > len(seeds) // 10


def test_mutated_requests_are_refused_or_rightly_answered(server: ServerProcess, network: Several) -> None:
    check(server, network, seeds=range(500))


def test_requests_of_one_text_are_answered_each_with_its_own_numbers(server: ServerProcess, network: Several) -> None:
    """A text is read once. More of them than are kept come in turns, whole and with bytes that lack or are too many."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    numbers = random.Random(14)
    for turn in range(3):
        for name in range(70):
            rows, order = 1 + name % 3, ["a", "b"] if name % 2 else ["b", "a"]
            tensors: dict[str, np.ndarray] = {
                "a": np.array([[numbers.gauss(0, 1) for _ in range(4)] for _ in range(rows)], np.float32),
                "b": np.array([[[numbers.randrange(9) for _ in range(3)] for _ in range(2)] for _ in range(rows)]),
            }
            inputs = [
                {"name": each, "shape": list(tensors[each].shape), "datatype": OWN[each][0],
                 "parameters": {"binary_data_size": tensors[each].nbytes}}
                for each in order
            ]  # fmt: skip
            text = json.dumps({"id": str(name), "inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
            body = text + b"".join(tensors[each].tobytes() for each in order)
            for odd in (body[:-1], body + b"x"):
                status, said = ask(connection, str(len(text)), odd)
                assert (status, b"unexpected" in said) == (400, True), (turn, name)
            status, answer = ask(connection, str(len(text)), body)
            assert status == 200, answer
            size = answer.index(b"]}") + 2
            told = json.loads(answer[:size])
            assert told["id"] == str(name)
            place = size
            for each in told["outputs"]:
                right = network.answers({key: array.copy() for key, array in tensors.items()})[each["name"]]
                length = each["parameters"]["binary_data_size"]
                found = np.frombuffer(answer[place : place + length], right.dtype).reshape(each["shape"])
                assert np.allclose(found, right, rtol=1e-4, atol=1e-4), (turn, name)
                place += length
            assert place == len(answer)
    connection.close()


@pytest.mark.slow
def test_ten_thousand_mutated_requests_are(server: ServerProcess, network: Several) -> None:
    check(server, network, seeds=range(1000, 11_000))
