"""podman runs, with a real image, the Deployment that `flambeau deploy` prints, and podman-compose its compose file.

The image is that of the built-in model: the one that TEST_IMAGE names, with TEST_PODMAN as the command (such as "podman
--root /var/tmp/storage"), or the one that the folder's fixtures build. Podman 4.3 knows no host network with named
ports, which the test therefore replaces; and it runs no probes without systemd.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from chaos.server import free_port
from flambeau.deploy import manifests
from flambeau.deploy.manifests import Values
from tests.deploy.containers import INSTALL
from tests.support import ROOT
from tests.support import kubernetes as tools
from tests.support.fleet import wait_for
from tests.support.server import STARTUP_SECONDS

pytestmark = pytest.mark.deploy

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
class Podman:
    """podman, and an image in its storage."""

    command: list[str]
    environment: Mapping[str, str]
    image: str

    def __call__(self, *words: object) -> str:
        """What it prints; it must succeed."""
        done = subprocess.run(
            [*self.command, *map(str, words)], env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@dataclass
class Played:
    """The pod's container, and where it answers."""

    name: str
    url: str


@pytest.fixture(scope="module")
def podman(request: pytest.FixtureRequest) -> Podman:
    if image := os.environ.get("TEST_IMAGE"):
        return Podman(shlex.split(os.environ.get("TEST_PODMAN", "podman")), os.environ, image)
    try:
        engine, built = request.getfixturevalue("engine"), request.getfixturevalue("default_image")
    except pytest.FixtureLookupError:
        pytest.skip("TEST_IMAGE names no image")
    return Podman(["podman"], engine.running, built.tag)


def _deployment(image: str, port: int) -> dict[str, Any]:
    [found] = tools.objects(manifests.kubernetes(Values(name="flambeau-test", image=image, cpu=1))["deployment"])
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
def played(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    port = free_port()
    file = tmp_path_factory.mktemp("podman") / "deployment.yaml"
    file.write_text(yaml.safe_dump(_deployment(podman.image, port)))
    try:
        podman("play", "kube", file)
        [name] = [each for each in podman("ps", "--format", "{{.Names}}").split() if each.startswith("flambeau-test")]
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _ready(url), seconds=STARTUP_SECONDS)
        yield Played(name, url)
    finally:
        podman("play", "kube", "--down", file)


def _ready(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"{url}/readyz", timeout=5).status_code == 200
    return False


def test_the_deployment_answers_a_photograph(played: Played, cat: bytes) -> None:
    answer = requests.post(f"{played.url}/predict", data=cat, headers={"Content-Type": "image/jpeg"}, timeout=60)
    assert answer.json()["class_name"] == "Egyptian_cat", answer.text


def test_it_has_no_rights_but_to_serve(podman: Podman, played: Played) -> None:
    found = json.loads(podman("exec", played.name, "python", "-c", _RIGHTS))
    assert found.pop("user") != 0
    assert found == {"root": False, "tmp": True, "capabilities": 0, "no new privileges": 1, "seccomp": 2}


def test_the_limits_are_those_of_the_manifest(podman: Podman, played: Played) -> None:
    [found] = json.loads(podman("inspect", played.name))
    assert found["HostConfig"]["NanoCpus"] == 1_000_000_000
    assert found["HostConfig"]["Memory"] == manifests.in_mib(Values().memory_limit) * 2**20


def test_it_stops_by_itself_when_it_is_told(podman: Podman, played: Played) -> None:
    podman("stop", "--time", "65", played.name)
    [found] = json.loads(podman("inspect", played.name))
    assert found["State"]["ExitCode"] == 0


def test_compose_runs_the_service(podman: Podman, tmp_path: Path) -> None:
    pytest.importorskip("podman_compose")
    port = free_port()
    wrapper = tmp_path / "podman"  # podman-compose takes a program, not a command with flags
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(podman.command)} "$@"\n')
    wrapper.chmod(0o755)
    file = tmp_path / "compose.yaml"
    made = yaml.safe_load(manifests.compose(Values(name="flambeau-test", image=podman.image, cpu=1), stack=False))
    [service] = made["services"].values()
    del service["ports"]
    service["network_mode"] = "host"
    service["environment"]["FLAMBEAU_PORT"] = str(port)
    file.write_text(yaml.safe_dump(made))
    compose = [
        sys.executable,
        "-m",
        "podman_compose",
        "--podman-path",
        str(wrapper),
        "--in-pod",
        "false",
        "-f",
        str(file),
    ]
    try:
        subprocess.run([*compose, "up", "-d"], env=podman.environment, check=True, capture_output=True)
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _ready(url), seconds=STARTUP_SECONDS)
        assert requests.get(f"{url}/models", headers={"Host": "evil.example.org"}, timeout=5).status_code != 200
    finally:
        subprocess.run([*compose, "down"], env=podman.environment, check=False, capture_output=True)


def test_composes_own_parser_takes_the_file_of_the_repository() -> None:
    """With every variable at its default, and with nginx, whose profile is off unless it is asked for."""
    pytest.importorskip("podman_compose")
    if shutil.which("podman") is None:  # podman-compose asks it for its version
        pytest.skip(f"podman is not installed here: {INSTALL}")
    compose = [sys.executable, "-m", "podman_compose", "-f", str(ROOT / "deploy/compose.yaml")]
    for profile, services in ((), {"flambeau", "prometheus", "grafana"}), (("--profile", "tls"), {"nginx"}):
        done = subprocess.run([*compose, *profile, "config"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = yaml.safe_load(done.stdout)["services"]
        assert services <= found.keys()
        assert found["flambeau"]["read_only"] is True
