"""TorchServe's archives, handlers, clients and management, against a real server; and SageMaker's scripts."""

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests
import torch

from flambeau.bundle.storage import Activation
from flambeau.system import process
from tests.support import model_store, task_models
from tests.support.photographs import encoded, photograph
from tests.support.server import FLAMBEAU, ServerProcess, free_port, started


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return model_store.custom_network()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, network: torch.nn.Module) -> Path:
    return model_store.write_store(tmp_path_factory.mktemp("store"), network)


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("torchserve")
    labels = ("cat", "dog", "bird", "fish", "horse", "cow")
    task_models.make(
        folder / "pictures", task_models.network(6), task="classification", labels=labels,
        activation=Activation("softmax", known="said"), pipeline=task_models.PREPARATION,
    )  # fmt: skip
    port = free_port()
    sources = [
        f"rows={store / 'rows.mar'}",
        f"enveloped={store / 'enveloped.mar'}",
        f"functions={store / 'functions.mar'}",
        f"script={store / 'model.tar.gz'}",
    ]
    options = [
        "--allow-code",
        "--model-store",
        store,
        "--management-address",
        f"127.0.0.1:{port}",
        "--log-format",
        "text",
    ]
    predict = ["--predict-route", "/invocations", "--default", "script"]
    command = [*FLAMBEAU, "serve", *sources, f"pictures={folder / 'pictures'}", *options, *predict]
    with started(command, folder, anew=False) as found:
        yield found


@pytest.fixture(scope="module")
def management(server: ServerProcess) -> str:
    """The address of management, as the server prints it."""
    [line] = [line for line in server.output().splitlines() if line.startswith("also at ")]
    return f"http://{line.removeprefix('also at ')}"


def eager(network: torch.nn.Module, *rows: list[float]) -> list[list[float]]:
    """What PyTorch makes of rows, scaled as the handler scales them."""
    with torch.no_grad():
        return network(torch.tensor(rows, dtype=torch.float32) * 2).tolist()


def curl(*arguments: object) -> str:
    return subprocess.run(["curl", "-s", *map(str, arguments)], capture_output=True, text=True, check=True).stdout


# Custom handlers


def test_a_subclass_of_the_base_answers_as_eager_pytorch(server: ServerProcess, network: torch.nn.Module) -> None:
    answered = requests.post(f"{server.url}/predictions/rows", json=[1, 2, 3], timeout=60)
    body = answered.json()
    assert body["scores"] == pytest.approx(eager(network, [1, 2, 3])[0], abs=1e-6)
    assert (body["word"], body["set"], body["here"], body["class"]) == ("hello", {"a": 1}, True, "cat")
    assert answered.headers["x-batch"] == "1"
    for path in ("/predictions/rows/2.0", "/predictions/rows"):
        same = requests.put(f"{server.url}{path}", data=b"[1, 2, 3]", timeout=60)  # as curl -T sends it
        assert same.json() == body
    form = requests.post(f"{server.url}/predictions/rows", files={"data": b"[1, 2, 3]"}, timeout=60)
    assert form.json() == body


def test_requests_that_come_together_are_one_batch_in_order(server: ServerProcess, network: torch.nn.Module) -> None:
    rows = [[float(index), 1.0, 2.0] for index in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: requests.post(f"{server.url}/predictions/rows", json=row, timeout=60), rows))
    for answered, expected in zip(found, eager(network, *rows), strict=True):
        assert answered.json()["scores"] == pytest.approx(expected, abs=1e-6)
    assert max(int(each.headers["x-batch"]) for each in found) > 1


def test_one_bad_request_of_a_batch_fails_alone(server: ServerProcess, network: torch.nn.Module) -> None:
    asked: list[Any] = [[1, 2, 3], "refuse", "fail", [4, 5, 6]]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: requests.post(f"{server.url}/predictions/rows", json=row, timeout=60), asked))
    assert [each.status_code for each in found] == [200, 422, 500, 200]
    assert found[1].json() == {"code": 422, "type": "InternalServerException", "message": "there is no row"}
    assert found[2].json()["type"] == "InternalServerException"
    assert "secret" not in found[2].text
    assert found[3].json()["scores"] == pytest.approx(eager(network, [4, 5, 6])[0], abs=1e-6)


@pytest.mark.long
def test_a_handler_that_prints_forks_or_dies_disturbs_nobody_else(
    server: ServerProcess, network: torch.nn.Module
) -> None:
    assert requests.post(f"{server.url}/predictions/rows", json="print", timeout=60).status_code == 200
    assert "printed by the handler" in server.log()
    child = int(requests.post(f"{server.url}/predictions/rows", json="fork", timeout=60).headers["X-Child"])
    asked: list[Any] = ["die", [1, 2, 3], [4, 5, 6]]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda row: requests.post(f"{server.url}/predictions/rows", json=row, timeout=90), asked))
    assert [each.status_code for each in found] == [500, 200, 200]
    assert found[1].json()["scores"] == pytest.approx(eager(network, [1, 2, 3])[0], abs=1e-6)
    server.wait_until(lambda: process.identity(child) is None, within=20)  # it ends with its worker


def test_a_function_gets_the_parts_of_a_form_and_decides_about_its_answer(server: ServerProcess) -> None:
    url = f"{server.url}/predictions/functions"
    headers = {"User-Agent": "old client", "Authorization": "Bearer secret"}
    parts: dict[str, Any] = {
        "a": b"1", "b": (None, "2", "text/plain"), "c": ("c.json", "[1]", "application/json"),
        "d": ("d.txt", "2", "text/plain"),
    }  # fmt: skip
    found = requests.post(url, files=parts, headers=headers, timeout=60).json()
    assert found == {
        "loaded": 1, "keys": ["a", "b", "c", "d"], "id": True, "agent": "old client", "token": None,
        "kinds": ["bytearray", "bytearray", "list", "str"],  # as the real TorchServe has it
    }  # fmt: skip
    text = requests.post(url, files={"text": (None, "bold", "text/plain")}, timeout=60)
    assert (text.text, text.headers["content-type"]) == ("<b>bold</b>", "text/html")
    data = requests.post(url, files={"bytes": b"abc"}, timeout=60)
    assert (data.content, data.status_code) == (b"cba", 202)
    assert requests.post(url, data={"x": "1"}, timeout=60).json()["keys"] == ["x"]
    assert requests.post(url, json={"x": 1}, timeout=60).json()["keys"] == ["body"]


def test_a_handler_may_choose_a_status_without_a_name_and_one_without_a_body(server: ServerProcess) -> None:
    url = f"{server.url}/predictions/functions"
    with requests.Session() as line:  # one connection: what stands behind an answer would be read as the next
        for status, told in (("499", b"told"), ("204", b""), ("304", b""), ("520", b"told"), ("200", b"told")):
            found = line.post(url, data={"status": status}, timeout=10)
            assert (str(found.status_code), found.content) == (status, told)


def test_an_envelope_is_taken_off_and_put_back(server: ServerProcess) -> None:
    """Of TorchServe's own requests: KServe's have their instances already."""
    given = [{"b64": "YWJj"}, 2, {"data": {"b64": "YWJj"}, "target": 0}]
    expected = {"predictions": ["abc", 2, {"data": "bytes", "target": "int"}]}
    for sent in ({"json": {"instances": given}}, {"files": {"data": json.dumps({"instances": given}).encode()}}):
        assert server.post("/predictions/enveloped", **sent).json() == expected
    v1 = server.post("/v1/models/enveloped:predict", json={"instances": [{"data": "abc", "target": 0}]})
    assert v1.json() == {"predictions": [{"data": "str", "target": "int"}]}
    refused: list[dict[str, Any]] = [
        {"json": [1]},
        {"json": {"instances": []}},
        {"data": b"{"},
        {"json": {"instances": [{"b64": "!"}]}},
    ]
    for bad in refused:
        assert server.post("/predictions/enveloped", **bad).status_code == 400, bad


@pytest.mark.long
def test_handlers_are_answered_over_other_protocols(server: ServerProcess, network: torch.nn.Module) -> None:
    [row] = eager(network, [1, 2, 3])
    native = server.post("/predict/rows", json={"input": [1, 2, 3]}).json()["output"]
    assert native["scores"] == pytest.approx(row, abs=1e-6)
    v1 = server.post("/v1/models/rows:predict", json={"instances": [{"data": [1, 2, 3]}, [1, 2, 3]]}).json()
    assert [each["scores"] for each in v1["predictions"]] == [pytest.approx(row, abs=1e-6)] * 2
    assert server.post("/predict/rows", json={"input": "refuse"}).json()["code"] == "input_rejected"


# Pictures, and the protocol's own shapes


def test_a_classifier_is_answered_with_its_best_five(server: ServerProcess, tmp_path: Path) -> None:
    cat = tmp_path / "cat.png"
    cat.write_bytes(encoded(photograph("chelsea")))
    url = f"{server.url}/predictions/pictures"
    found = json.loads(curl("-T", cat, url))
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert len(found) == 5
    [best] = server.post("/predict/pictures?top_k=1", data=cat.read_bytes()).json()["predictions"]
    assert next(iter(found.items())) == (best["class_name"], pytest.approx(best["probability"]))
    assert json.loads(curl("-F", f"data=@{cat}", url)) == found
    assert json.loads(curl("--data-binary", f"@{cat}", "-H", "Content-Type: image/png", url)) == found


@pytest.mark.parametrize(
    ("path", "sent", "status", "kind"),
    [
        ("/predictions/nobody", {"data": b"x"}, 404, "ModelNotFoundException"),
        ("/predictions/rows/9", {"data": b"x"}, 404, "ModelVersionNotFoundException"),
        ("/predictions/pictures", {"data": b"no picture"}, 415, "BadRequestException"),
        ("/predictions/pictures", {"files": {"other": b"x"}}, 400, "BadRequestException"),
        ("/predictions/pictures", {}, 400, "BadRequestException"),
        ("/explanations/pictures", {"data": b"x"}, 501, "InternalServerException"),
    ],
)
def test_errors_have_torchserves_form(
    server: ServerProcess, path: str, sent: dict[str, Any], status: int, kind: str
) -> None:
    answered = server.post(path, **sent)
    assert (answered.status_code, answered.json()["code"], answered.json()["type"]) == (status, status, kind)
    assert answered.json()["message"]


def test_health_and_description(server: ServerProcess) -> None:
    assert server.get("/ping").json() == {"status": "Healthy"}
    assert server.get("/api-description").json()["openapi"].startswith("3.")


def test_the_description_says_what_predictions_answer(server: ServerProcess, cat: bytes) -> None:
    document = server.get("/openapi.json").json()
    for model, sent in (("pictures", cat), ("functions", b"x"), ("pictures", b"no picture")):
        answered = server.post(f"/predictions/{model}", data=sent)
        described = document["paths"][f"/predictions/{model}"]["put"]["responses"]
        told = described.get(str(answered.status_code), described["default"])
        jsonschema.validate(answered.json(), told["content"]["application/json"]["schema"])
    answers = document["paths"]["/predictions/pictures"]["post"]["responses"]["200"]["content"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"cat": 2}, answers["application/json"]["schema"])


def test_metrics_have_their_old_names_beside_ours(management: str, server: ServerProcess) -> None:
    assert server.post("/predictions/functions", data=b"x").status_code == 200
    text = requests.get(f"{management}/metrics", timeout=60).text
    for name in ("ts_inference_requests_total", "ts_queue_latency_microseconds", "ts_inference_latency_microseconds"):
        assert f'{name}{{hostname="' in text or f'{name}{{model_name="functions"' in text
    assert "flambeau_requests_total{" in text


# SageMaker's scripts


@pytest.mark.long
def test_a_script_answers_invocations_by_its_functions_and_the_defaults(server: ServerProcess) -> None:
    def invoke(body: str | bytes, content_type: str, accept: str = "*/*") -> requests.Response:
        return server.post("/invocations", data=body, headers={"Content-Type": content_type, "Accept": accept})

    as_json = invoke("[[1, 2]]", "application/json")
    assert (as_json.json(), as_json.headers["content-type"]) == ([[3.0, 6.0]], "application/json")
    assert invoke("1,2\n3,4\n", "text/csv", "text/csv").text == "3.0,6.0\n9.0,12.0\n"
    assert invoke("text", "application/json").status_code == 400
    assert invoke("x", "application/pdf").status_code == 415
    assert invoke("[1]", "application/json", "image/png").status_code == 415


@pytest.mark.long
def test_awss_own_path_answers_as_invocations_do(server: ServerProcess) -> None:
    """What boto3 sends, with a signature that means nothing here; boto3 itself is asked in test_platform_clients.py."""

    def ask(endpoint: str, body: str = "[[1, 2]]", **headers: str) -> requests.Response:
        given = {"Authorization": "AWS4-HMAC-SHA256 Credential=x", "Content-Type": "application/json"}
        more = {f"X-Amzn-SageMaker-{name.replace('_', '-')}": value for name, value in headers.items()}
        return server.post(f"/endpoints/{endpoint}/invocations", data=body, headers={**given, **more})

    found = ask("script")
    assert (found.json(), found.headers["x-amzn-invoked-production-variant"]) == ([[3.0, 6.0]], "1")
    assert ask("any", Target_Model="script").json() == ask("script", Target_Variant="1").json() == found.json()
    for refused, status, kind in (
        (ask("nobody"), 404, "ValidationError"), (ask("script", Target_Variant="9"), 404, "ValidationError"),
        (ask("script", "text"), 400, "ModelError"), (ask("pictures", "[[1, 2]]"), 415, "ModelError"),
    ):  # fmt: skip
        body = refused.json()
        assert (refused.status_code, refused.headers["x-amzn-errortype"], body["code"]) == (status, kind, kind)
        assert body["message"]
        assert body["OriginalStatusCode"] == status


# Management


def test_archives_are_registered_scaled_and_unregistered(server: ServerProcess, management: str) -> None:
    def ask(method: str, path: str) -> tuple[int, Any]:
        answered = requests.request(method, management + path, timeout=90)
        return answered.status_code, answered.json()

    assert ask("POST", "/models?url=plain.mar&model_name=two&initial_workers=2&synchronous=true")[0] == 200
    assert [each["status"] for each in ask("GET", "/models/two")[1][0]["workers"]] == ["READY", "READY"]
    assert ask("DELETE", "/models/two")[0] == 200
    status, body = ask("POST", "/models?url=plain.mar")
    assert (status, "registered with 0 initial workers" in body["status"]) == (200, True)
    assert server.post("/predictions/plain", data=b"x").status_code == 503
    assert ask("PUT", "/models/plain?min_worker=1&synchronous=true")[0] == 200
    assert server.post("/predictions/plain", data=b"x").text == "plain 1"
    [shown] = ask("GET", "/models/plain")[1]
    assert (shown["modelName"], shown["batchSize"], shown["workers"][0]["status"]) == ("plain", 1, "READY")
    assert "plain" in [each["modelName"] for each in ask("GET", "/models")[1]["models"]]
    assert ask("POST", "/models?url=plain.mar")[1]["type"] == "ConflictStatusException"
    assert ask("PUT", "/models/plain?min_worker=2&synchronous=true")[0] == 200
    [shown] = ask("GET", "/models/plain")[1]
    assert [each["status"] for each in shown["workers"]] == ["READY", "READY"]
    assert ask("PUT", "/models/plain?min_worker=0&synchronous=true")[0] == 200
    assert server.post("/predictions/plain", data=b"x").status_code == 503
    assert ask("DELETE", "/models/plain") == (200, {"status": 'Model "plain" unregistered'})
    assert ask("GET", "/models/plain")[1]["type"] == "ModelNotFoundException"


def test_an_archive_that_cannot_be_loaded_is_not_registered(management: str) -> None:
    answered = requests.post(
        f"{management}/models", json={"url": "broken.mar", "initial_workers": 1, "synchronous": True}, timeout=90
    )
    assert (answered.status_code, "division by zero" in answered.json()["message"]) == (422, True)
    assert requests.get(f"{management}/models/broken", timeout=60).status_code == 404


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("?url=plain.mar&initial_workers=999", 400),
        ("?url=gone.mar", 404),
        ("?url=../store/plain.mar", 404),
        ("?url=.", 404),
        ("?url=%00", 404),
        (f"?url={'a' * 3000}", 404),
        ("?url=http://x.example/y.mar", 403),
    ],
)
def test_nothing_outside_of_the_store_is_registered(management: str, query: str, status: int) -> None:
    assert requests.post(f"{management}/models{query}", timeout=60).status_code == status


def test_nothing_is_managed_at_the_address_of_predictions(server: ServerProcess) -> None:
    assert server.post("/models?url=plain.mar").status_code == 403
    assert requests.delete(f"{server.url}/models/rows", timeout=60).status_code == 403
    assert server.get("/models/rows").status_code == 200
