"""Builds and runs images on a machine without Docker and without a registry.

The base image is made by debootstrap and carries the name of the one in the Dockerfile, so that the Dockerfile is built
as it is. It has Debian's Python, where the real one has its own in /usr/local. Everything lies in one folder: see HOME.
"""

import configparser
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.support.server import free_port

TOOLS = ("buildah", "podman", "runc", "debootstrap")
INSTALL = "apt-get install buildah podman runc debootstrap"

HOME = Path(os.environ.get("DEPLOY_TESTS", Path.home() / ".cache" / "flambeau-deploy-tests"))
"""Keeps the base image between runs: half a gigabyte, which may be deleted at any time."""

BASE = f"docker.io/library/python:3.{sys.version_info.minor}-slim-bookworm"
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
PROCESSES = 32768

_UNNEEDED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/lib/apt/lists", "var/cache")
"""What the official slim images go without."""


def missing() -> str | None:
    """Why no image can be built here; `None` if one can."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return "images are built on Linux only"
    if absent := [each for each in TOOLS if shutil.which(each, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]:
        return f"{', '.join(absent)} is not installed here: {INSTALL}"
    if os.geteuid() != 0:
        return "debootstrap, and podman without further set-up, are for root"
    if sys.version_info[:2] != (3, 11):
        return f"{SUITE} has Python 3.11, and this is another"
    return None


class Engine:
    """buildah and podman with storage and configuration of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        storage = f'[storage]\ndriver = "vfs"\ngraphroot = "{home}/storage"\nrunroot = "{home}/run"\n'
        (home / "storage.conf").write_text(storage)
        limits = f'default_ulimits=["nofile=20000:20000","nproc={PROCESSES}:{PROCESSES}"]'
        engine = '[engine]\ncgroup_manager="cgroupfs"\nevents_logger="file"\nruntime="runc"\n'
        mounts = ", ".join(f'"{here}:{there}:ro"' for here, there in self._pip().items())
        (home / "build.conf").write_text(f"[containers]\n{limits}\nvolumes=[{mounts}]\n{engine}")
        (home / "run.conf").write_text(f"[containers]\n{limits}\n{engine}")
        self.building = self._environment("build.conf") | {"BUILDAH_ISOLATION": "chroot"}
        self.running = self._environment("run.conf")

    def _environment(self, configuration: str) -> dict[str, str]:
        return {
            **os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "STORAGE_DRIVER": "vfs",
            "CONTAINERS_CONF": str(self.home / configuration),
            "CONTAINERS_STORAGE_CONF": str(self.home / "storage.conf"),
        }  # fmt: skip

    def _pip(self) -> dict[str, str]:
        """What a build needs of this machine's configuration of pip: mounted while it builds, and not in the image."""
        told = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
        given = dict(re.findall(r"^(?:global|:env:)\.([a-z-]+)='(.*)'$", told, re.MULTILINE))
        kept = {name: value for name, value in given.items() if name in ("cert", "index-url", "proxy", "timeout")}
        parser = configparser.ConfigParser(interpolation=None)
        parser["global"] = kept
        with (self.home / "pip.conf").open("w") as file:
            parser.write(file)
        certificate = {kept["cert"]: kept["cert"]} if "cert" in kept else {}
        return {str(self.home / "pip.conf"): "/etc/pip.conf", **certificate}

    def buildah(self, *words: object, check: bool = True) -> str:
        """Run it, and return what it prints on standard output."""
        return _run(["buildah", *map(str, words)], self.building, check=check)

    def podman(self, *words: object, check: bool = True) -> str:
        """Run it, and return what it prints on standard output."""
        return _run(["podman", *map(str, words)], self.running, check=check)

    def make_base(self) -> None:
        """Make the base image, if it is not there."""
        if BASE in self.buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
            return
        root, made = self.home / "root", self.home / "base"
        shutil.rmtree(root, ignore_errors=True)
        packages = "python3,python3-venv,ca-certificates,netbase,tzdata"
        _run(["debootstrap", "--variant=minbase", f"--include={packages}", SUITE, str(root), MIRROR], self.building)
        for each in _UNNEEDED:
            shutil.rmtree(root / each, ignore_errors=True)
            (root / each).mkdir(parents=True)
        for compiled in (root / "usr/lib").rglob("*.pyc"):  # the official image has none
            compiled.unlink()
        (root / "usr/local/bin/python3").symlink_to("/usr/bin/python3")
        made.mkdir(exist_ok=True)
        _run(["tar", "--sort=name", "-C", str(root), "-cf", str(made / "root.tar"), "."], self.building)
        (made / "Containerfile").write_text("FROM scratch\nADD root.tar /\nENV LANG=C.UTF-8\n")
        self.buildah("build", "--timestamp", 0, "--tag", BASE, made)
        shutil.rmtree(root)
        shutil.rmtree(made)

    @contextmanager
    def files(self, image: str) -> Iterator[Path]:
        """The files of an image."""
        container = self.buildah("from", "--pull-never", image).strip()
        try:
            yield Path(self.buildah("mount", container).strip())
        finally:
            self.buildah("rm", container)

    def layers(self, image: str) -> list[str]:
        """The digests of an image's layers."""
        return self.buildah("inspect", "--type", "image", "--format", "{{.OCIv1.RootFS.DiffIDs}}", image).split()

    @contextmanager
    def run(
        self, image: str, *options: object, environment: Mapping[str, str] = {}, command: tuple[str, ...] = ()
    ) -> "Iterator[Container]":
        """A container, not yet started: any user, nothing writable but /tmp, no shared memory, no rights."""
        port = free_port()
        variables = {"FLAMBEAU_INSECURE_NO_AUTH": "1", "FLAMBEAU_PORT": port, **environment}
        identity = self.podman(
            "create", "--network", "host", "--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:size=16m",
            "--user", "12345", "--ipc", "none", "--cap-drop", "all",
            "--security-opt", "no-new-privileges", *options,
            *(word for name, value in variables.items() for word in ("--env", f"{name}={value}")), image, *command,
        ).split()[-1]  # fmt: skip
        container = Container(self, identity, f"http://127.0.0.1:{port}")
        try:
            yield container
        finally:
            self.podman("rm", "--force", "--time", 0, identity)


class Container:
    """A container that was made, and perhaps runs."""

    def __init__(self, engine: Engine, identity: str, url: str) -> None:
        self.engine = engine
        self.identity = identity
        self.url = url

    def start(self) -> float:
        """Start it, and wait until it is ready. Returns the seconds that this took."""
        began = time.monotonic()
        self.engine.podman("start", self.identity)
        wait_until_ready(self.url, lambda: self.state() == "running", self.log)
        return time.monotonic() - began

    def state(self) -> str:
        """`running`, `exited`, or another word of podman's."""
        return self.engine.podman("inspect", "--format", "{{.State.Status}}", self.identity).strip()

    def stop(self) -> int:
        """Send SIGTERM, wait half a minute for the end, and return the exit code."""
        self.engine.podman("stop", "--time", 30, self.identity)
        return int(self.engine.podman("inspect", "--format", "{{.State.ExitCode}}", self.identity))

    def shell(self, script: str, *, check: bool = True) -> str:
        """Run a script in it."""
        return self.engine.podman("exec", self.identity, "sh", "-c", script, check=check)

    def log(self) -> str:
        """What it has written to standard error."""
        command = ["podman", "logs", self.identity]
        return subprocess.run(command, env=self.engine.running, capture_output=True, text=True, check=True).stderr

    def post(self, **arguments: object) -> requests.Response:
        """POST /predict."""
        return requests.post(f"{self.url}/predict", timeout=60, **arguments)  # type: ignore[arg-type]


def wait_until_ready(url: str, lives: Callable[[], bool], log: Callable[[], str]) -> None:
    """Poll: nothing tells a client of a container that a port has opened. Raises with the log of one that ended."""
    deadline = time.monotonic() + 120
    pause, asked = 0.01, 0
    while time.monotonic() < deadline:
        try:
            if requests.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            asked += 1
            if asked % 100 == 0 and not lives():
                break
        time.sleep(pause)
    raise AssertionError(f"not ready: {log()}")


def _run(command: list[str], environment: Mapping[str, str], *, check: bool = True) -> str:
    def allow_processes() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))

    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, preexec_fn=allow_processes, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout
