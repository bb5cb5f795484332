"""Each platform's profile as a real server, started by the platform's environment and asked as the platform asks."""

import base64
import contextlib
import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests.support.documents import make_weights
from tests.support.fronts import application
from tests.support.kserve_models import Served
from tests.support.photographs import encoded, photograph
from tests.support.server import FLAMBEAU, ServerProcess, free_port, started
from tests.support.tensor_bundles import doubling

DOUBLED = [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]]
ROWS = [[1, 2, 3], [4, 5, 6]]
CSV = "1,2,3\n4,5,6\n"


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return doubling(tmp_path_factory.mktemp("numbers") / "model")


@pytest.fixture(scope="module")
def picture() -> bytes:
    return encoded(photograph("chelsea"), "JPEG")


@contextlib.contextmanager
def on(folder: Path, *arguments: object, **environment: str) -> Iterator[ServerProcess]:
    """`flambeau serve` where these variables are set."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("FLAMBEAU_")}
    command = [*FLAMBEAU, "serve", "--replicas", "1", *arguments]
    with started(command, folder, environment={**given, **environment}, anew=False) as server:
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        yield server


def first_line(server: ServerProcess) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(server.log().splitlines()[0])
    return found


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# SageMaker


@pytest.fixture(scope="module")
def sagemaker(tmp_path_factory: pytest.TempPathFactory, numbers: Path) -> Iterator[ServerProcess]:
    port = free_port()
    with on(tmp_path_factory.mktemp("sagemaker"), SAGEMAKER_BASE_DIR=str(numbers.parent), SAGEMAKER_BIND_TO_PORT=port,
            SAGEMAKER_PROGRAM="inference.py") as server:  # fmt: skip
        assert server.url == f"http://127.0.0.1:{port}"
        yield server


def test_sagemaker_is_named_in_the_first_line_and_answers_ping(sagemaker: ServerProcess, numbers: Path) -> None:
    line = first_line(sagemaker)
    assert (line["event"], line["name"], line["host"]) == ("platform", "sagemaker", "0.0.0.0")
    assert line["found"] == f"{numbers}, SAGEMAKER_BIND_TO_PORT"
    answer = sagemaker.get("/ping", headers={"Host": "anything.example"})
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("body", "media_type", "accept", "answer"),
    [
        (json.dumps(ROWS), "application/json", None, DOUBLED),
        (json.dumps({"instances": ROWS}), "application/json", None, {"predictions": DOUBLED}),
        (json.dumps({"input": ROWS}), "application/json", None, {"output": DOUBLED}),
        (CSV, "text/csv", None, DOUBLED),
        (CSV, "text/csv; charset=utf-8", "text/csv", "2,4,6\n8,10,12\n"),
        (npy(np.array(ROWS)), "application/x-npy", None, DOUBLED),
        (npy(np.asfortranarray(np.array(ROWS, np.float32))), "application/x-npy", "application/x-npy", DOUBLED),
    ],
)
def test_sagemaker_takes_and_gives_its_content_types(
    sagemaker: ServerProcess, body: Any, media_type: str, accept: str | None, answer: Any
) -> None:
    headers = {"Content-Type": media_type, **({"Accept": accept} if accept else {})}
    found = sagemaker.post("/invocations", data=body, headers=headers)
    assert found.status_code == 200, found.text
    assert found.headers["content-type"] == (accept or "application/json")
    if accept == "text/csv":
        assert found.text == answer
    elif accept == "application/x-npy":
        assert np.load(io.BytesIO(found.content)).tolist() == answer
    else:
        assert found.json() == answer


def header_of(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("body", "media_type", "code"),
    [
        (b"a,b,c\n1,2,3\n", "text/csv", "invalid_tensor"),
        (b"1,2,3\n4,5\n", "text/csv", "invalid_tensor"),
        (b"\xff\xfe", "text/csv", "invalid_tensor"),
        (b"", "text/csv", "empty_body"),
        (b"1,2\n", "text/csv", "invalid_tensor"),
        (header_of("(2, 3)") + b"\0" * 8, "application/x-npy", "invalid_tensor"),  # cut short
        (header_of("(99999999999, 999999999)"), "application/x-npy", "invalid_tensor"),  # a bomb
        (header_of("(-1, -1)") + b"\0" * 8, "application/x-npy", "invalid_tensor"),
        (header_of("(1,)", "'|O'") + b"cos\nsystem\n", "application/x-npy", "invalid_tensor"),  # a pickle
        (header_of("__import__('os')"), "application/x-npy", "invalid_tensor"),
        (b"PK\x03\x04", "application/x-npy", "invalid_tensor"),
        (b'[[1,2,3]], "parameters": {"top_k": 2}', "application/json", "invalid_json"),
        (b'{"instances": [[1,2,3]], "instances": [[4,5,6]]}', "application/json", "invalid_json"),
        (b"[[1, 2]]", "application/json", "invalid_tensor"),
        (b"x", "application/x-tar", "unsupported_media_type"),
    ],
)
def test_what_sagemaker_sends_wrongly_is_refused(
    sagemaker: ServerProcess, body: bytes, media_type: str, code: str
) -> None:
    answer = sagemaker.post("/invocations", data=body, headers={"Content-Type": media_type})
    assert (answer.json()["code"], answer.status_code // 100) == (code, 4)


def test_nothing_is_managed_on_a_platform_without_tokens(sagemaker: ServerProcess) -> None:
    assert sagemaker.post("/models", json={"model": "a", "version": "1", "source": "/etc"}).status_code == 403
    assert sagemaker.post("/v2/repository/models/model/unload").status_code == 403


def test_a_token_that_could_never_arrive_stops_the_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [*FLAMBEAU, "serve", "--platform", "sagemaker"], capture_output=True, text=True, timeout=60,
        env={**os.environ, "FLAMBEAU_TOKEN": "x" * 10 + "abcdefghijklmnop", "FLAMBEAU_LOG_FORMAT": "text"}, check=False,
    )  # fmt: skip
    assert done.returncode == 78
    assert "Amazon SageMaker takes the header Authorization off every request" in done.stderr
    assert "take FLAMBEAU_TOKEN away" in done.stderr


def test_sagemaker_loads_and_unloads_models(tmp_path: Path) -> None:
    models, port = tmp_path / "models", free_port()
    for name in ("a", "b"):
        doubling(models / name / "model")
    (models / "empty" / "model").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    doubling(tmp_path / "elsewhere" / "model")
    with on(tmp_path, SAGEMAKER_BASE_DIR=str(tmp_path), SAGEMAKER_BIND_TO_PORT=port,
            SAGEMAKER_MULTI_MODEL="true") as server:  # fmt: skip

        def load(name: str, url: object) -> requests.Response:
            return server.post("/models", json={"model_name": name, "url": str(url)})

        assert server.get("/ping").status_code == 200
        assert server.get("/models").json() == {"models": []}
        unnamed = server.post("/invocations", json=ROWS)
        told = "the request names no model, and there is no default one: name it"
        assert (unnamed.status_code, unnamed.json()["error"]) == (404, told)
        one = {"modelName": "a", "modelUrl": str(models / "a" / "model")}
        loaded = load("a", models / "a" / "model")
        assert (loaded.status_code, loaded.json()) == (200, one)
        assert load("a", models / "a" / "model").status_code == 409
        assert load("b", models / "b" / "model").status_code == 200
        assert server.get("/models?limit=1").json() == {"models": [one], "nextPageToken": "b"}
        assert [each["modelName"] for each in server.get("/models?next_page_token=b").json()["models"]] == ["b"]
        assert server.get("/models/a").json() == one
        assert server.post("/models/a/invoke", json=ROWS).json() == DOUBLED
        assert server.post("/models/c/invoke", json=ROWS).status_code == 404
        assert server.get("/models/c").status_code == 404
        refused = load("c", models / "empty" / "model")
        assert (refused.status_code, "is empty" in refused.json()["error"]) == (422, True)
        for outside in (tmp_path / "elsewhere" / "model", models / ".." / "elsewhere" / "model", "/etc"):
            assert load("c", outside).status_code == 403
        assert load("../c", models / "a" / "model").status_code == 400
        assert requests.delete(f"{server.url}/models/a", timeout=60).status_code == 200
        assert requests.delete(f"{server.url}/models/a", timeout=60).status_code == 404
        assert server.post("/models/a/invoke", json=ROWS).status_code == 404
        assert load("a", models / "a" / "model").status_code == 200


def test_sagemaker_is_told_when_there_is_no_memory_for_a_model(tmp_path: Path) -> None:
    doubling(tmp_path / "models" / "a" / "model")
    with on(tmp_path, "--max-memory", "1048576", SAGEMAKER_BASE_DIR=str(tmp_path), SAGEMAKER_MULTI_MODEL="true",
            SAGEMAKER_BIND_TO_PORT=free_port()) as server:  # fmt: skip
        answer = server.post("/models", json={"model_name": "a", "url": str(tmp_path / "models" / "a" / "model")})
        assert (answer.status_code, answer.json()["code"]) == (507, "out_of_memory")
        assert server.get("/models").json() == {"models": []}
        assert server.get("/ping").status_code == 200


# Vertex AI


def test_vertex_is_asked_at_its_own_routes(tmp_path: Path, models: Served, picture: bytes) -> None:
    port = free_port()
    routes = {"AIP_HEALTH_ROUTE": "/v1/endpoints/7/health", "AIP_PREDICT_ROUTE": "/v1/endpoints/7:predict"}
    with on(tmp_path, AIP_HTTP_PORT=port, AIP_STORAGE_URI=str(models.folder / "animals"), **routes) as server:
        assert first_line(server)["found"] == "AIP_HTTP_PORT, AIP_HEALTH_ROUTE, AIP_PREDICT_ROUTE"
        assert server.get(routes["AIP_HEALTH_ROUTE"], headers={"Host": "vertex"}).status_code == 200
        b64 = base64.b64encode(picture).decode()
        for parameters in ({"parameters": None}, {"parameters": {"top_k": 2, "confidence": 1}}, {}):
            body = {"instances": [{"b64": b64}, {"b64": b64}], **parameters}
            answer = server.post(routes["AIP_PREDICT_ROUTE"], json=body)
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["predictions"]) == 2
        raw = server.post(routes["AIP_PREDICT_ROUTE"], data=picture, headers={"Content-Type": "image/jpeg"})
        assert raw.json() == answer.json()["predictions"][0]


# Hugging Face endpoints


def test_hugging_face_is_answered_in_the_shape_of_the_task(tmp_path: Path, models: Served, picture: bytes) -> None:
    arguments = ("--platform", "huggingface", "--port", "0", models.folder / "animals" / "1")
    with on(tmp_path, *arguments) as server:
        assert server.get("/health").status_code == 200
        raw = server.post("/", data=picture, headers={"Content-Type": "image/jpeg"}).json()
        assert [set(each) for each in raw] == [{"label", "score"}] * 5
        assert [each["score"] for each in raw] == sorted((each["score"] for each in raw), reverse=True)
        right = models.animals.answers(picture).softmax(0)
        assert raw[0]["score"] == pytest.approx(float(right.max()), abs=1e-4)
        b64 = base64.b64encode(picture).decode()
        two = server.post("/", json={"inputs": b64, "parameters": {"top_k": 2, "function_to_apply": None}}).json()
        assert two == raw[:2]
        assert server.post("/?top_k=1", data=picture, headers={"Content-Type": "image/jpeg"}).json() == raw[:1]
        assert server.post("/", json={"inputs": [b64, b64], "parameters": {"top_k": 1}}).json() == [raw[:1]] * 2
        least = raw[1]["score"]
        assert server.post("/", json={"inputs": b64, "parameters": {"threshold": least}}).json() == raw[:2]
        wrong: dict[str, Any]
        for wrong in ({"inputs": b64, "parameters": {"function_to_apply": "sigmoid"}}, {"input": b64}, {"inputs": 3},
                      {"inputs": b64, "parameters": {"top_k": 0}}, {"inputs": []}):  # fmt: skip
            answer = server.post("/", json=wrong)
            assert (answer.status_code // 100, "error" in answer.json()) == (4, True)
        assert server.get("/").status_code == 200  # the page

        client = server.hugging_face()  # Hugging Face's own, unmodified
        assert [[each.label, each.score] for each in client.image_classification(picture)] == [
            [each["label"], each["score"]] for each in raw
        ]
        assert len(client.image_classification(picture, top_k=2, function_to_apply="softmax")) == 2


def test_hugging_face_answers_a_network_over_numbers_with_lists(tmp_path: Path, numbers: Path) -> None:
    with on(tmp_path, "--platform", "huggingface", "--port", "0", numbers) as server:
        assert server.post("/", json={"inputs": ROWS}).json() == DOUBLED


# The others


def test_azure_asks_for_its_score_and_reads_healthy(tmp_path: Path, numbers: Path) -> None:
    environment = {"AZUREML_MODEL_DIR": str(numbers), "AML_APP_ROOT": "/var/azureml-app"}
    with on(tmp_path, "--port", "0", **environment) as server:
        assert first_line(server)["name"] == "azure-ml"
        assert server.get("/").text == "Healthy"
        assert server.post("/score", json={"input": ROWS}).json() == {"output": DOUBLED}
        assert server.post("/score", json=ROWS).json() == DOUBLED


def test_cloud_run_wants_a_decision_about_who_may_call(tmp_path: Path, numbers: Path) -> None:
    knative = {"K_SERVICE": "cats", "K_REVISION": "cats-1", "K_CONFIGURATION": "cats", "PORT": free_port()}
    with (
        pytest.raises(RuntimeError, match="would serve everybody who can reach this machine"),
        on(tmp_path, numbers, **knative),
    ):
        pass
    with on(tmp_path, numbers, FLAMBEAU_INSECURE_NO_AUTH="1", **knative) as server:
        assert server.url == f"http://127.0.0.1:{knative['PORT']}"
        assert first_line(server)["name"] == "cloud-run"
        assert server.post("/predict", json={"input": ROWS}).json() == {"output": DOUBLED}


def test_lambda_is_reached_through_its_adapter_by_any_name_and_manages_nothing(tmp_path: Path, numbers: Path) -> None:
    environment = {"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001", "AWS_LAMBDA_FUNCTION_NAME": "cats"}
    port = free_port()
    with on(tmp_path, numbers, AWS_LWA_PORT=port, **environment) as server:
        host = {"Host": "abc.lambda-url.eu-west-1.on.aws"}
        assert server.url == f"http://127.0.0.1:{port}"
        assert server.get("/readyz", headers=host).status_code == 200
        assert server.post("/predict", json={"input": ROWS}, headers=host).json() == {"output": DOUBLED}
        assert server.post("/v2/repository/models/doubling/unload", headers=host).status_code == 403


def test_kserve_serves_the_mounted_folder_and_its_probes_need_no_name(tmp_path: Path, models: Served) -> None:
    arguments = ("--platform", "kserve", "--port", "0", "--allow-code", models.folder, "--allowed-hosts", "cats.ns.svc")
    with on(tmp_path, *arguments, FLAMBEAU_INSECURE_NO_AUTH="1") as server:
        for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
            assert server.get(path, headers={"Host": "10.1.2.3:8080"}).status_code == 200
        assert server.get("/v1/models", headers={"Host": "10.1.2.3:8080"}).status_code == 400
        names = server.get("/v1/models", headers={"Host": "cats.ns.svc"}).json()["models"]
        assert names == ["animals", "double", "line", "several"]


def test_on_no_platform_probes_are_refused_by_a_foreign_name(tmp_path: Path, numbers: Path) -> None:
    with on(tmp_path, "--port", "0", numbers) as server:
        assert server.get("/readyz", headers={"Host": "10.1.2.3"}).status_code == 400
        assert server.post("/invocations", json=ROWS).status_code == 404
        assert server.get("/ping", headers={"Host": "10.1.2.3"}).status_code == 400  # TorchServe's


def test_an_application_under_wsgi_answers_a_platforms_routes_too(numbers: Path) -> None:
    options = {"health_route": "/", "predict_route": "/score", "runner": "threads", "replicas": 1}
    with application(str(numbers), platform="azure-ml", **options) as app:
        client = app.test_client()
        assert client.get("/", headers={"Host": "10.1.2.3"}).text == "Healthy"
        assert client.post("/score", json={"instances": ROWS}).json == {"predictions": DOUBLED}
        assert client.post("/score", data=CSV, headers={"Content-Type": "text/csv"}).json == DOUBLED


# Building at the start


def test_a_platform_without_the_time_for_a_build_refuses_it(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes((doubling(tmp_path / "bundle") / "model.onnx").read_bytes())
    environment = {"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001", "AWS_LAMBDA_FUNCTION_NAME": "cats"}
    with (
        pytest.raises(RuntimeError, match=r"AWS Lambda waits 10 s for a start, too short .*: build it before"),
        on(tmp_path, "--port", "0", tmp_path / "net.onnx", FLAMBEAU_CACHE=str(tmp_path / "cache"), **environment),
    ):
        pass


@pytest.mark.long
def test_a_bare_file_in_the_model_folder_is_built_with_its_steps_in_the_log(tmp_path: Path) -> None:
    model = tmp_path / "ml" / "model"
    model.mkdir(parents=True)
    (model / "net.onnx").write_bytes((doubling(tmp_path / "bundle") / "model.onnx").read_bytes())
    environment = {
        "SAGEMAKER_BASE_DIR": str(model.parent),
        "SAGEMAKER_PROGRAM": "inference.py",
        "HOME": str(tmp_path / "no-home"),
        "TMPDIR": str(tmp_path),
    }
    with on(tmp_path, "--port", "0", **environment) as server:
        assert server.post("/invocations", json=ROWS).json() == DOUBLED
        lines = [json.loads(line) for line in server.log().splitlines()]
        assert next(each["source"] for each in lines if each["event"] == "model") == str(model / "net.onnx")
        steps = [each["step"] for each in lines if each["event"] == "build step" and "what" in each]
        assert steps[0].startswith("1/")
        assert len(steps) == int(steps[-1].partition("/")[2])


@pytest.mark.slow
def test_a_bare_pth_in_the_model_folder_is_built_and_served(tmp_path: Path, picture: bytes) -> None:
    model = tmp_path / "ml" / "model"
    (model / "code").mkdir(parents=True)
    (model / "code" / "inference.py").write_text("raise SystemExit('this must not run')\n")
    make_weights("my.pth", model / "model.pth")
    environment = {"SAGEMAKER_BASE_DIR": str(model.parent), "SAGEMAKER_PROGRAM": "inference.py"}
    with on(tmp_path, "--port", "0", **environment, FLAMBEAU_CACHE=str(tmp_path / "cache")) as server:
        answer = server.post("/invocations", data=picture, headers={"Content-Type": "image/jpeg"})
        assert answer.json()["class_id"] == "0"
        events = [json.loads(line) for line in server.log().splitlines()]
        assert any(each["event"].endswith("code/inference.py is not run: the model itself is served, by Flambeau's own "
                                          "code") for each in events)  # fmt: skip
        assert any(each["event"] == "build step" for each in events)
