"""Real helm and kubectl over `deploy/`: chart, kustomizations and `flambeau deploy` render the same objects."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from flambeau.deploy import manifests
from flambeau.deploy.manifests import Fetch, Values
from flambeau.settings.service import Settings
from flambeau.settings.table import TOKEN
from flambeau.version import VERSION
from tests.support import ROOT
from tests.support import kubernetes as tools

pytestmark = pytest.mark.deploy  # they fetch tools

SHA256 = "0" * 64
PLAIN = Values(namespace="default", tokens_secret="flambeau-tokens")
CUSTOM = ("HTTPRoute", "ScaledObject", "ServiceMonitor")
TOKENS = "tokens.existingSecret=flambeau-tokens"
FETCH = Fetch("https://models.example.org/bundle.tar.gz", SHA256)
FETCHED = (f"models.fetch.url={FETCH.url}", f"models.fetch.sha256={SHA256}")

CASES: dict[str, tuple[Values, tuple[Any, ...], tuple[str, ...]]] = {
    "plain": (PLAIN, (), (TOKENS,)),
    "open": (replace(PLAIN, tokens_secret=None), (), ("insecureNoAuth=true",)),
    "everything": (
        replace(PLAIN, scaling="keda", replicas=3, max_replicas=9, ingress_class="nginx", host="cats.example.org",
                tls_secret="cats-tls", workers=3, threads=2, cpu=6, memory_request="1Gi", memory_limit="2Gi",
                claim="models", watch=True, allow_code=True, drain_timeout=60, image="registry.example.org/cats:v1"),
        ("keda", "monitor", "ingress", "gateway"),
        (TOKENS, "autoscaling.by=keda", "replicas=3", "autoscaling.maxReplicas=9", "ingress.enabled=true",
         "ingress.className=nginx", "ingress.host=cats.example.org", "ingress.tlsSecret=cats-tls",
         "gateway.enabled=true", "gateway.host=cats.example.org", "serviceMonitor.enabled=true", "workers=3",
         "threads=2", "resources.requests.cpu=6", "resources.limits.cpu=6", "resources.requests.memory=1Gi",
         "resources.limits.memory=2Gi", "models.existingClaim=models", "models.watch=true", "models.allowCode=true",
         "drainTimeout=60", "image.repository=registry.example.org/cats", "image.tag=v1"),
    ),
    "fetch": (replace(PLAIN, fetch=FETCH), (), (TOKENS, *FETCHED)),
    "other port": (
        replace(PLAIN, fetch=Fetch("http://store:8080/a.tar?x=1&y=2", SHA256), scaling="none"), (),
        (TOKENS, "models.fetch.url=http://store:8080/a.tar?x=1&y=2", FETCHED[1], "autoscaling.by=none"),
    ),
}  # fmt: skip


def printed(values: Values, *extras: Any) -> tools.Objects:
    """What `flambeau deploy kubernetes` prints."""
    return [each for text in manifests.kubernetes(values, extras).values() for each in tools.objects(text)]


def as_numbers_or_text(node: Any) -> Any:
    """Cores as text: `--set` makes a number of them, and Kubernetes reads both."""
    if isinstance(node, dict):
        return {k: str(v) if k == "cpu" and isinstance(v, int) else as_numbers_or_text(v) for k, v in node.items()}
    return [as_numbers_or_text(each) for each in node] if isinstance(node, list) else node


@pytest.mark.parametrize("case", CASES)
def test_the_chart_renders_what_the_command_prints(case: str) -> None:
    values, extras, settings = CASES[case]
    found = tools.template("flambeau", *settings)
    assert as_numbers_or_text(tools.alike(found)) == tools.alike(printed(values, *extras))
    pytest.importorskip("kubernetes_validate")
    assert {*tools.validate(found)} <= {*CUSTOM}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ((), "would serve everybody"),
        ((TOKENS, "insecureNoAuth=true"), "exclude each other"),
        ((TOKENS, "models.fetch.url=https://a/b"), "models.fetch.sha256"),
        ((TOKENS, "models.watch=true"), "name one"),
        ((TOKENS, "replicsa=3"), "replicsa"),
        ((TOKENS, "resources.limits.cpu=500m"), "cpu"),
    ],
)
def test_the_chart_refuses_what_cannot_be_meant(settings: tuple[str, ...], why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        tools.template("flambeau", *settings)


def test_helm_lints_the_chart() -> None:
    told = tools.run(tools.tool("helm"), "lint", "--strict", tools.CHART, "--set", TOKENS)
    assert "0 chart(s) failed" in told
    assert yaml.safe_load((tools.CHART / "Chart.yaml").read_text())["appVersion"] == VERSION


BASE = replace(PLAIN, namespace=None)
COMPONENTS: dict[str, tuple[Values, tuple[Any, ...]]] = {
    "keda": (replace(BASE, scaling="keda"), ("keda",)),
    "monitor": (BASE, ("monitor",)),
    "ingress": (BASE, ("ingress",)),
    "gateway": (BASE, ("gateway",)),
    "claim": (replace(BASE, claim="flambeau-models"), ()),
    "fetch": (replace(BASE, fetch=FETCH), ()),
}


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_makes_of_the_base_what_the_command_prints(name: str, tmp_path: Path) -> None:
    assert {*COMPONENTS} == {each.name for each in (tools.KUSTOMIZE / "components").iterdir()}
    values, extras = COMPONENTS[name]
    (tmp_path / "deploy").symlink_to(tools.KUSTOMIZE)
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(
        yaml.safe_dump({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": ["../deploy/base"], "components": [f"../deploy/components/{name}"],
        })
    )  # fmt: skip
    assert tools.alike(tools.kustomize(overlay)) == tools.alike(printed(values, *extras))


@pytest.mark.parametrize("folder", ["base", "overlays/local", "overlays/production"])
def test_every_kustomization_is_valid(folder: str) -> None:
    pytest.importorskip("kubernetes_validate")
    found = tools.kustomize(tools.KUSTOMIZE / folder)
    assert {*tools.validate(found)} <= {*CUSTOM}
    [deployment] = [each for each in found if each["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    named = {each["name"] for each in container["env"]}
    assert ("FLAMBEAU_INSECURE_NO_AUTH" in named) is (folder == "overlays/local")
    assert ("FLAMBEAU_TOKENS_FILE" in named) is (folder != "overlays/local")


def test_custom_resources_are_as_their_operators_define_them() -> None:
    values, extras, settings = CASES["everything"]
    found = [*tools.template("flambeau", *settings), *printed(values, *extras)]
    found += tools.kustomize(tools.KUSTOMIZE / "overlays/production")
    checked = tools.validate_custom([each for each in found if each["kind"] in CUSTOM])
    assert sorted({*checked}) == [*CUSTOM]
    wrong = next(each for each in found if each["kind"] == "ScaledObject")
    wrong["spec"]["triggers"] = "prometheus"
    with pytest.raises(AssertionError, match="triggers"):
        tools.validate_custom([wrong])


def test_the_runtime_of_kserve_says_only_what_kserve_knows() -> None:
    """The fields are those of `V1alpha1ServingRuntimeSpec` and `V1alpha1SupportedModelFormat` in KServe's SDK 0.21."""
    [runtime] = tools.objects((ROOT / "deploy/kubernetes/kserve/clusterservingruntime.yaml").read_text())
    assert (runtime["apiVersion"], runtime["kind"]) == ("serving.kserve.io/v1alpha1", "ClusterServingRuntime")
    assert {*runtime["spec"]} <= {
        "affinity", "annotations", "builtInAdapter", "containers", "disabled", "grpcDataEndpoint", "grpcEndpoint",
        "hostIPC", "httpDataEndpoint", "imagePullSecrets", "labels", "multiModel", "nodeSelector", "protocolVersions",
        "replicas", "resourceClaims", "schedulerName", "storageHelper", "supportedModelFormats", "tolerations",
        "volumes", "workerSpec",
    }  # fmt: skip
    [form] = runtime["spec"]["supportedModelFormats"]
    assert {*form} <= {"autoSelect", "name", "priority", "version"}


def test_the_pod_of_kserves_runtime_is_valid() -> None:
    pytest.importorskip("kubernetes_validate")
    [runtime] = tools.objects((ROOT / "deploy/kubernetes/kserve/clusterservingruntime.yaml").read_text())
    spec = {name: runtime["spec"][name] for name in ("containers", "volumes")}
    assert tools.validate([{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runtime"}, "spec": spec}]) == []
    assert spec["containers"][0]["name"] == "kserve-container"


def test_the_service_of_knative_is_as_knative_defines_it() -> None:
    """Its environment is that of the platform `cloud-run`, which `tests/http/test_platforms.py` serves in."""
    [service] = tools.objects((ROOT / "deploy/knative/service.yaml").read_text())
    assert service["apiVersion"] == "serving.knative.dev/v1"
    assert tools.validate_custom([service]) == ["Service"]
    spec = service["spec"]["template"]["spec"]
    assert spec["timeoutSeconds"] > Settings().deadline
    [container] = spec["containers"]
    assert [each["name"] for each in container["env"]] == [TOKEN]
    pod = {"containers": [container]}
    assert tools.validate([{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": pod}]) == []
    service["spec"]["template"]["spec"]["containerConcurrency"] = "many"
    with pytest.raises(AssertionError, match="containerConcurrency"):
        tools.validate_custom([service])
