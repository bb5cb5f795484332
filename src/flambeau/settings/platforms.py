"""The platforms that run containers, and what each dictates: address, model folder, routes, who checks the callers.

A platform is found from variables and folders that no other machine has together, never from one alone; then it gives
values to settings that nobody set (`Profile.values`). Contracts with their sources: docs/platforms.md. This module is
handed the environment; it reads neither that nor the disk.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from flambeau.errors import ConfigError

PlatformName = Literal[
    "sagemaker", "vertex", "cloud-run", "lambda", "azure-ml", "huggingface", "kserve", "kubernetes"
]  # fmt: skip
PlatformChoice = Literal["auto", "none", PlatformName]
PLATFORMS: tuple[PlatformName, ...] = get_args(PlatformName)

TITLES: Mapping[PlatformName, str] = {
    "sagemaker": "Amazon SageMaker",
    "vertex": "Vertex AI",
    "cloud-run": "Cloud Run or Knative",
    "lambda": "AWS Lambda",
    "azure-ml": "Azure Machine Learning",
    "huggingface": "Hugging Face Inference Endpoints",
    "kserve": "KServe",
    "kubernetes": "Kubernetes",
}

START_SECONDS: Mapping[PlatformName, int] = {"sagemaker": 3600, "vertex": 40, "cloud-run": 240, "lambda": 10}
"""The longest that a platform waits for a container to answer its health check, if it says so. SageMaker's can be set
to less. Others let the operator of the deployment decide."""

STRIPS_AUTHORIZATION: tuple[PlatformName, ...] = ("sagemaker",)
"""Platforms that keep the header Authorization from a container, so that no token ever reaches it."""

BEHIND_LOOPBACK: tuple[PlatformName, ...] = ("lambda",)
"""Platforms whose requests come from a proxy on loopback: there loopback is not this machine alone."""


@dataclass(frozen=True, slots=True)
class ContainerSigns:
    """What a platform is found from. `is_folder` says whether a path is a folder. `first`: the command is the first
    process of its container, or that one's child."""

    environment: Mapping[str, str]
    is_folder: Callable[[str], bool]
    first: bool = False

    def has(self, *names: str) -> bool:
        """Whether all these variables are set, and not empty."""
        return all(self.environment.get(name) for name in names)

    def any_of(self, *names: str) -> str | None:
        """The first of these variables that is set."""
        return next((name for name in names if self.environment.get(name)), None)

    def text(self, name: str, otherwise: str) -> str:
        """The value of a variable; `otherwise` if it is not set, or empty."""
        return self.environment.get(name) or otherwise


@dataclass(frozen=True, slots=True)
class Profile:
    """A platform's values for settings, by name, each with the variable it came from; empty for a constant.

    `evidence` says what the platform was found from; empty if the operator named it.
    """

    name: PlatformName
    evidence: str
    values: dict[str, tuple[Any, str]] = field(default_factory=dict)

    def place(self, setting: str) -> str:
        """Where the value of a setting was given, in words: "platform vertex: AIP_HTTP_PORT"."""
        variable = self.values[setting][1]
        return f"platform {self.name}: {variable}" if variable else f"platform {self.name}"


def find(machine: ContainerSigns, choice: PlatformChoice = "auto") -> Profile | None:
    """The profile of the chosen platform; with `auto` that of the platform found, or `None` if it is none of them.

    Raises `ConfigError` for a variable of the platform with a value that cannot be used.
    """
    if choice == "none":
        return None
    if choice != "auto":
        return Profile(choice, "", _VALUES[choice](machine))
    for name, evidence_on in _EVIDENCE.items():
        if evidence := evidence_on(machine):
            return Profile(name, evidence, _VALUES[name](machine))
    return None


# What each platform is found from: words for the log, or nothing.


def _sagemaker_base(machine: ContainerSigns) -> str:
    return machine.text("SAGEMAKER_BASE_DIR", "/opt/ml")


_OF_SAGEMAKER = (
    "SAGEMAKER_MULTI_MODEL", "SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_SAFE_PORT_RANGE", "SAGEMAKER_REGION",
    "SAGEMAKER_PROGRAM", "SAGEMAKER_SUBMIT_DIRECTORY", "SAGEMAKER_CONTAINER_LOG_LEVEL",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)  # fmt: skip


def _is_sagemaker(machine: ContainerSigns) -> str:
    if machine.any_of(
        "ECS_CONTAINER_METADATA_URI_V4", "ECS_CONTAINER_METADATA_URI"
    ):  # the same image, elsewhere on AWS
        return ""
    base, variable = _sagemaker_base(machine), machine.any_of(*_OF_SAGEMAKER)
    folder = next((each for each in (f"{base}/model", f"{base}/models") if machine.is_folder(each)), None)
    return f"{folder}, {variable}" if folder and variable else ""


def _is_vertex(machine: ContainerSigns) -> str:
    names = ("AIP_HTTP_PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE")
    return ", ".join(names) if machine.has(*names) else ""


def _is_cloud_run(machine: ContainerSigns) -> str:
    names = ("K_SERVICE", "K_REVISION", "K_CONFIGURATION", "PORT")
    return ", ".join(names) if machine.has(*names) else ""


def _is_lambda(machine: ContainerSigns) -> str:
    names = ("AWS_LAMBDA_RUNTIME_API", "AWS_LAMBDA_FUNCTION_NAME")
    return ", ".join(names) if machine.has(*names) else ""


_OF_AZURE = ("AML_APP_ROOT", "AZUREML_ENTRY_SCRIPT", "AZUREML_INFERENCE_PYTHON_PATH", "AML_SERVER_ROOT")


def _is_azure_ml(machine: ContainerSigns) -> str:
    folder, variable = machine.environment.get("AZUREML_MODEL_DIR", ""), machine.any_of(*_OF_AZURE)
    return f"AZUREML_MODEL_DIR, {variable}" if folder and machine.is_folder(folder) and variable else ""


_OF_HUGGINGFACE = ("HF_MODEL_DIR", "HF_MODEL_ID", "HF_TASK", "HF_REVISION")


def _is_huggingface(machine: ContainerSigns) -> str:
    variable = machine.any_of(*_OF_HUGGINGFACE)
    return f"{_REPOSITORY}, {variable}" if variable and machine.is_folder(_REPOSITORY) else ""


def _is_kserve(machine: ContainerSigns) -> str:
    found = machine.has("KUBERNETES_SERVICE_HOST") and machine.is_folder(_MODELS)
    return f"KUBERNETES_SERVICE_HOST, {_MODELS}" if found else ""


def _is_kubernetes(machine: ContainerSigns) -> str:
    """A notebook's pod has these variables too: only the first process of a container is a service's."""
    names = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
    return f"{', '.join(names)}, first process" if machine.first and machine.has(*names) else ""


# The values of each platform.

_PlatformValues = dict[str, tuple[Any, str]]
_REPOSITORY, _MODELS = "/repository", "/mnt/models"
_EVERYWHERE: _PlatformValues = {"host": ("0.0.0.0", "")}  # noqa: S104  # what containers must do; without tokens it is refused
_IN_CONTAINERS: _PlatformValues = {**_EVERYWHERE, "insecure_no_auth": (True, "")}
"""For platforms that check who calls before a container sees the request."""


def _port(machine: ContainerSigns, usual: int, *names: str) -> tuple[int, str]:
    """The port in the first of these variables that is set, else the usual one."""
    name = machine.any_of(*names)
    if name is None:
        return usual, ""
    text = machine.environment[name]
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise ConfigError(f"{name}={text} is not a port, 1 to 65535: give another, or --port, or --platform none")
    return int(text), name


def _sagemaker(machine: ContainerSigns) -> _PlatformValues:
    base = _sagemaker_base(machine)
    several = machine.environment.get("SAGEMAKER_MULTI_MODEL", "").lower() == "true"
    values = {
        **_IN_CONTAINERS,
        "port": _port(machine, 8080, "SAGEMAKER_BIND_TO_PORT"),
        "health_route": ("/ping", ""),
        "predict_route": ("/invocations", ""),
        "drain_timeout": (25.0, ""),  # it kills after 30 s
    }
    if several:
        return values | {"multi_model": (f"{base}/models", "SAGEMAKER_MULTI_MODEL")}
    return values | {"source": (f"{base}/model", "")}


def _vertex(machine: ContainerSigns) -> _PlatformValues:
    values: _PlatformValues = {**_IN_CONTAINERS, "port": _port(machine, 8080, "AIP_HTTP_PORT")}
    for setting, name, usual in (
        ("health_route", "AIP_HEALTH_ROUTE", "/health"), ("predict_route", "AIP_PREDICT_ROUTE", "/predict"),
    ):  # fmt: skip
        values[setting] = (machine.text(name, usual), name if machine.has(name) else "")
    if machine.has("AIP_STORAGE_URI"):
        values["source"] = (machine.environment["AIP_STORAGE_URI"], "AIP_STORAGE_URI")
    return values


def _cloud_run(machine: ContainerSigns) -> _PlatformValues:
    return {**_EVERYWHERE, "port": _port(machine, 8080, "PORT"), "drain_timeout": (8.0, "")}  # it kills after 10 s


def _lambda(machine: ContainerSigns) -> _PlatformValues:
    return {
        "host": ("127.0.0.1", ""),
        "port": _port(machine, 8080, "AWS_LWA_PORT", "PORT"),
        "allowed_hosts": ("*", ""),  # the adapter passes on the Host that the caller used
    }


def _azure_ml(machine: ContainerSigns) -> _PlatformValues:
    values = {
        **_IN_CONTAINERS,
        "port": (5001, ""),
        "health_route": ("/", ""),
        "predict_route": ("/score", ""),
    }
    if machine.has("AZUREML_MODEL_DIR"):
        values["source"] = (machine.environment["AZUREML_MODEL_DIR"], "AZUREML_MODEL_DIR")
    return values


def _huggingface(machine: ContainerSigns) -> _PlatformValues:
    named = machine.environment.get("HF_MODEL_DIR", "")
    source = (named, "HF_MODEL_DIR") if named and machine.is_folder(named) else (_REPOSITORY, "")
    return {
        **_IN_CONTAINERS,
        "port": _port(machine, 80, "PORT"),
        "health_route": ("/health", ""),
        "predict_route": ("/", ""),
        "source": source,
    }


def _kserve(machine: ContainerSigns) -> _PlatformValues:
    port = _port(machine, 8080, "PORT") if machine.has("K_SERVICE") else (8080, "")
    return {**_EVERYWHERE, "port": port, "source": (_MODELS, "")}


def _kubernetes(machine: ContainerSigns) -> _PlatformValues:
    return dict(_EVERYWHERE)


_EVIDENCE: Mapping[PlatformName, Callable[[ContainerSigns], str]] = {
    "sagemaker": _is_sagemaker,
    "vertex": _is_vertex,
    "azure-ml": _is_azure_ml,
    "huggingface": _is_huggingface,
    "lambda": _is_lambda,
    "kserve": _is_kserve,
    "cloud-run": _is_cloud_run,
    "kubernetes": _is_kubernetes,
}
_VALUES: Mapping[PlatformName, Callable[[ContainerSigns], _PlatformValues]] = {
    "sagemaker": _sagemaker,
    "vertex": _vertex,
    "azure-ml": _azure_ml,
    "huggingface": _huggingface,
    "lambda": _lambda,
    "kserve": _kserve,
    "cloud-run": _cloud_run,
    "kubernetes": _kubernetes,
}
