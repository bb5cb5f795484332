"""The OpenAPI document against the server that it describes: schemathesis asks what it allows, and what it does not."""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from flambeau.errors import RETRYABLE, Code
from flambeau.protocols.errors import STATUS
from flambeau.protocols.parameters import MEDIA_TYPES, TAKEN, Number, numbers_of
from tests.support import task_models
from tests.support.server import Serve, ServerProcess

ECHO = """
import flambeau


class Echo(flambeau.PythonModel):
    def predict(self, batch):
        return [len(item) if isinstance(item, (bytes, memoryview)) else item for item in batch]
"""


@pytest.fixture(scope="module")
def echo(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A Python model that answers JSON with itself and a file with its size."""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "echo.py").write_text(ECHO)
    with serve("echo.py:Echo", "--allow-code", cwd=folder) as server:
        yield server


@pytest.fixture(scope="module")
def numbers(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A network over four numbers."""
    folder = tmp_path_factory.mktemp("numbers")
    weights = {"weight": np.ones((3, 4), np.float32), "bias": np.zeros(3, np.float32)}
    save_file(weights, folder / "net.safetensors")
    with serve("net.safetensors", cwd=folder) as server:
        yield server


def fuzz(server: ServerProcess, folder: Path, *, examples: int) -> None:
    """F-45: all of schemathesis' checks, in all of its phases."""
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("st")),
            "--config-file", str(Path(__file__).with_name("schemathesis.toml")), "--no-color",
            "run", server.url + "/openapi.json", "--checks", "all", "--phases", "examples,coverage,fuzzing,stateful",
            "--max-examples", str(examples), "--workers", "1", "--continue-on-failure", "--seed", "1",
        ],
        capture_output=True, text=True, timeout=900, cwd=folder, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert re.search(r"(\d+) generated, \1 passed", done.stdout), done.stdout


def test_schemathesis_finds_nothing_at_a_python_model_f45(echo: ServerProcess, tmp_path: Path) -> None:
    fuzz(echo, tmp_path, examples=10)


@pytest.mark.long
def test_schemathesis_finds_nothing_at_an_image_model_f45(cat_server: ServerProcess, tmp_path: Path) -> None:
    fuzz(cat_server, tmp_path, examples=5)


@pytest.mark.parametrize("make", [task_models.sigmoid_outside, task_models.embedding, task_models.regression])
def test_schemathesis_finds_nothing_at_any_task_w4(
    serve: Serve, tmp_path: Path, make: Callable[[Path], task_models.Made]
) -> None:
    with serve(make(tmp_path / "model").bundle.path, "--replicas", "1") as server:
        fuzz(server, tmp_path, examples=5)


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("name", ["echo", "numbers", "cat_server"])
def test_schemathesis_finds_nothing_with_500_examples_f45(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    fuzz(request.getfixturevalue(name), tmp_path, examples=500)


@pytest.mark.slow
def test_the_document_has_the_shape_and_the_type_of_a_networks_input(numbers: ServerProcess) -> None:
    post = document(numbers)["paths"]["/predict/net/1"]["post"]
    assert list(post["requestBody"]["content"]) == ["application/json"]
    row, rows = post["requestBody"]["content"]["application/json"]["schema"]["properties"]["input"]["anyOf"]
    assert (row["minItems"], row["maxItems"], row["items"]["type"]) == (4, 4, "number")
    assert (rows["items"], rows["maxItems"]) == (row, 1024)
    limit = row["items"]["exclusiveMaximum"]
    assert numbers.post(json={"input": [limit, 0, 0, 0]}).json()["code"] == "invalid_tensor"
    assert numbers.post(json={"input": [float(np.nextafter(limit, 0)), 0, 0, 0]}).status_code == 200
    assert numbers.post(json={"input": [[0.0] * 4] * 1025}).json()["code"] == "invalid_tensor"


def document(server: ServerProcess) -> dict[str, Any]:
    """The document as a client gets it."""
    response = server.get("/openapi.json")
    assert response.headers["Content-Type"] == "application/json"
    found: dict[str, Any] = response.json()
    return found


def test_every_path_of_the_document_names_a_model_that_is_loaded(cat_server: ServerProcess) -> None:
    paths = document(cat_server)["paths"]
    predictions = {path for path in paths if path.startswith("/predict")}
    assert predictions == {
        "/predict", "/predict/efficientnet_lite0", "/predict/efficientnet_lite0/1", "/predictions/efficientnet_lite0",
    }  # fmt: skip
    answers = paths["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
    assert [each.get("title") for each in answers] == ["ByName", "ByIndex", None]
    assert answers[1]["properties"]["probabilities"]["maxItems"] == 1000


def test_every_code_stands_under_its_status(cat_server: ServerProcess) -> None:
    found = document(cat_server)
    responses = found["paths"]["/predict"]["post"]["responses"]
    told: dict[Code, int] = {
        code: int(status)
        for status, response in responses.items()
        if status != "200"
        for code in response["content"]["application/json"]["schema"]["allOf"][1]["properties"]["code"]["enum"]
    }
    elsewhere = {"not_found", "not_implemented", "method_not_allowed"}
    assert told == {code: status for code, status in STATUS.items() if code not in elsewhere}
    assert found["components"]["schemas"]["Error"]["properties"]["code"]["enum"] == sorted(STATUS)
    assert "Retry-After" in responses["503"]["headers"]
    assert STATUS.keys() >= RETRYABLE


@pytest.mark.parametrize("number", numbers_of("classification"), ids=lambda number: number.name)
def test_the_bounds_of_the_document_are_the_servers(number: Number, cat_server: ServerProcess, cat: bytes) -> None:
    parameters = document(cat_server)["paths"]["/predict"]["post"]["parameters"]
    [told] = [each for each in parameters if each.get("name") == number.name]
    least, most = told["schema"]["minimum"], told["schema"]["maximum"]

    def status(*values: object) -> int:
        if number.place == "header":
            return cat_server.post(files={"file": cat}, headers={number.name: str(values[0])}).status_code
        return cat_server.post(files={"file": cat}, params={number.name: list(values)}).status_code

    assert {status(least), status(most)} <= {200, 504}  # 504: not ready within a millisecond
    refused = (least - 1, most + 1, "", "none", "1_0", "nan", "1e999", "0x1", "\xb2")
    assert {value: status(value) for value in refused} == dict.fromkeys(refused, 400)
    assert number.place == "header" or status(most, most) == 400


@pytest.mark.parametrize(("kind", "name"), [("image", "cat_server"), ("python", "echo")])
def test_bodies_of_the_document_are_read_and_others_are_415(
    kind: Any, name: str, request: pytest.FixtureRequest, cat: bytes
) -> None:
    server: ServerProcess = request.getfixturevalue(name)
    told = document(server)["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert list(told) == [media_type for reading in TAKEN[kind] for media_type in MEDIA_TYPES[reading]]

    def status(media_type: str) -> int:
        if media_type == "multipart/form-data":
            return server.post(files={"file": cat}).status_code
        asked = {"image": base64.b64encode(cat).decode()} if kind == "image" else {"input": 1}
        body = json.dumps(asked).encode() if media_type.endswith("json") else cat
        return server.post(data=body, headers={"Content-Type": media_type.replace("*", "png")}).status_code

    everything = [*(each for several in MEDIA_TYPES.values() for each in several), "text/plain", "application/xml"]
    assert {each: status(each) for each in everything} == {each: 200 if each in told else 415 for each in everything}


def test_a_wrong_method_is_405_and_allow_names_the_right_ones(cat_server: ServerProcess) -> None:
    for path, right in (("/openapi.json", "GET"), ("/docs", "GET"), ("/predict", "POST"), ("/metrics", "GET")):
        response = cat_server.post(path) if right == "GET" else cat_server.get(path)
        assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
        assert right in response.headers["Allow"]


def test_the_page_of_the_document_is_locked_down_and_its_files_are_a_closed_set(cat_server: ServerProcess) -> None:
    """T-12, T-38."""
    page = cat_server.get("/docs")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script>|style=|\son\w+=|https?://", page.text)
    for file in re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text):
        response = cat_server.get("/" + file)
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/")
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    for hostile in ("/docs/LICENSE", "/docs/..%2fapp.py", "/docs/%2e%2e/app.py", "/docs/swagger-ui.css%00"):
        assert cat_server.get(hostile).status_code == 404


def dumped(chromium: str, url: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """What a browser makes of a page, and its log."""
    return subprocess.run(
        [
            chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder}", "--virtual-time-budget=10000", "--enable-logging=stderr",
            "--dump-dom", url,
        ],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(400)  # on a fresh machine the first test with a browser installs it
def test_a_browser_shows_every_operation_and_reports_nothing(
    chromium: str, cat_server: ServerProcess, tmp_path: Path
) -> None:
    """T-12: under the strict policy, with nothing refused and nothing written to the console."""
    done = dumped(chromium, cat_server.url + "/docs#/predictions/predict", tmp_path)  # the first operation is unfolded
    shown = re.findall(r'class="opblock-summary-path" data-path="([^"]+)"', done.stdout)
    operations = [path for path, methods in document(cat_server)["paths"].items() for _ in methods]
    assert sorted(shown) == sorted(operations)
    assert "X-Request-Timeout-Ms" in done.stdout
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
