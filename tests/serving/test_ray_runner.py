"""The runner over Ray: what its front makes of dead, silent and lost hosts, and how bundles travel.

Ray itself is played by `tests.support.fake_ray`; `tests/cluster` has the real one. Workers are real.
"""

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from flambeau.answers import Value
from flambeau.errors import BundleError, EngineError, SourceError
from flambeau.runners import wire
from flambeau.runners.base import ReplicaSpec, RunnerState, Work, WorkerLostError
from flambeau.runners.ray import host, replica
from flambeau.sources import by_content
from flambeau.types import Item, Options, Payload
from tests.support import tensor_bundles
from tests.support.fake_ray import ActorUnavailableError, RayFleet, hidden_bundles
from tests.support.fleet import echo, eventually, make_bundle

parcel = importlib.import_module("flambeau.runners.ray.parcel")


def run(steps: Coroutine[Any, Any, None]) -> None:
    asyncio.run(steps)


def test_a_batch_is_one_call_of_plain_bytes(spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    async def steps() -> None:
        async with RayFleet(spec, monkeypatch, replicas=2, ray_num_gpus=0.5) as fleet:
            assert await fleet.ask(echo("a"), echo("b")) == ["a", "b"]
            assert await fleet.ask(echo("c" * 300_000)) == ["c" * 300_000]
            sent = [args for actor in fleet.ray.actors for args in actor.args]
            assert len(sent) == 2
            assert all(
                type(part) in (bytes, bool) and len(bytes(cast(bytes, part))) <= 96 * 1024
                for each in sent
                for part in each
            )
            assert {actor.label for actor in fleet.ray.actors} == {"commands replica 1", "commands replica 2"}
            assert fleet.ray.options[0]["num_gpus"] == 0.5
            counts, views = fleet.runner.counts(), fleet.runner.workers()
            assert (counts.replicas, counts.warm, counts.busy) == (2, 2, 0)
            assert [view.node is not None and view.state == "idle" for view in views] == [True, True]

    run(steps())


def test_a_host_that_dies_over_a_batch_takes_it_back_and_is_replaced(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps() -> None:
        async with RayFleet(spec, monkeypatch) as fleet:
            waiting = await fleet.ask_later("one")
            await fleet.ray.actors[0].die()
            with pytest.raises(WorkerLostError, match="killed"):
                await waiting
            assert fleet.runner.state() is RunnerState.RESTARTING
            assert await fleet.ask(echo("again")) == ["again"]
            assert [actor.label for actor in fleet.ray.actors] == ["commands replica 1", "commands replica 2"]
            assert fleet.runner.restarts()["killed"] == 1

    run(steps())


@pytest.mark.long
def test_a_replica_leaves_a_node_that_is_told_to_end(spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers what it has, and until its successor is warm; nothing is run twice, and nothing counts as lost."""

    async def steps() -> None:
        async with RayFleet(spec, monkeypatch) as fleet:
            waiting = await fleet.ask_later("one")
            old = fleet.ray.actors[0]
            fleet.ray.draining.add(old.node)
            await eventually(lambda: len(fleet.ray.actors) == 2)
            assert fleet.runner.state() is RunnerState.READY
            await fleet.until(lambda: fleet.runner.slots() == 1 and fleet.runner.workers()[0].state == "idle")
            assert await fleet.ask(echo("two")) == ["two"]
            assert len(fleet.ray.actors[1].args) == 1
            assert not old.dead
            (fleet.folder / "one").touch()
            assert await waiting == ["one"]
            await eventually(lambda: old.dead)
            assert len(old.args) == 1
            assert fleet.runner.restarts()["killed"] == 0

    run(steps())


def test_a_replica_whose_node_ends_before_its_successor_is_warm_is_lost_as_any(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps() -> None:
        async with RayFleet(spec, monkeypatch) as fleet:
            waiting = await fleet.ask_later("one")
            fleet.ray.draining.add(fleet.ray.actors[0].node)
            await eventually(lambda: len(fleet.ray.actors) == 2)
            await fleet.ray.actors[0].die()
            with pytest.raises(WorkerLostError, match="killed"):
                await waiting
            assert await fleet.ask(echo("again")) == ["again"]
            assert len(fleet.ray.actors) == 2
            assert fleet.runner.restarts()["killed"] == 1

    run(steps())


@pytest.mark.long
def test_a_model_that_crashes_ends_its_worker_and_not_its_host(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps() -> None:
        async with RayFleet(spec, monkeypatch, compute_timeout=0.5) as fleet:
            for do, how in (("exit", "crashed"), ("hang", "hung")):
                with pytest.raises(WorkerLostError, match=how):
                    await fleet.ask({"do": do})
                assert await fleet.ask(echo(do)) == [do]
            assert len(fleet.ray.actors) == 1
            await fleet.until(lambda: fleet.runner.restarts()["hung"] == 1)
            assert fleet.runner.restarts()["crashed"] == 1

    run(steps())


@pytest.mark.long
def test_a_silent_host_loses_its_batch_and_may_come_back(spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "_PULSE", 0.05)
    monkeypatch.setattr(replica, "_SILENCE", 0.5)

    async def steps() -> None:
        async with RayFleet(spec, monkeypatch, replicas=2) as fleet:
            waiting = await fleet.ask_later("one")
            [silent] = [actor for actor in fleet.ray.actors if actor.args]
            await asyncio.sleep(0.7)  # it is slow, and gives signs of life
            assert not waiting.done()
            silent.silent = True
            with pytest.raises(WorkerLostError, match="killed"):
                await waiting
            assert fleet.runner.slots() == 1  # the other answers
            assert await fleet.ask(echo("elsewhere")) == ["elsewhere"]
            (fleet.folder / "one").touch()
            silent.silent = False
            await fleet.until(lambda: fleet.runner.slots() == 2)
            assert len(fleet.ray.actors) == 2

    run(steps())


@pytest.mark.long
def test_an_unavailable_host_that_does_not_return_is_replaced(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_RETURN", 0.2)
    monkeypatch.setattr(replica, "_RETRY", 0.05)

    async def steps() -> None:
        async with RayFleet(spec, monkeypatch) as fleet:
            waiting = await fleet.ask_later("one")
            [away] = fleet.ray.actors
            away.unavailable = True
            away.fail_calls(ActorUnavailableError("the actor is temporarily unavailable"))
            with pytest.raises(WorkerLostError, match="killed"):
                await waiting
            assert await fleet.ask(echo("another")) == ["another"]
            assert len(fleet.ray.actors) == 2

    run(steps())


@pytest.mark.long
def test_replicas_come_and_go(spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    async def steps() -> None:
        async with RayFleet(spec, monkeypatch, replicas=2) as fleet:
            first, second = await fleet.ask_later("one"), await fleet.ask_later("two")
            fleet.runner.scale(1)
            assert fleet.runner.slots() == 1
            for name in ("one", "two"):
                (fleet.folder / name).touch()
            assert [await first, await second] == [["one"], ["two"]]  # the one that leaves answers first
            await eventually(lambda: sum(actor.dead for actor in fleet.ray.actors) == 1)
            fleet.runner.scale(2)
            await fleet.until(lambda: fleet.runner.slots() == 2)

    run(steps())


def test_a_full_batch_goes_behind_the_one_that_a_replica_has(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps() -> None:
        async with RayFleet(spec, monkeypatch) as fleet:
            first = await fleet.ask_later("one")
            assert fleet.runner.reserve(behind=True) is None  # nobody knows yet how long its batches take
            (fleet.folder / "one").touch()
            assert await first == ["one"]
            assert await fleet.ask(echo("quick")) == ["quick"]
            second = await fleet.ask_later("two")
            assert fleet.runner.reserve() is None
            behind = fleet.runner.reserve(behind=True)
            assert behind is not None
            assert fleet.runner.reserve(behind=True) is None  # one, and no more
            third = asyncio.ensure_future(behind([_work(echo("behind"))]))
            await eventually(lambda: len(fleet.ray.actors[0].args) == 4)  # it is there before the second is answered
            (fleet.folder / "two").touch()
            assert await second == ["two"]
            [outcome] = await third
            assert isinstance(outcome.result, Value)
            assert json.loads(outcome.result.json) == "behind"
            alone = fleet.runner.reserve(alone=True)
            assert alone is not None
            assert fleet.runner.reserve(behind=True) is None
            await alone([_work(echo("suspect"))])

    run(steps())


def test_a_batch_behind_one_that_crashes_is_not_blamed_and_one_that_waits_long_comes_back(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_BEHIND", 0.2)

    async def steps() -> None:
        async with RayFleet(spec, monkeypatch) as fleet:
            await fleet.ask(echo("quick"))
            first = await fleet.ask_later("one")
            slow = fleet.runner.reserve(behind=True)
            assert slow is not None
            with pytest.raises(WorkerLostError, match="killed"):
                await slow([_work(echo("elsewhere"))])
            (fleet.folder / "one").touch()
            assert await first == ["one"]
            await fleet.ask(echo("quick"))
            await fleet.ask(echo("quick"))
            slot = await fleet.slot()
            second = fleet.runner.reserve(behind=True)
            assert second is not None
            crash, behind = slot([_work({"do": "exit"})]), second([_work(echo("not me"))])
            ended = await asyncio.gather(crash, behind, return_exceptions=True)
            assert [str(each) for each in ended] == ["crashed", "killed"]
            assert await fleet.ask(echo("again")) == ["again"]

    run(steps())


def test_a_host_that_is_lost_after_its_place_was_closed_is_ended(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps() -> None:
        async with RayFleet(spec, monkeypatch, replicas=2) as fleet:
            [leaving] = [actor for actor in fleet.ray.actors if actor.label == "commands replica 2"]
            answer = leaving.real.answer

            async def garbled(*parts: Any) -> bytes:
                await answer(*parts)
                return b"no frame"

            monkeypatch.setattr(leaving.real, "answer", garbled)
            batches = [await fleet.ask_later("one"), await fleet.ask_later("two")]
            fleet.runner.scale(1)
            (fleet.folder / "one").touch()
            (fleet.folder / "two").touch()
            ended = await asyncio.gather(*batches, return_exceptions=True)
            assert [str(each) for each in ended if isinstance(each, WorkerLostError)] == ["crashed"]
            await eventually(lambda: leaving.dead)
            assert fleet.runner.restarts()["killed"] == 1

    run(steps())


def test_an_answer_is_no_news_to_the_front(spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """One Ray call a batch: the call that follows the host's state ends when there is something to tell."""

    async def steps() -> None:
        async with RayFleet(spec, monkeypatch) as fleet:
            [actor] = fleet.ray.actors
            await fleet.ask(echo("first"))
            asked = actor.real._watched
            for number in range(20):
                await fleet.ask(echo(number))
            assert actor.real._watched <= asked + 1

    run(steps())


def _work(command: dict[str, object]) -> Work:
    return Work(Item(Payload("json", json.dumps(command).encode()), Options()), 60.0)


def test_a_model_that_cannot_start_says_why(spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(spec.bundle, "broken").touch()

    async def steps() -> None:
        with pytest.raises(SourceError, match=r"weights\.bin is not here"):
            async with RayFleet(spec, monkeypatch):
                pass

    run(steps())


def test_a_node_that_cannot_hold_the_bundle_says_why(spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(digest: str, shared: str) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(by_content, "find", full)

    async def steps() -> None:
        with pytest.raises(EngineError, match=r"on node 10\.0\.0\.1/.*: .*No space left on device"):
            async with RayFleet(spec, monkeypatch):
                pass

    run(steps())


def test_a_node_with_another_version_is_refused(spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "VERSION", "99.0")

    async def steps() -> None:
        with pytest.raises(EngineError, match=r"10\.0\.0\.1/0000.*the front 99\.0: install the same on all"):
            async with RayFleet(spec, monkeypatch):
                pass

    run(steps())


def test_a_bundle_travels_in_pieces_once_and_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMBEAU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parcel, "_PIECE", 100)
    monkeypatch.setattr(parcel, "_AHEAD", 100)  # all stay there, whichever node is late
    spec = make_bundle(_folder(tmp_path / "model"))

    async def steps() -> None:
        with hidden_bundles(monkeypatch):
            async with RayFleet(spec, monkeypatch, replicas=2) as fleet:
                assert await fleet.ask(echo("there")) == ["there"]
                sizes = [file.stat().st_size for file in Path(spec.bundle).iterdir() if file.name != "__pycache__"]
                assert sum(fleet.ray.stored) == sum(sizes)  # once, for both nodes
                assert max(fleet.ray.stored) == 100
        kept = by_content.kept_at(by_content.digest_of(Path(spec.bundle)))
        assert {file.name for file in kept.iterdir()} >= {"manifest.json", "model.py"}
        assert [each.name for each in kept.parent.iterdir()] == [kept.name]  # and nothing unfinished

    run(steps())


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_bundle_that_arrives_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMBEAU_CACHE", str(tmp_path / "cache"))
    bundle = tensor_bundles.doubling(tmp_path / "doubling")
    digest = by_content.digest_of(bundle)
    arrival = by_content.Arrival(digest)
    for name in ("manifest.json", "model.onnx", "probes.safetensors"):
        data = (bundle / name).read_bytes()
        arrival.take(name, data if name != "model.onnx" else data[:-1] + b"?")
    with pytest.raises(BundleError, match=r"model\.onnx .* was changed"):
        arrival.finish()
    assert not by_content.kept_at(digest).exists()
    assert by_content.find(digest, str(bundle)) == bundle
    for name in ("../outside", "/etc/outside"):
        with pytest.raises(BundleError, match="cannot be named"):
            by_content.Arrival(digest).take(name, b"")


def test_parts_are_the_frame() -> None:
    for sizes in ([0], [1], [96 * 1024], [100_000, 5, 5, 300_000], [44_000] * 20, [5_000_000]):
        works = [Work(Item(Payload("file", bytes([n % 256]) * size), Options()), 1.0) for n, size in enumerate(sizes)]
        frame = wire.pack_batch(1, 2, works)
        parts, size = replica._parts(frame)
        assert b"".join(parts) == b"".join(frame)
        assert size == len(b"".join(parts))
        assert len(parts) == 1 or max(map(len, parts)) <= 96 * 1024


@pytest.mark.long
def test_without_ray_the_command_says_how_to_install_it(tmp_path: Path) -> None:
    bundle = tensor_bundles.doubling(tmp_path / "doubling")
    code = (
        "import sys\nsys.modules['ray'] = None\nsys.argv = ['flambeau', 'serve', sys.argv[1], '--runner', 'ray', "
        "'--port', '0']\nfrom flambeau.__main__ import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'flambeau[ray]'" in done.stderr


def test_nothing_of_ray_is_imported_before_a_runner_starts() -> None:
    code = (
        "import sys\nimport flambeau.ray, flambeau.runners.ray.runner, flambeau.cli.serve\n"
        "assert 'ray' not in sys.modules, 'Ray is imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
