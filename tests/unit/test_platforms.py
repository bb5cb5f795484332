"""Platforms: what each is found from, what is not one, and which values win over which."""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from flambeau.cli import platform_start
from flambeau.errors import ConfigError, SourceError
from flambeau.settings import platforms
from flambeau.settings.platforms import ContainerSigns, PlatformChoice
from flambeau.settings.service import Settings
from flambeau.sources import model_folder
from flambeau.sources.request import BuildStep
from flambeau.telemetry import logs
from tests.support.tensor_bundles import doubling
from tests.unit.test_settings import folder as folder  # a fixture
from tests.unit.test_settings import in_force, refusal

KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
KNATIVE = {"K_SERVICE": "cats", "K_REVISION": "cats-1", "K_CONFIGURATION": "cats", "PORT": "8081"}
VERTEX = {"AIP_HTTP_PORT": "8082", "AIP_HEALTH_ROUTE": "/v1/endpoints/1/health", "AIP_PREDICT_ROUTE": "/v1/e/1:predict"}
LAMBDA = {"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001", "AWS_LAMBDA_FUNCTION_NAME": "cats"}
AZURE = {"AZUREML_MODEL_DIR": "/var/azureml-app/models/cats/1", "AML_APP_ROOT": "/var/azureml-app"}
OF_SAGEMAKER = {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials/1", "AWS_REGION": "eu-west-1"}
MANY = {"SAGEMAKER_MULTI_MODEL": "true"}

Values = dict[str, object]


def signs(environment: Mapping[str, str], folders: tuple[str, ...] = (), *, first: bool = False) -> ContainerSigns:
    return ContainerSigns(environment, folders.__contains__, first)


@pytest.mark.parametrize(
    ("environment", "folders", "name", "values"),
    [
        (OF_SAGEMAKER, ("/opt/ml/model",), "sagemaker",
         {"port": 8080, "source": "/opt/ml/model", "health_route": "/ping", "predict_route": "/invocations",
          "host": "0.0.0.0", "insecure_no_auth": True, "drain_timeout": 25.0}),
        ({"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_BIND_TO_PORT": "8123"}, ("/opt/ml/model",), "sagemaker",
         {"port": 8123}),
        (MANY, ("/opt/ml/models",), "sagemaker", {"multi_model": "/opt/ml/models", "source": None}),
        (VERTEX, (), "vertex",
         {"port": 8082, "health_route": "/v1/endpoints/1/health", "predict_route": "/v1/e/1:predict", "source": None}),
        (VERTEX | {"AIP_STORAGE_URI": "/mnt/cats"}, (), "vertex", {"source": "/mnt/cats"}),
        (KNATIVE, (), "cloud-run",
         {"port": 8081, "host": "0.0.0.0", "insecure_no_auth": None, "drain_timeout": 8.0, "source": None}),
        (LAMBDA, (), "lambda", {"host": "127.0.0.1", "port": 8080, "allowed_hosts": "*", "insecure_no_auth": None}),
        (LAMBDA | {"AWS_LWA_PORT": "9000", "PORT": "1"}, (), "lambda", {"port": 9000}),
        (AZURE, (AZURE["AZUREML_MODEL_DIR"],), "azure-ml",
         {"port": 5001, "source": AZURE["AZUREML_MODEL_DIR"], "health_route": "/", "predict_route": "/score"}),
        ({"HF_TASK": "image-classification"}, ("/repository",), "huggingface",
         {"port": 80, "source": "/repository", "health_route": "/health", "predict_route": "/"}),
        ({"HF_TASK": "x", "HF_MODEL_DIR": "/elsewhere"}, ("/repository", "/elsewhere"), "huggingface",
         {"source": "/elsewhere"}),
        (KUBERNETES, ("/mnt/models",), "kserve",
         {"port": 8080, "source": "/mnt/models", "host": "0.0.0.0", "insecure_no_auth": None}),
        (KUBERNETES | KNATIVE, ("/mnt/models",), "kserve", {"port": 8081}),
        (KUBERNETES | KNATIVE, (), "cloud-run", {"port": 8081}),
    ],
)  # fmt: skip
def test_a_platform_is_found_from_several_signs_together(
    environment: dict[str, str], folders: tuple[str, ...], name: str, values: Values
) -> None:
    profile = platforms.find(signs(environment, folders))
    assert profile is not None
    assert profile.name == name
    assert {each: profile.values.get(each, (None, ""))[0] for each in values} == values


def test_kubernetes_is_found_by_the_first_process_of_a_container_alone() -> None:
    found = platforms.find(signs(KUBERNETES, first=True))
    assert found is not None
    assert found.name == "kubernetes"
    assert platforms.find(signs(KUBERNETES)) is None  # a notebook in a pod


@pytest.mark.parametrize(
    ("environment", "folders"),
    [
        ({}, ("/opt/ml/model", "/mnt/models", "/repository")),  # folders are not enough
        (OF_SAGEMAKER, ()),  # a task of ECS
        (OF_SAGEMAKER | {"ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2"}, ("/opt/ml/model",)),
        ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1"}, ("/opt/ml/model",)),
        *(({name: VERTEX[name] for name in VERTEX if name != left_out}, ()) for left_out in VERTEX),
        *(({name: KNATIVE[name] for name in KNATIVE if name != left_out}, ()) for left_out in KNATIVE),
        *(({name: LAMBDA[name] for name in LAMBDA if name != left_out}, ()) for left_out in LAMBDA),
        ({"PORT": "8080"}, ()),
        (AZURE, ()),  # the folder is not there
        ({"AZUREML_MODEL_DIR": "/m"}, ("/m",)),
        ({"HF_TASK": "x", "HF_HOME": "/home/me/.cache"}, ()),
        (VERTEX | {"AIP_PREDICT_ROUTE": ""}, ()),  # empty counts as not set
    ],
)
def test_no_sign_alone_makes_a_platform(environment: dict[str, str], folders: tuple[str, ...]) -> None:
    assert platforms.find(signs(environment, folders, first=True)) is None


@pytest.mark.parametrize("name", platforms.PLATFORMS)
def test_a_platform_that_is_named_needs_no_sign_and_none_finds_none(name: PlatformChoice) -> None:
    profile = platforms.find(signs({}), name)
    assert profile is not None
    assert profile.name == name
    values = {setting: value for setting, (value, _) in profile.values.items() if setting != "source"}
    Settings(platform=name, **values)  # all are settings with values that are right
    assert platforms.find(signs(VERTEX | KNATIVE | LAMBDA), "none") is None


def test_config_shows_each_value_with_its_origin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "flambeau.toml").write_text("drain_timeout = 3\n")
    found = in_force("--host", "127.0.0.1", **VERTEX)
    assert found["platform"] == ("vertex", "found: AIP_HTTP_PORT, AIP_HEALTH_ROUTE, AIP_PREDICT_ROUTE")
    assert found["port"] == (8082, "platform vertex: AIP_HTTP_PORT")
    assert found["health_route"] == ("/v1/endpoints/1/health", "platform vertex: AIP_HEALTH_ROUTE")
    assert found["insecure_no_auth"] == (True, "platform vertex")
    assert found["host"] == ("127.0.0.1", "--host")
    found = in_force(**VERTEX, FLAMBEAU_PORT="99")
    assert found["port"] == (99, "FLAMBEAU_PORT")
    assert in_force("--platform", "sagemaker")["drain_timeout"] == (3.0, "flambeau.toml, line 1")
    for nothing in (in_force("--platform", "none", **VERTEX), in_force(**VERTEX, FLAMBEAU_PLATFORM="none"), in_force()):
        assert nothing["port"] == (5000, "default")
        assert nothing["host"] == ("127.0.0.1", "default")
        assert nothing["insecure_no_auth"] == (False, "default")


def test_a_source_that_is_named_wins_over_the_folder_of_the_platform(folder: Path) -> None:
    assert in_force("--platform", "kserve")["source"] == ("/mnt/models", "platform kserve")
    assert in_force("--platform", "kserve", "my.pth")["source"] == ("my.pth", "SOURCE")
    assert in_force("--platform", "kserve", FLAMBEAU_SOURCE="my.pth")["source"] == ("my.pth", "FLAMBEAU_SOURCE")
    alone = in_force("--platform", "sagemaker", "my.pth", SAGEMAKER_MULTI_MODEL="true")
    assert alone["multi_model"] == (None, "default")


def test_bad_values_of_a_platform_say_what_to_do(folder: Path) -> None:
    assert refusal(**VERTEX | {"AIP_HTTP_PORT": "eighty"}) == (
        "AIP_HTTP_PORT=eighty is not a port, 1 to 65535: give another, or --port, or --platform none"
    )
    assert "--health-route no/slash is not a path" in refusal(**VERTEX | {"AIP_HEALTH_ROUTE": "no/slash"})
    assert "--platform somewhere is not one of auto, none, sagemaker" in refusal("--platform", "somewhere")


# The folder with the model.


def test_a_bundle_one_file_one_folder_and_a_repository_are_found(tmp_path: Path) -> None:
    bundle = doubling(tmp_path / "bundle")
    assert model_folder.find(str(bundle)).source == str(bundle)
    (tmp_path / "one" / "code").mkdir(parents=True)
    (tmp_path / "one" / "code" / "inference.py").write_text("")
    (tmp_path / "one" / "README.md").write_text("")
    (tmp_path / "one" / "model.pth").write_text("")
    found = model_folder.find(str(tmp_path / "one"))
    assert found.source == str(tmp_path / "one" / "model.pth")
    assert "code/inference.py is not run" in found.note
    nested = doubling(tmp_path / "nested" / "1")
    assert model_folder.find(str(tmp_path / "nested")).source == str(nested)
    doubling(tmp_path / "several" / "a")
    doubling(tmp_path / "several" / "b")
    assert model_folder.find(str(tmp_path / "several")).source == str(tmp_path / "several")
    (tmp_path / "hub").mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", ".gitattributes"):
        (tmp_path / "hub" / name).write_text("{}")
    assert model_folder.find(str(tmp_path / "hub")).source == str(tmp_path / "hub" / "model.safetensors")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "is empty: put a bundle of `flambeau build`, or one weights file, into it"),
        (["model.tar.gz"], "is an archive that nobody unpacked: unpack it"),
        (["notes.txt", "README"], "holds no model, but README, notes.txt"),
    ],
)
def test_a_folder_without_a_model_says_what_to_do(tmp_path: Path, files: list[str], says: str) -> None:
    for name in files:
        (tmp_path / name).write_text("x")
    with pytest.raises(ConfigError, match=says):
        model_folder.find(str(tmp_path))


def test_nothing_is_fetched() -> None:
    with pytest.raises(ConfigError, match="gs://bucket/cats, and nothing is fetched here: put it into the image"):
        model_folder.find("gs://bucket/cats")
    with pytest.raises(ConfigError, match="cannot be read"):
        model_folder.find("/nonexistent/model")


# The time that a platform gives a start.


def lines_of(profile: PlatformChoice, seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What is logged of a build whose four steps come at these seconds."""
    told: list[dict[str, object]] = []
    monkeypatch.setattr(logs, "event", lambda message, **pairs: told.append({"event": message} | pairs))
    found = platforms.find(signs({}), profile)
    assert found is not None
    clock = iter([0.0, *(each for second in seconds for each in (second, second))])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    window = platform_start.BuildWindow(found)
    for number, _ in enumerate(seconds, 1):
        window(BuildStep(number, len(seconds), "export"))
    return told


def test_a_build_is_stopped_when_the_platform_would_wait_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = lines_of("vertex", [0.0, 20.0, 39.0], monkeypatch)
    assert [(each["step"], each["seconds"]) for each in steps] == [("1/3", "0.0"), ("2/3", "20.0"), ("3/3", "39.0")]
    with pytest.raises(SourceError, match=r"not done in the 40 s that Vertex AI waits for a start: build it before"):
        lines_of("vertex", [0.0, 41.0], monkeypatch)
    assert len(lines_of("kserve", [0.0, 9999.0], monkeypatch)) == 2  # its probes are the operator's
