"""The runner over Ray in real clusters on this machine: `make test-cluster`. Without Ray, none of it runs.

One short test is part of `make test` where Ray is installed; it is not among the extras of the tests.
"""

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from chaos.cluster.nodes import Nodes, below, titled
from flambeau.runners.base import RunnerState, WorkerLostError
from tests.support import ROOT, tensor_bundles
from tests.support.fleet import Fleet, echo, make_bundle
from tests.support.server import FLAMBEAU, ServerProcess, run_flambeau, started

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

ROWS = dict.fromkeys(("kill", "grpc", "node", "raylet", "frozen", "gcs", "drain", "swap"), 12) | dict.fromkeys(
    ("drain-serve", "autoscale", "scale", "partition", "redis", "controller"), 20
)
"""The faults, and for how many seconds each is played."""

NEEDS = {"partition": "iptables", "redis": "redis-server"}


def test_a_local_cluster_is_one_flag_away_and_gone_afterwards(tmp_path: Path) -> None:
    with _alone(tmp_path) as server:
        assert server.post(json={"input": [1, 2, 3]}).json() == {"output": [2.0, 4.0, 6.0]}
        detail = server.get("/models/doubling/1").json()
        assert list(detail["nodes"].values()) == [1]
        assert "flambeau_worker_nodes{" in server.get("/metrics").text
        local = _mentioning("flambeau.runners.ray.local", parent=server.process.pid)
        assert len(local) == 1
    assert not Path(f"/proc/{local[0]}").exists()
    assert server.process.returncode == 0


@pytest.mark.cluster
def test_where_replicas_are_and_which_were_lost_is_told(tmp_path: Path) -> None:
    with _alone(tmp_path) as server:
        [local] = _mentioning("flambeau.runners.ray.local", parent=server.process.pid)
        [host] = set(below(local)) & set(titled((b"ray::ReplicaHost",)))
        os.kill(host, 9)
        server.wait_until(lambda: server.log().count("replica ready") == 2)
        shown = json.loads(run_flambeau("models", "--server", server.url, "show", "doubling", "1").stdout)
        assert (list(shown["nodes"].values()), shown["restarts"]) == ([1], {"killed": 1})
        [node] = shown["nodes"]
        assert f"a replica was lost model=doubling replica=1 node={node} why=" in server.log()
        assert f"replica ready model=doubling replica=2 node={node}" in server.log()


def _alone(folder: Path) -> AbstractContextManager[ServerProcess]:
    """A service of one replica in a cluster of its own."""
    bundle = tensor_bundles.doubling(folder / "doubling")
    command = (
        *FLAMBEAU, "serve", bundle, "--runner", "ray", "--ray-address", "local", "--replicas", 1, "--port", 0,
    )  # fmt: skip
    return started(command, folder, environment=dict(os.environ, FLAMBEAU_CACHE=str(folder / "cache")))


def _mentioning(module: str, *, parent: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        for child in (task / "children").read_text().split():
            if module in Path(f"/proc/{child}/cmdline").read_text():
                found.append(int(child))
    return found


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of a head and two nodes."""
    os.environ["FLAMBEAU_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    try:
        with Nodes(2) as cluster:
            yield cluster
    finally:
        del os.environ["FLAMBEAU_CACHE"]


class ClusterFleet(Fleet):
    """A fleet in the cluster."""

    def __init__(self, spec: Any, address: str, **settings: object) -> None:
        from flambeau.runners.ray.runner import RayRunner
        from flambeau.settings.service import Settings

        super().__init__(spec)
        self.runner = RayRunner(spec, Settings(ray_address=address, **settings), replicas=2)  # type: ignore


@pytest.mark.cluster
def test_a_crash_is_the_workers_and_a_kill_is_nobodys(nodes: Any, tmp_path: Path) -> None:
    async def steps() -> None:
        async with ClusterFleet(make_bundle(tmp_path), nodes.address) as fleet:
            assert len({view.node for view in fleet.runner.workers()}) == 2  # Ray spreads them
            assert await fleet.ask(echo("a" * 3_000_000)) == ["a" * 3_000_000]  # in parts
            assert await fleet.ask(echo("b" * 6_000_000)) == ["b" * 6_000_000]  # through the object store
            with pytest.raises(WorkerLostError, match="crashed"):
                await fleet.ask({"do": "segv"})
            waiting = await fleet.ask_later("one")
            for pid in nodes.hosts("flambeau"):
                os.kill(pid, 9)
            with pytest.raises(WorkerLostError, match="killed"):
                await waiting
            await fleet.until(lambda: fleet.runner.state() is RunnerState.READY)
            assert await fleet.ask(echo("again")) == ["again"]
            assert fleet.runner.restarts()["killed"] == 2

    asyncio.run(steps())
    assert nodes.hosts("flambeau") == []


@pytest.mark.cluster
def test_a_bundle_travels_through_the_object_store(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte in pieces of 100 kB, to hosts that do not see the front's folder."""
    from flambeau.bundle import storage
    from flambeau.runners.ray import parcel, runner
    from flambeau.sources import by_content
    from tests.support.elsewhere import ElsewhereHost

    monkeypatch.setattr(parcel, "_PIECE", 100_000)
    monkeypatch.setattr(runner, "ReplicaHost", ElsewhereHost)
    spec = make_bundle(tmp_path)
    (tmp_path / "data.bin").write_bytes(os.urandom(1_000_000))
    storage.write_manifest(tmp_path, storage.read(tmp_path, whole=False).manifest)

    async def steps() -> None:
        async with ClusterFleet(spec, nodes.address) as fleet:
            assert await fleet.ask(echo("there")) == ["there"]

    asyncio.run(steps())
    kept = by_content.kept_at(by_content.digest_of(tmp_path))
    assert (kept / "data.bin").read_bytes() == (tmp_path / "data.bin").read_bytes()


@pytest.mark.cluster
def test_more_replicas_than_there_is_room_for_wait_and_the_others_answer(nodes: Any, tmp_path: Path) -> None:
    async def steps() -> None:
        fleet = ClusterFleet(make_bundle(tmp_path), nodes.address, startup_timeout=15.0)
        fleet.runner.scale(6)
        async with fleet:
            counts = fleet.runner.counts()
            assert (counts.replicas, counts.warm) == (6, 4)  # two nodes of two CPUs
            assert await fleet.ask(echo("here")) == ["here"]
            fleet.runner.scale(1)
            await fleet.until(lambda: fleet.runner.counts().replicas == 1)

    asyncio.run(steps())


@pytest.mark.cluster
def test_replicas_leave_a_node_that_is_told_to_end(nodes: Any, tmp_path: Path) -> None:
    """As `ray drain-node` tells it: they are elsewhere, and were not lost, long before the node's end."""

    async def steps() -> None:
        async with ClusterFleet(make_bundle(tmp_path), nodes.address) as fleet:
            ending = nodes.any(random.Random(1))
            assert len(set(nodes.hosts("flambeau")) & set(nodes.everything(ending))) == 1
            said = await asyncio.to_thread(nodes.drain, ending, 600)
            assert not said
            async with asyncio.timeout(120):
                while set(nodes.hosts("flambeau")) & set(nodes.everything(ending)):
                    assert await fleet.ask(echo("meanwhile")) == ["meanwhile"]
                    await asyncio.sleep(0.1)
            assert fleet.runner.counts().warm == 2
            assert sum(fleet.runner.restarts().values()) == 0
            nodes.remove(ending)
            assert await fleet.ask(echo("after")) == ["after"]

    asyncio.run(steps())


@pytest.mark.cluster
@pytest.mark.parametrize("row", ROWS)
def test_nothing_is_lost(row: str) -> None:
    if (tool := NEEDS.get(row)) and shutil.which(tool) is None:
        pytest.skip(f"there is no {tool}")
    flags = ("--seconds", str(ROWS[row]), "--clients", "16", "--alone", "--only", f"cluster/{row}")
    done = subprocess.run(
        [sys.executable, "-m", "chaos.cluster", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    *_, line, last = done.stdout.splitlines() or ("", done.stderr)
    assert last.endswith(" failed"), done.stderr
    [report] = json.loads(line)
    assert report["verdict"] == "passed", report
