"""The platforms' own clients, unmodified, against a server in the profile of each.

They need packages that weigh more than everything else here, so they get an environment of their own; with
FLAMBEAU_FOREIGN_PYTHON (and FLAMBEAU_MLSERVER_PYTHON) another one, which has them, is taken.
"""

import json
import os
import secrets
import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest

from tests.http.test_platforms import DOUBLED, on
from tests.support import archives
from tests.support.kserve_models import Served
from tests.support.photographs import encoded, photograph
from tests.support.server import free_port
from tests.support.tensor_bundles import doubling

pytestmark = pytest.mark.slow

PACKAGES = ("sagemaker-core>=2", "google-cloud-aiplatform[prediction]>=2", "kserve>=0.17")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the clients."""
    return _python(tmp_path_factory.mktemp("foreign"), "FLAMBEAU_FOREIGN_PYTHON", PACKAGES)


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has MLServer, which wants other versions than the others."""
    return _python(tmp_path_factory.mktemp("mlserver"), "FLAMBEAU_MLSERVER_PYTHON", ("mlserver>=1.7",))


def _python(folder: Path, variable: str, packages: tuple[str, ...]) -> Path:
    if given := os.environ.get(variable):
        return Path(given)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", *packages], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"{', '.join(packages)} cannot be installed here: {done.stderr[-200:]}")
    return python


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return doubling(tmp_path_factory.mktemp("numbers") / "model")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "cat.jpg"
    file.write_bytes(encoded(photograph("chelsea"), "JPEG"))
    return file


def said(python: Path, script: str, *arguments: object) -> Any:
    """What a script says, as JSON on its last line."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False,
        env={**environment, "HF_HUB_OFFLINE": "0", "AWS_DEFAULT_REGION": "eu-west-1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


SAGEMAKER = """
import json, sys
from sagemaker.core.local.local_session import LocalSagemakerRuntimeClient
port, picture = sys.argv[1:]
client = LocalSagemakerRuntimeClient(config={"local": {"serving_port": int(port)}})
def ask(body, **more):
    return client.invoke_endpoint(Body=body, EndpointName="any", **more)["Body"].read().decode()
found = [
    json.loads(ask("[[1, 2, 3], [4, 5, 6]]", ContentType="application/json")),
    ask("1,2,3\\n4,5,6", ContentType="text/csv", Accept="text/csv"),
]
print(json.dumps(found))
"""


def test_sagemakers_local_client_reads_our_answers(
    foreign: Path, numbers: Path, models: Served, picture: Path, tmp_path: Path
) -> None:
    with on(tmp_path, "--platform", "sagemaker", "--port", "0", numbers) as server:
        port = server.url.rpartition(":")[2]
        assert said(foreign, SAGEMAKER, port, picture) == [DOUBLED, "2,4,6\n8,10,12\n"]
    script = SAGEMAKER.partition("found = [")[0] + (
        "body = open(picture, 'rb').read()\n"
        "attributes = dict(ContentType='image/jpeg', CustomAttributes='c000b4f9,top_k=2')\n"
        "print(ask(body, **attributes))"
    )
    with on(tmp_path, "--platform", "sagemaker", "--port", "0", models.folder / "animals" / "1") as server:
        found = said(foreign, script, server.url.rpartition(":")[2], picture)
        headers = {"Content-Type": "image/jpeg"}
        assert found == server.post("/predict?top_k=2", data=picture.read_bytes(), headers=headers).json()
        assert len(found["predictions"]) == 2


BOTO3 = """
import json, sys
import boto3
from botocore import UNSIGNED
from botocore.config import Config
url, token = sys.argv[1:]
keys = dict(region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="y")
client = boto3.client("sagemaker-runtime", endpoint_url=url, **(keys if not token else dict(
    region_name="eu-west-1", config=Config(signature_version=UNSIGNED))))
def bearer(request, **_):
    request.headers["Authorization"] = f"Bearer {token}"
if token:
    client.meta.events.register("before-send.sagemaker-runtime", bearer)
def ask(body, endpoint="script", **more):
    answered = client.invoke_endpoint(EndpointName=endpoint, Body=body, **more)
    return answered["Body"].read().decode(), answered["ContentType"], answered["InvokedProductionVariant"]
found = [ask("[[1, 2]]", ContentType="application/json"),
         ask("1,2\\n3,4\\n", ContentType="text/csv", Accept="text/csv"),
         ask("[[1, 2]]", "any", TargetModel="script", ContentType="application/json")]
try:
    ask("x", ContentType="application/pdf")
except client.exceptions.ModelError as error:
    found.append([error.response["OriginalStatusCode"], bool(error.response["OriginalMessage"])])
try:
    ask("x", "nobody")
except client.exceptions.ClientError as error:
    found.append([error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]])
print(json.dumps(found))
"""


@pytest.mark.parametrize("token", ["", secrets.token_urlsafe(32)], ids=["open", "token"])
def test_boto3_asks_a_script_by_awss_own_path(foreign: Path, tmp_path: Path, token: str) -> None:
    files = {"code/inference.py": archives.SCRIPT.encode(), "factor.json": b"3",
             "code/times.py": b"def times(data, factor):\n    return data * factor\n"}  # fmt: skip
    archives.write_tar(tmp_path / "script.tar.gz", files, top="")
    (tmp_path / "tokens").write_text(f"infer {token}\n")
    (tmp_path / "tokens").chmod(0o600)
    more = ["--tokens-file", tmp_path / "tokens"] if token else []
    source = f"script={tmp_path / 'script.tar.gz'}"
    with on(tmp_path, source, "--allow-code", "--port", "0", *more) as server:
        assert said(foreign, BOTO3, server.url, token) == [
            ["[[3.0, 6.0]]", "application/json", "1"], ["3.0,6.0\n9.0,12.0\n", "text/csv", "1"],
            ["[[3.0, 6.0]]", "application/json", "1"], [415, True], ["ValidationError", 404],
        ]  # fmt: skip


def test_sagemakers_local_client_asks_a_script(foreign: Path, tmp_path: Path) -> None:
    """`model.tar.gz` with `code/inference.py`, in SageMaker's own place and by its variables."""
    base = tmp_path / "ml"
    files = {"code/inference.py": archives.SCRIPT.encode(), "factor.json": b"2",
             "code/times.py": b"def times(data, factor):\n    return data * factor\n"}  # fmt: skip
    archives.write_folder(base / "model", files)
    port = free_port()
    variables = {"SAGEMAKER_BASE_DIR": str(base), "SAGEMAKER_BIND_TO_PORT": port, "SAGEMAKER_PROGRAM": "inference.py"}
    picture = tmp_path / "none"
    with on(tmp_path, FLAMBEAU_ALLOW_CODE="1", **variables):
        assert said(foreign, SAGEMAKER, port, picture) == [
            [[2.0, 4.0, 6.0], [8.0, 10.0, 12.0]], "2.0,4.0,6.0\n8.0,10.0,12.0\n"
        ]  # fmt: skip


VERTEX = """
import json, sys
from google.cloud.aiplatform.prediction import LocalEndpoint
endpoint = LocalEndpoint("image", host_port=int(sys.argv[1]))
endpoint.container_is_running = True
healthy = endpoint.run_health_check().status_code
answer = endpoint.predict(request=json.dumps({"instances": [[1, 2, 3], [4, 5, 6]]}))
typed = endpoint.predict(request='{"instances": [[1, 2, 3]], "parameters": null}',
                         headers={"Content-Type": "application/json"})
print(json.dumps([healthy, answer.status_code, answer.json(), typed.json()]))
"""


def test_vertexs_local_endpoint_reads_our_answers(foreign: Path, numbers: Path, tmp_path: Path) -> None:
    port = free_port()
    routes = {"AIP_HEALTH_ROUTE": "/health", "AIP_PREDICT_ROUTE": "/predict"}  # what LocalEndpoint gives a container
    with on(tmp_path, AIP_HTTP_PORT=port, AIP_STORAGE_URI=str(numbers), **routes):
        answers = said(foreign, VERTEX, port)
        assert answers == [200, 200, {"predictions": DOUBLED}, {"predictions": DOUBLED[:1]}]


KSERVE = """
import asyncio, json, sys
import numpy
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
async def over_grpc():
    client = InferenceGRPCClient("127.0.0.1:" + sys.argv[2])
    rows = numpy.array([[1, 2, 3], [4, 5, 6]], numpy.float32)
    answers = [await client.is_server_ready(), await client.is_model_ready("model")]
    for binary in (True, False):
        given = InferInput("input", [2, 3], "FP32")
        given.set_data_from_numpy(rows, binary_data=binary)
        answer = await client.infer(InferRequest(model_name="model", infer_inputs=[given], request_id="q"))
        answers += [answer.id, answer.outputs[0].as_numpy().tolist()]
    await client.close()
    return answers
async def main():
    v1 = InferenceRESTClient(RESTConfig(protocol="v1"))
    v2 = InferenceRESTClient(RESTConfig(protocol="v2"))
    rows = {"instances": [[1, 2, 3], [4, 5, 6]]}
    answer = await v1.infer(sys.argv[1], rows, model_name="model")
    ready = [await v2.is_server_ready(sys.argv[1]), await v2.is_model_ready(sys.argv[1], "model")]
    return [answer, *ready, await over_grpc()]
print(json.dumps(asyncio.run(main())))
"""


def test_kserves_sdk_reads_our_answers(foreign: Path, numbers: Path, tmp_path: Path) -> None:
    grpc = free_port()
    arguments = ("--platform", "kserve", "--port", "0", "--grpc-port", grpc, "--name", "model", numbers)
    with on(tmp_path, *arguments, FLAMBEAU_INSECURE_NO_AUTH="1") as server:
        over_grpc = [True, True, "q", DOUBLED, "q", DOUBLED]
        assert said(foreign, KSERVE, server.url, grpc) == [{"predictions": DOUBLED}, True, True, over_grpc]


MLSERVER = """
import json, sys, urllib.request
import numpy
from mlserver.codecs import Base64Codec, NumpyCodec, NumpyRequestCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse, MetadataModelResponse, MetadataServerResponse
from mlserver.types import RepositoryIndexResponse
url, picture = sys.argv[1:]
def fetch(path, body=None):
    return urllib.request.urlopen(url + path, body).read()
rows = numpy.array([[1, 2, 3], [4, 5, 6]], numpy.float32)
def ask(model, *inputs, **more):
    body = InferenceRequest(inputs=list(inputs), **more).model_dump_json(exclude_none=True)
    return InferenceResponse.model_validate_json(fetch(f"/v2/models/{model}/infer", body.encode()))
numbers = ask("doubling", NumpyCodec.encode_input("input", rows), id="q")
whole = NumpyRequestCodec.decode_response(numbers)
images = Base64Codec.encode_input("images", [open(picture, "rb").read()], use_bytes=False)
labels = next(each for each in ask("animals", images).outputs if each.name == "labels")
described = MetadataModelResponse.model_validate_json(fetch("/v2/models/doubling"))
MetadataServerResponse.model_validate_json(fetch("/v2"))
listed = RepositoryIndexResponse.model_validate_json(fetch("/v2/repository/index", b"{}"))
print(json.dumps([
    numbers.id, NumpyCodec.decode_output(numbers.outputs[0]).tolist(), whole.tolist(),
    StringCodec.decode_output(labels), described.inputs[0].shape, sorted(each.name for each in listed.root),
]))
"""


def test_mlservers_types_and_codecs_read_our_answers(
    mlserver: Path, models: Served, picture: Path, tmp_path: Path
) -> None:
    doubling(models.folder / "doubling" / "1")
    with on(tmp_path, "--port", "0", "--allow-code", models.folder) as server:
        headers = {"Content-Type": "image/jpeg"}
        best = server.post("/predict/animals?threshold=0", data=picture.read_bytes(), headers=headers).json()
        names = ["animals", "double", "doubling", "line", "several"]
        found = said(mlserver, MLSERVER, server.url, picture)
        assert found == ["q", DOUBLED, DOUBLED, [best["class_name"]], [-1, 3], names]


def test_mlservers_batch_client_writes_our_answers(mlserver: Path, numbers: Path, tmp_path: Path) -> None:
    """`mlserver infer`: a file of requests, several at once, through tritonclient inside it."""
    asked = [
        {"inputs": [{"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [each, 2, 3]}]} for each in range(20)
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    with on(tmp_path, "--port", "0", "--name", "model", numbers) as server:
        command = [mlserver.with_name("mlserver"), "infer", "-u", server.url.removeprefix("http://"), "-m", "model",
                   "-i", tmp_path / "asked.jsonl", "-o", tmp_path / "told.jsonl", "-w", "4", "-s", "2"]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
    assert sorted(each["outputs"][0]["data"] for each in told) == [[2.0 * each, 4.0, 6.0] for each in range(20)]
