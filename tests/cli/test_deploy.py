"""Manifests and compose file: what `flambeau deploy` prints is valid, is secure, and is what `deploy/` holds."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from flambeau.bundle.measurements import Placed, Placements, Trial, Trials
from flambeau.bundle.storage import FORMAT, Bundle, CodeReference, ImageConfig, Manifest, PythonConfig, Source
from flambeau.cli.deploy import deploy
from flambeau.deploy import manifests, needs
from flambeau.deploy.manifests import Fetch, Values
from flambeau.errors import ConfigError
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.system.machine import MIB
from flambeau.telemetry.metrics import Metrics
from tests.support import ROOT
from tests.support import kubernetes as tools

EXTRAS = ("keda", "monitor", "ingress", "gateway")
FETCH = Fetch("https://models.example.org:8443/cats.tar.gz?signature=x", "ab" * 32)


def rendered(values: Values, *extras: Any) -> dict[str, dict[str, Any]]:
    """The objects by kind."""
    return {
        each["kind"]: each for text in manifests.kubernetes(values, extras).values() for each in tools.objects(text)
    }


def pod(values: Values) -> dict[str, Any]:
    """The pod of the Deployment."""
    found: dict[str, Any] = rendered(values)["Deployment"]["spec"]["template"]["spec"]
    return found


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


@pytest.mark.parametrize(
    "values",
    [
        Values(),
        Values(name="cats", namespace="models", tokens_secret="t", claim="c", watch=True, allow_code=True),
        Values(fetch=FETCH, scaling="keda", workers=3, threads=2, ingress_class="nginx"),
        Values(scaling="none", image="registry.example.org:5000/a/b@sha256:" + "0" * 64),
    ],
    ids=["plain", "claim", "fetch", "fixed"],
)
def test_kubernetes_own_schemas_find_no_fault(values: Values) -> None:
    pytest.importorskip("kubernetes_validate")
    found = [*rendered(values, *EXTRAS).values()]
    assert tools.validate(found) == ["HTTPRoute", "ScaledObject", "ServiceMonitor"]
    assert all(each["metadata"].get("namespace") == values.namespace for each in found)


def test_the_validation_can_fail() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    wrong = rendered(Values())["Deployment"]
    wrong["spec"]["template"]["spec"]["containers"][0]["securtyContext"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        tools.validate([wrong])


def test_the_generated_files_are_as_the_templates_make_them() -> None:
    script = ROOT / "scripts/make_manifests.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_container_has_the_least_rights() -> None:
    found = pod(Values(fetch=FETCH))
    assert found["automountServiceAccountToken"] is False
    assert found["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for container in (*found["initContainers"], *found["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
        }  # fmt: skip
        assert "/tmp" in [each["mountPath"] for each in container["volumeMounts"]]


@pytest.mark.parametrize("drain", [0, 30, 300])
def test_the_pod_is_killed_only_after_it_could_drain(drain: int) -> None:
    found = pod(Values(drain_timeout=drain))
    [container] = found["containers"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert found["terminationGracePeriodSeconds"] > before + 2 * drain
    assert variables(container)["FLAMBEAU_DRAIN_TIMEOUT"] == str(drain)


def test_a_rollout_takes_no_pod_away_before_the_next_is_ready() -> None:
    assert rendered(Values())["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    [container] = pod(Values())["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}


def test_the_network_is_open_only_for_what_is_fetched() -> None:
    assert rendered(Values())["NetworkPolicy"]["spec"]["egress"] == []
    [rule] = rendered(Values(fetch=FETCH))["NetworkPolicy"]["spec"]["egress"]
    assert [each["port"] for each in rule["ports"]] == [53, 53, 8443]


def test_keda_asks_for_a_metric_that_there_is() -> None:
    scaled = rendered(Values(scaling="keda", namespace="models"), "keda")
    assert "HorizontalPodAutoscaler" not in scaled
    query = scaled["ScaledObject"]["spec"]["triggers"][0]["metadata"]["query"]
    names = {sample.name for each in Metrics().registry.collect() for sample in each.samples} | {
        each.name for each in Metrics().registry.collect()
    }
    assert "flambeau_stage_seconds" in names
    assert 'flambeau_stage_seconds_bucket{stage="queue",job="flambeau",namespace="models"}' in query


# What a bundle needs


def manifest(**fields: Any) -> Manifest:
    picture = ImageConfig()
    own: dict[str, Any] = {
        "format": FORMAT, "name": "Cats & Dogs", "flambeau": "1", "source": Source("file", "cats.pth"),
        "pipeline": picture, "engine": "onnxruntime",
    }  # fmt: skip
    return Manifest(**(own | fields))


def measured(tmp_path: Path) -> Bundle:
    """A bundle whose build measured 3 workers of 2 threads, and 120 MiB a worker."""
    placed = Placed(3, 2, 90.0)
    tried = Trial("openvino", memory_mb=999), Trial("onnxruntime", memory_mb=120)
    trials = Trials("a processor", 6, "faster", tried)
    placements = Placements("a processor", 6, placed, (placed, Placed(1, 6, 50.0)))
    return Bundle(tmp_path, manifest(placements=placements, trials=trials))


def test_the_resources_are_those_that_the_build_measured(tmp_path: Path) -> None:
    found = needs.of_bundle(measured(tmp_path), cpu=None)
    assert (found.cpu, found.workers, found.threads) == (6, 3, 2)
    exact = needs.FRONT + 3 * (needs.WORKER + 120 * MIB)
    assert exact <= found.memory_request < exact + 64 * MIB
    pictures = 3 * 40_000_000 * 4
    assert 0.75 * found.memory_limit >= found.memory_request + pictures
    assert "3 replicas of 2 threads" in found.because[0]
    assert "120 MiB (measured with onnxruntime)" in found.because[1]


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    python = Bundle(tmp_path, manifest(pipeline=PythonConfig(CodeReference("A", file="a.py")), engine="python"))
    found = needs.of_bundle(python, cpu=None)
    assert (found.cpu, found.workers) == (1, 1)
    assert "nothing was measured" in found.because[0]
    assert "a guess" in found.because[1]
    assert needs.of_bundle(python, cpu=4).workers == 4
    (tmp_path / "model.onnx").write_bytes(bytes(30 * MIB))
    assert "60 MiB (twice its weights" in needs.of_bundle(Bundle(tmp_path, manifest()), cpu=2).because[1]


def test_the_models_of_a_repository_share_the_cores(tmp_path: Path) -> None:
    python = Bundle(tmp_path, manifest(pipeline=PythonConfig(CodeReference("A", file="a.py")), engine="python"))
    found = needs.of_repository([measured(tmp_path), python], cpu=None)
    assert (found.cpu, found.workers, found.threads) == (6, None, None)
    one, other = (needs.WORKER + 120 * MIB, needs.WORKER + 256 * MIB)
    assert found.memory_request >= needs.FRONT + one + other + 5 * other
    assert 0.75 * found.memory_limit >= found.memory_request + 6 * 40_000_000 * 4


@pytest.mark.parametrize(
    ("model", "name"), [("Cats & Dogs", "cats-dogs"), ("50net", "m-50net"), ("???", "model"), ("a" * 80, "a" * 50)]
)
def test_a_name_for_kubernetes_is_made_of_every_model(model: str, name: str) -> None:
    assert manifests.resource_name(model) == name
    Values(name=name).check()


@pytest.mark.parametrize(
    "values",
    [
        Values(name="Cats"), Values(name="a\nb: c"), Values(namespace="a: b"), Values(image="a b"), Values(host="a\nb"),
        Values(fetch=Fetch("file:///etc/passwd", "ab" * 32)), Values(fetch=Fetch("https://a/b", "AB" * 32)),
    ],
)  # fmt: skip
def test_what_kubernetes_would_refuse_is_refused(values: Values) -> None:
    with pytest.raises(ConfigError):
        manifests.kubernetes(values)


# The commands


@pytest.fixture
def ask(double_py: Path, cache: Path) -> Any:
    """`flambeau deploy` of a Python model."""

    def run(kind: str, *flags: str) -> str:
        done = CliRunner().invoke(deploy, [kind, f"{double_py}:Double", "--allow-code", *flags])
        if done.exception:
            raise done.exception
        return done.stdout

    return run


def test_the_command_prints_manifests_and_how_they_were_derived(ask: Any, tmp_path: Path) -> None:
    text = ask(
        "kubernetes", "--tokens-secret", "double-tokens", "--image", "example.org/double:1", "--namespace", "models"
    )
    assert text.startswith("# Double, as flambeau deploy made it\n# cpu: nothing was measured")
    kinds = [each["kind"] for each in tools.objects(text)]
    assert kinds == ["Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler"]
    [container] = tools.objects(text)[0]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "example.org/double:1"
    assert variables(container)["FLAMBEAU_ALLOW_CODE"] == "1"
    file = tmp_path / "double.yaml"
    assert ask("kubernetes", "--insecure-no-auth", "-o", str(file)) == ""
    assert tools.objects(file.read_text())[0]["metadata"]["name"] == "double"


def test_a_repository_needs_a_volume(double_py: Path, cache: Path, tmp_path: Path) -> None:
    source = SourceOptions(source=f"{double_py}:Double", allow_code=True)
    bundle = build_cache.open_source(source, progress=lambda event: None)
    for name in ("cats", "dogs"):
        shutil.copytree(bundle.path, tmp_path / "Models" / name / "1")
    words = ["kubernetes", str(tmp_path / "Models"), "--allow-code", "--insecure-no-auth"]
    refused = CliRunner().invoke(deploy, words)
    assert "name its volume with --claim" in str(refused.exception)
    text = CliRunner().invoke(deploy, [*words, "--claim", "models", "--watch"]).stdout
    spec = tools.objects(text)[0]["spec"]["template"]["spec"]
    assert variables(spec["containers"][0]) | {"FLAMBEAU_SOURCE": "/models", "FLAMBEAU_WATCH": "1"} == variables(
        spec["containers"][0]
    )
    assert spec["volumes"][-1]["persistentVolumeClaim"]["claimName"] == "models"
    assert text.startswith("# Models, as")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ((), "the pods would serve everybody"),
        (("--insecure-no-auth", "--tokens-secret", "t"), "exclude each other"),
        (("--insecure-no-auth", "--fetch", "https://a/b"), "belong together"),
        (("--insecure-no-auth", "--with", "ingress"), "needs a --host"),
        (("--insecure-no-auth", "--watch"), "name one"),
        (("--insecure-no-auth", "--replicas", "9"), "more than --max-replicas"),
        (("--insecure-no-auth", "--memory", "2 GB"), "write it as in 512Mi"),
        (("--insecure-no-auth", "--name", "A_b"), "no name for Kubernetes"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_do(ask: Any, flags: tuple[str, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        ask("kubernetes", *flags)


# Compose


def test_the_compose_file_has_one_hardened_service(ask: Any) -> None:
    text = ask("compose", "--image", "double:1", "--tokens", "--folder", "models/$new")
    [service] = yaml.safe_load(text)["services"].values()
    assert service["image"] == "double:1"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(each.startswith("127.0.0.1:") for each in service["ports"])
    assert "FLAMBEAU_INSECURE_NO_AUTH" not in service["environment"]
    assert service["volumes"] == ["models/$$new:/models:ro"]
    assert int(service["stop_grace_period"].removesuffix("s")) > 2 * int(
        service["environment"]["FLAMBEAU_DRAIN_TIMEOUT"]
    )


def test_without_tokens_only_this_machines_names_are_answered(ask: Any) -> None:
    [service] = yaml.safe_load(ask("compose"))["services"].values()
    assert service["environment"]["FLAMBEAU_ALLOWED_HOSTS"] == "localhost,127.0.0.1"


def test_the_compose_file_of_the_repository_finds_its_files() -> None:
    whole = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    mounts = [each.split(":") for service in whole["services"].values() for each in service.get("volumes", ())]
    own = [(ROOT / "deploy" / source, target) for source, target, *_ in mounts if source.startswith("./")]
    assert len(own) == 3
    assert all(source.exists() for source, _ in own)
    [scraped] = yaml.safe_load(whole["configs"]["prometheus"]["content"])["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["flambeau:5000"]}]
    assert whole["services"]["nginx"]["profiles"] == ["tls"]
    provided = ROOT / "deploy/grafana/provisioning"
    [source] = yaml.safe_load((provided / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [boards] = yaml.safe_load((provided / "dashboards/flambeau.yaml").read_text())["providers"]
    assert f"{boards['options']['path']}/flambeau.json" in [target for _, target in own]
