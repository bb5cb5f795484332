"""How replicas and threads are chosen: by measurement, on the machine that built the bundle."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from flambeau.bundle import storage
from flambeau.bundle.measurements import Placed, Placements
from flambeau.bundle.storage import Bundle
from flambeau.engine_selection import replica_scaling
from flambeau.system.machine import processor, usable_cores
from tests.support.server import Serve

FOUR, TWO, ONE = Placed(4, 1, 100.0), Placed(2, 2, 105.0), Placed(1, 4, 120.0)


@pytest.mark.parametrize(
    ("tried", "taken"),
    [((FOUR,), FOUR), ((FOUR, TWO), FOUR), ((FOUR, TWO, ONE), ONE), ((TWO, FOUR), TWO)],
)
def test_one_replica_for_each_core_stays_unless_fewer_answer_a_tenth_more(
    tried: tuple[Placed, ...], taken: Placed
) -> None:
    assert replica_scaling.take(tried) == taken


@pytest.mark.skipif(usable_cores() < 2, reason="there is nothing to choose on one core")
def test_a_build_measures_ways_to_share_the_cores(default_bundle: Bundle) -> None:
    found = default_bundle.manifest.placements
    assert found is not None
    assert (found.processor, found.cores) == (processor(), usable_cores())
    first, *_, last = found.tried
    assert (first.replicas, last.replicas) == (usable_cores(), 1)
    assert all(each.replicas * each.threads <= usable_cores() and each.per_second > 0 for each in found.tried)


@pytest.mark.parametrize(("longest", "rounds"), [(60.0, 3), (0.0, 1)])
def test_what_takes_long_is_measured_once(
    default_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, longest: float, rounds: int
) -> None:
    """A detector of seconds a picture was built half a minute longer, to measure the same three times."""
    measured: list[float] = []

    def per_second(calls: list[Callable[[], object]]) -> float:
        measured.append(1.0)
        return 1.0

    monkeypatch.setattr(replica_scaling, "_per_second", per_second)
    monkeypatch.setattr(replica_scaling, "_LONG", longest)
    found = replica_scaling.measure(default_bundle, "onnxruntime", cores=2, processor="this")
    assert [each.per_second for each in found.tried] == [1.0, 1.0]
    assert len(measured) == 2 * rounds


def placed(opened: Bundle, folder: Path, *, cores: int) -> Path:
    """A copy of the bundle, for which one replica of three threads was best on so many cores."""
    shutil.copytree(opened.path, folder)
    best = Placed(1, 3, 1.0)
    found = Placements(processor(), cores, best, (best,))
    storage.write_manifest(folder, msgspec.structs.replace(opened.manifest, placements=found))
    return folder


@pytest.mark.long
def test_a_service_takes_what_was_measured_here(serve: Serve, default_bundle: Bundle, tmp_path: Path) -> None:
    here = placed(default_bundle, tmp_path / "here", cores=usable_cores())
    with serve(here, replicas=None) as server:
        assert "replicas=1 threads=3" in server.log()


@pytest.mark.long
def test_what_the_user_says_goes_before_it(serve: Serve, default_bundle: Bundle, tmp_path: Path) -> None:
    here = placed(default_bundle, tmp_path / "here", cores=usable_cores())
    with serve(here, "--replicas", 2, "--threads", 1) as server:
        assert "replicas=2 threads=1" in server.log()


@pytest.mark.long
def test_what_was_measured_on_other_cores_is_passed_over(serve: Serve, default_bundle: Bundle, tmp_path: Path) -> None:
    elsewhere = placed(default_bundle, tmp_path / "elsewhere", cores=usable_cores() + 1)
    with serve(elsewhere, replicas=None) as server:
        assert f"replicas={usable_cores()} threads=1" in server.log()
