"""The default model's image: how large it is, what is in it, and what it does in a container as strict as any."""

import json
import os
import secrets
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.deploy.conftest import Image
from tests.deploy.containers import Container, Engine, wait_until_ready
from tests.support.photographs import encoded, photograph
from tests.support.server import FLAMBEAU, free_port
from tests.support.tensor_bundles import doubling

MOST_BYTES = 300_000_000
CLIENTS = 8


@pytest.fixture(scope="module")
def container(engine: Engine, default_image: Image) -> Iterator[Container]:
    """As strict as containers get: runc itself would give it a home."""
    homeless = json.dumps(["env", "-u", "HOME", "flambeau"])
    limits = ("--memory", "700m", "--cpus", "1")
    with engine.run(default_image.tag, *limits, "--entrypoint", homeless, command=("serve",)) as made:
        made.start()
        yield made


def test_it_is_small_and_holds_no_tools(engine: Engine, default_image: Image) -> None:
    with engine.files(default_image.tag) as root:
        unpacked = sum(file.lstat().st_size for file in root.rglob("*") if file.is_file() and not file.is_symlink())
        site = next(root.glob("opt/flambeau/lib/python3*/site-packages"))
        there = {each.name for each in site.iterdir()}
        caches = [each for each in (root / "root/.cache", root / "root/.config") if each.exists()]
        parts = {path: _bytes(root / path) for path in ("opt/flambeau", "models")}
    print(f"\nunpacked {unpacked / 1e6:.0f} MB: {parts}")
    assert unpacked <= MOST_BYTES
    assert not {"torch", "pip", "setuptools", "sympy", "google", "onnx", "pygments"} & there
    assert caches == []
    assert "built by buildah in" in default_image.output


def _bytes(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def test_the_configuration_of_the_image(engine: Engine, default_image: Image) -> None:
    told = json.loads(engine.buildah("inspect", "--type", "image", default_image.tag))["Docker"]["config"]
    assert told["Entrypoint"] == ["flambeau"]
    assert told["Cmd"] == ["serve"]
    assert told["User"] == "10001:10001"
    assert told["Healthcheck"]["Test"] == ["CMD", "flambeau", "health"]
    assert told["Labels"]["org.opencontainers.image.title"] == "efficientnet_lite0"
    assert told["Labels"]["com.amazonaws.sagemaker.capabilities.multi-models"] == "true"
    assert told["Labels"]["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"


def test_the_same_folder_makes_the_same_layers(engine: Engine, default_image: Image) -> None:
    engine.buildah(
        "build", "--no-cache", "--format", "docker", "--timestamp", 315_532_800, "--tag", "again", default_image.folder
    )
    assert engine.layers("localhost/again") == engine.layers(default_image.tag)
    engine.buildah("rmi", "--force", "localhost/again")


def test_a_photograph_is_answered(container: Container) -> None:
    answer = container.post(files={"file": encoded(photograph("chelsea"))})
    assert answer.json()["class_name"] == "Egyptian_cat"


def test_any_user_without_home_writes_nothing(container: Container) -> None:
    assert container.shell("id -u").strip() == "12345"
    assert "HOME=" not in container.shell("tr '\\0' '\\n' < /proc/1/environ")
    assert container.shell("ls -A /tmp") == ""
    assert container.shell("ls /dev/shm 2>&1 || true").endswith("No such file or directory\n")
    assert "Read-only" in container.shell("touch /models/x 2>&1 || true")
    assert container.shell("flambeau health") == "ready\n"
    assert "No module named pip" in container.shell("python -m pip 2>&1 || true")
    assert "none here" in container.shell("command -v gcc cc make curl || echo none here")


def test_the_limits_of_the_container_are_seen(container: Container) -> None:
    """One processor of two: one thread, as the log says."""
    [ready] = [json.loads(line) for line in container.log().splitlines() if '"model ready"' in line]
    assert (ready["replicas"], ready["threads"]) == (1, 1)
    limit = container.shell(
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || true"
    )
    assert int(limit) == 700 * 1024 * 1024


def test_process_1_is_not_the_server(container: Container) -> None:
    parents = container.shell("cat /proc/[0-9]*/status | grep -E '^(Name|Pid|PPid):' || true")
    assert parents.count("PPid:\t1\n") == 1  # the server; workers are its children


def test_its_settings_are_shown_with_their_origin(engine: Engine, default_image: Image) -> None:
    """They are variables of the image."""
    with engine.run(default_image.tag, command=("config",)) as made:
        engine.podman("start", "--attach", made.identity)
        shown = engine.podman("logs", made.identity)
    rows = [line.split() for line in shown.splitlines()]
    assert ["host", '"0.0.0.0"', "FLAMBEAU_HOST"] in rows
    assert ["source", '"/models"', "FLAMBEAU_SOURCE"] in rows


def test_without_permission_it_says_what_to_give(engine: Engine, default_image: Image) -> None:
    with engine.run(default_image.tag, environment={"FLAMBEAU_INSECURE_NO_AUTH": ""}) as made:
        engine.podman("start", "--attach", made.identity, check=False)
        assert "would serve everybody who can reach this machine" in made.log()
    with engine.run(
        default_image.tag, environment={"FLAMBEAU_INSECURE_NO_AUTH": "", "FLAMBEAU_TOKEN": secrets.token_hex(32)}
    ) as made:
        made.start()
        assert made.post(files={"file": b"x"}).status_code == 401


def test_a_mounted_repository_takes_the_models_place(engine: Engine, default_image: Image, tmp_path: Path) -> None:
    doubling(tmp_path / "repository" / "doubling" / "1")
    for each in (tmp_path, *tmp_path.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)
    with engine.run(default_image.tag, "--volume", f"{tmp_path}/repository:/models:ro") as made:
        made.start()
        assert made.post(json={"input": [1, 2, 3]}).json()["output"] == [2, 4, 6]


class Clients:
    """Clients that post a photograph each time anew until they are told to stop, and count what became of it."""

    def __init__(self, container: Container) -> None:
        self.counts: Counter[str] = Counter()
        self.begun = threading.Event()
        self._container = container
        self._photograph = encoded(photograph("chelsea"))
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> "Clients":
        for each in self._threads:
            each.start()
        assert self.begun.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join()

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                answer = self._container.post(files={"file": self._photograph})
                self.counts[str(answer.status_code) if answer.status_code != 200 else answer.json()["class_name"]] += 1
            except requests.ConnectionError as error:
                refused = "Connection refused" in str(error)
                self.counts["refused" if refused else f"lost: {error}"] += 1
                if refused:
                    return
            if sum(self.counts.values()) >= CLIENTS:
                self.begun.set()


KILL_WORKERS = "for p in /proc/[0-9]*; do grep -q runners.[w]orker $p/cmdline && kill -9 ${p#/proc/}; done; true"


def test_a_worker_that_is_killed_loses_nothing(engine: Engine, default_image: Image) -> None:
    with engine.run(default_image.tag) as made:
        made.start()
        with Clients(made) as clients:
            for kill in range(1, 4):
                made.shell(KILL_WORKERS)
                _wait(lambda kills=kill: made.log().count('"worker lost"') >= kills)  # type: ignore[misc]
                wanted = clients.counts.total() + 3 * CLIENTS
                _wait(lambda least=wanted: clients.counts.total() >= least)  # type: ignore[misc]
        print(f"\n{clients.counts}")
        assert clients.counts.keys() == {"Egyptian_cat"}


def test_sigterm_drains(engine: Engine, default_image: Image) -> None:
    """Every request that a connection was made for is answered, and then the container ends with 0."""
    with engine.run(default_image.tag) as made:
        made.start()
        with Clients(made) as clients:
            code = made.stop()
        print(f"\n{clients.counts}")
        assert code == 0, made.log()
        assert clients.counts.keys() <= {"Egyptian_cat", "refused", "503"}
        assert clients.counts["Egyptian_cat"] >= CLIENTS
        assert "SIGTERM" in made.log()


def _wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_starts_as_fast_as_outside(engine: Engine, default_image: Image, tmp_path: Path) -> None:
    """Within 1.5 times, from the command to the first 200 of /readyz; the same bundle, in turns, the best of each."""
    inside, outside = [], []
    for _ in range(3):
        with engine.run(default_image.tag) as made:
            inside.append(made.start())
        outside.append(_start_outside(default_image.folder / "bundle", tmp_path))
    print(f"\nin a container {min(inside):.2f} s, outside {min(outside):.2f} s; all: {inside}, {outside}")
    assert min(inside) <= 1.5 * min(outside)


def _start_outside(bundle: Path, compiled: Path) -> float:
    port = free_port()
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(compiled)}  # filled by the first start
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.monotonic()
    command = [*FLAMBEAU, "serve", str(bundle), "--port", port]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", lambda: process.poll() is None, lambda: "")
        return time.monotonic() - began
    finally:
        process.terminate()
        process.wait()


def test_the_bill_of_materials_is_valid_and_true(engine: Engine, default_image: Image) -> None:
    """Valid by CycloneDX's own schema; its packages are those of the image."""
    validation = pytest.importorskip(
        "cyclonedx.validation.json", reason="make test-deploy installs cyclonedx-python-lib"
    )
    schema = pytest.importorskip("cyclonedx.schema")
    text = (default_image.folder / "sbom.cdx.json").read_text()
    assert validation.JsonStrictValidator(schema.SchemaVersion.V1_5).validate_str(text) is None
    listed = {each["name"] for each in json.loads(text)["components"] if each["type"] == "library"}
    script = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    with engine.run(default_image.tag, "--entrypoint", json.dumps(["python", "-c", script])) as made:
        engine.podman("start", "--attach", made.identity)
        found = engine.podman("logs", made.identity).split()
    assert {each.lower().replace("_", "-") for each in found} == listed
