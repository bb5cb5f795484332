"""P1: no library reports to its maker, in no process of ours."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from flambeau import engines
from flambeau.bundle.storage import Bundle
from tests.support import ROOT
from tests.support.fleet import children
from tests.support.server import FLAMBEAU, Serve

VARIABLES = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")
WANTED = dict.fromkeys(VARIABLES, "1")
REPORTING = dict.fromkeys(VARIABLES, "0")  # somebody's shell that wants it
TELLING = f"""
import json, os, sys
import flambeau

def tell(where):
    found = {{name: os.environ.get(name) for name in {VARIABLES!r}}}
    sys.stderr.write("TOLD " + json.dumps([where, found]) + "\\n")


class Telling(flambeau.PythonModel):
    def load(self):
        tell("model")

    def predict(self, batch):
        return [{{name: os.environ.get(name) for name in {VARIABLES!r}}} for _ in batch]
"""
NETWORK = f"""
import json, os, sys
import torch

found = {{name: os.environ.get(name) for name in {VARIABLES!r}}}
where = getattr(sys.modules["__main__"].__spec__, "name", "")
sys.stderr.write("TOLD " + json.dumps([where, found]) + "\\n")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x)
"""
CHILD = """
from flambeau.doctor.probes import LoadResult, ProbeProcess

print(ProbeProcess("telling_child", LoadResult, seconds=60).answer())
"""
ELSEWHERE = """
import json, os, sys
import flambeau

with flambeau.load(sys.argv[1], engine="onnxruntime") as model:
    print(json.dumps({name: os.environ.get(name) for name in json.loads(sys.argv[2])}))
"""
NAMESPACES = shutil.which("ip") is not None and hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture(autouse=True)
def _reporting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in REPORTING.items():
        monkeypatch.setenv(name, value)


def told(text: str) -> dict[str, dict[str, str]]:
    """What the processes said of their environment, by who said it."""
    lines = [line.partition("TOLD ")[2] for line in text.splitlines() if "TOLD " in line]
    return dict(json.loads(line) for line in lines)


@pytest.mark.parametrize("runner", ["processes", "threads"])
def test_the_processes_of_a_service_p1(runner: str, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "telling.py").write_text(TELLING)
    with serve("telling.py:Telling", "--allow-code", "--runner", runner, cwd=tmp_path) as server:
        assert server.post(json={"input": 1}).json() == {"output": WANTED}
        for pid in children(server.process.pid):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert {f"{name}=1".encode() for name in VARIABLES} <= set(environment)


@pytest.mark.long
def test_build_and_the_engines_trials_p1(tmp_path: Path) -> None:
    """The network's code is imported where it is built, and where eager PyTorch is measured."""
    (tmp_path / "net.py").write_text(NETWORK)
    subprocess.run(
        [sys.executable, "-c", "import net, torch; torch.save(net.Net().state_dict(), 'net.pth')"],
        cwd=tmp_path, check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    done = subprocess.run(
        [*FLAMBEAU, "bench", "net.pth", "--arch", "net.py:Net", "--allow-code", "--engine", "eager", "--rounds", "1",
         "--seconds", "0.01", "--input-shape", "4"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert told(done.stderr) == {"flambeau.builder.__main__": WANTED, "flambeau.engine_selection.candidate": WANTED}


def test_the_doctor_p1(tmp_path: Path) -> None:
    (tmp_path / "telling.py").write_text(TELLING)
    (tmp_path / "telling_child.py").write_text("import telling; telling.tell('doctor'); raise SystemExit(3)")
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert told(done.stdout) == {"doctor": WANTED}


@pytest.mark.long
@pytest.mark.parametrize("wanted", [None, "0"])
def test_somebody_elses_process_decides_where_it_has_decided_p1(
    wanted: str | None, default_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, wanted) if wanted is not None else monkeypatch.delenv(name)
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, default_bundle.path, json.dumps(VARIABLES)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == dict.fromkeys(VARIABLES, wanted or "1")


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace with a name server of its own."""
    if not NAMESPACES:
        pytest.skip("needs root, and ip of iproute2")
    name = f"flambeau-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
    folder = Path("/etc/netns") / name
    folder.mkdir(parents=True)
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    yield name
    shutil.rmtree(folder)
    subprocess.run(["ip", "netns", "delete", name], check=True)


def watched(namespace: str, home: Path, order: Mapping[str, object]) -> dict[str, object]:
    """What `namespace` found of the order, with nothing of ours in the environment and a home of its own."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment = {**kept, "HOME": str(home), "FLAMBEAU_CACHE": str(home / "bundles")}  # and no CI, which silences too
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, ROOT / "tests/support/namespace.py", json.dumps(order)],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_watch_notices_a_call_p1(namespace: str, tmp_path: Path) -> None:
    found = watched(namespace, tmp_path, {"check": True, "commands": []})
    assert found["calls"] == [
        "connection 10.99.0.1:443", "name somebody.example", "packet to 10.99.0.1, protocol 6"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "eager"])
def test_nobody_is_called_p1(engine: str, namespace: str, tmp_path: Path) -> None:
    """Build, then 40 s of serving. ONNX Runtime calls within 11 s of its loading, where nobody tells it not to."""
    if not engines.installed(engine):
        pytest.skip(f"{engine} is not installed")
    flambeau = [*FLAMBEAU]
    order = {
        "commands": [
            {"command": [*flambeau, "build", "default", "--engine", engine, "-o", str(tmp_path / "bundle")]},
            {
                "command": [*flambeau, "serve", str(tmp_path / "bundle"), "--engine", engine, "--port", "0"],
                "until": "http://", "seconds": 40,
            },
        ]
    }  # fmt: skip
    found = watched(namespace, tmp_path, order)
    assert f"on {engine}" in str(found["printed"])
    assert found["calls"] == []
    left = [path for path in (tmp_path / ".cache").rglob("*") if path.is_file()]
    assert not left, "no device id, no database"
