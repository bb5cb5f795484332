"""podman runs, with a real image, the Deployment that `flambeau deploy` prints, and podman-compose its compose file.

The image is a question of another test: TEST_IMAGE names one of `flambeau package` (of the built-in model), and
TEST_PODMAN the command with its storage, such as "podman --root /var/tmp/storage". Podman 4.3 knows no host network
with named ports, which the test therefore replaces; and it runs no probes without systemd.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from chaos.server import free_port
from flambeau.deploy import manifests
from flambeau.deploy.manifests import Values
from tests.deploy import tools
from tests.support.fleet import wait_for
from tests.support.server import STARTUP_SECONDS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("TEST_IMAGE" not in os.environ, reason="TEST_IMAGE names no image"),
]
IMAGE = os.environ.get("TEST_IMAGE", "")
PODMAN = shlex.split(os.environ.get("TEST_PODMAN", "podman"))

_RIGHTS = """
import json, os
def writes(path):
    try:
        open(path, "w").close()
    except OSError:
        return False
    return True
lines = dict(line.split(":", 1) for line in open("/proc/1/status"))
print(json.dumps({
    "user": os.getuid(), "root": writes("/file"), "tmp": writes("/tmp/file"),
    "capabilities": int(lines["CapBnd"], 16), "no new privileges": int(lines["NoNewPrivs"]),
    "seccomp": int(lines["Seccomp"]),
}))
"""


@dataclass
class Played:
    """The pod's container, and where it answers."""

    name: str
    url: str


def _podman(*words: object) -> str:
    done = subprocess.run([*PODMAN, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _deployment(port: int) -> dict[str, Any]:
    [found] = tools.objects(manifests.kubernetes(Values(name="flambeau-test", image=IMAGE, cpu=1))["deployment"])
    spec = found["spec"]["template"]["spec"]
    spec["hostNetwork"] = True
    [container] = spec["containers"]
    del container["ports"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        container[probe]["httpGet"]["port"] = port
    for each in container["env"]:
        if each["name"] == "FLAMBEAU_PORT":
            each["value"] = str(port)
    return found


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    port = free_port()
    file = tmp_path_factory.mktemp("podman") / "deployment.yaml"
    file.write_text(yaml.safe_dump(_deployment(port)))
    try:
        _podman("play", "kube", file)
        [name] = [each for each in _podman("ps", "--format", "{{.Names}}").split() if each.startswith("flambeau-test")]
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _ready(url), seconds=STARTUP_SECONDS)
        yield Played(name, url)
    finally:
        subprocess.run([*PODMAN, "play", "kube", "--down", file], capture_output=True, check=False)


def _ready(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"{url}/readyz", timeout=5).status_code == 200
    return False


def test_the_deployment_answers_a_photograph(played: Played, cat: bytes) -> None:
    answer = requests.post(f"{played.url}/predict", data=cat, headers={"Content-Type": "image/jpeg"}, timeout=60)
    assert answer.json()["class_name"] == "Egyptian_cat", answer.text


def test_it_has_no_rights_but_to_serve(played: Played) -> None:
    found = json.loads(_podman("exec", played.name, "python", "-c", _RIGHTS))
    assert found.pop("user") != 0
    assert found == {"root": False, "tmp": True, "capabilities": 0, "no new privileges": 1, "seccomp": 2}


def test_the_limits_are_those_of_the_manifest(played: Played) -> None:
    [found] = json.loads(_podman("inspect", played.name))
    assert found["HostConfig"]["NanoCpus"] == 1_000_000_000
    assert found["HostConfig"]["Memory"] == manifests.in_mib(Values().memory_limit) * 2**20


def test_it_stops_by_itself_when_it_is_told(played: Played) -> None:
    _podman("stop", "--time", "65", played.name)
    [found] = json.loads(_podman("inspect", played.name))
    assert found["State"]["ExitCode"] == 0


def test_compose_runs_the_service(tmp_path: Path) -> None:
    pytest.importorskip("podman_compose")
    port = free_port()
    wrapper = tmp_path / "podman"  # podman-compose takes a program, not a command with flags
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(PODMAN)} "$@"\n')
    wrapper.chmod(0o755)
    file = tmp_path / "compose.yaml"
    made = yaml.safe_load(manifests.compose(Values(name="flambeau-test", image=IMAGE, cpu=1), stack=False))
    [service] = made["services"].values()
    del service["ports"]
    service["network_mode"] = "host"
    service["environment"]["FLAMBEAU_PORT"] = str(port)
    file.write_text(yaml.safe_dump(made))
    compose = [sys.executable, "-m", "podman_compose", "--podman-path", wrapper, "--in-pod", "false", "-f", file]
    try:
        subprocess.run([*compose, "up", "-d"], check=True, capture_output=True)
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _ready(url), seconds=STARTUP_SECONDS)
        assert requests.get(f"{url}/models", headers={"Host": "evil.example.org"}, timeout=5).status_code != 200
    finally:
        subprocess.run([*compose, "down"], check=False, capture_output=True)
