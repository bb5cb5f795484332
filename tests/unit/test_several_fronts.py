"""The parts of several fronts: who gets a connection, totals, the shared rate, what is dealt out, and the journal."""

import json
import os

import msgspec
import pytest

from flambeau.bundle.measurements import Placed, Placements
from flambeau.bundle.storage import FORMAT, Manifest, PictureConfig, Source, TensorConfig
from flambeau.errors import ConfigError
from flambeau.fronts import shared_counts, totals, whole
from flambeau.fronts.dealing import Dealer, Hand, elsewhere
from flambeau.fronts.journal import ChangeJournal
from flambeau.fronts.messages import PlainRequest
from flambeau.fronts.shared_counts import SharedBudget, SharedCounts, SharedRate
from flambeau.fronts.sharing import fronts_for, part_of, settled
from flambeau.http.access import open_access
from flambeau.http.request_body import Share
from flambeau.settings.service import Settings
from flambeau.system.machine import processor
from flambeau.telemetry import count_memory
from flambeau.telemetry.count_memory import CountMemory
from flambeau.telemetry.counting import CountedMetric, PlainCounters
from flambeau.telemetry.metrics import Metrics
from flambeau.types import Timings


def test_a_connection_goes_to_the_front_with_the_fewest() -> None:
    dealer, hands = Dealer(), [Hand(), Hand(), Hand()]
    for number in range(30):
        chosen = dealer.choose(hands)
        assert chosen is not None
        dealer.deal(chosen, f"10.0.0.{number % 2}")
        assert max(hand.open for hand in hands) - min(hand.open for hand in hands) <= 1
    assert elsewhere(hands, hands[0], "10.0.0.0") == 15 - hands[0].addresses["10.0.0.0"]
    for _ in range(4):
        hands[1].closed("10.0.0.1")
    assert [dealer.choose(hands) for _ in range(2)] == [hands[1], hands[1]]
    assert dealer.choose([]) is None


FIRST = b"""# HELP flambeau_requests_total Answered.
# TYPE flambeau_requests_total counter
flambeau_requests_total{status="200"} 3.0
# TYPE flambeau_queue_items gauge
flambeau_queue_items{model="a"} 2.0
# TYPE flambeau_model_ready gauge
flambeau_model_ready{model="a"} 1.0
# TYPE flambeau_worker_memory_bytes gauge
flambeau_worker_memory_bytes{worker="0"} 100.0
# TYPE seconds histogram
seconds_bucket{le="1.0"} 1.0
seconds_bucket{le="+Inf"} 2.0
seconds_count 2.0
seconds_sum 4.5
# TYPE process_start_time_seconds gauge
process_start_time_seconds 50.0
"""


def test_metrics_are_added_up_as_each_means() -> None:
    second = FIRST.replace(b'ready{model="a"} 1.0', b'ready{model="a"} 0.0').replace(b" 50.0", b" 60.0")
    gone = totals.counted(FIRST, totals.counted(FIRST, b""))
    lines = totals.add_metrics({1: FIRST, 2: second}, [gone]).decode().splitlines()
    assert 'flambeau_requests_total{status="200"} 12.0' in lines  # of two that are there, and two that are gone
    assert 'flambeau_queue_items{model="a"} 4.0' in lines  # of those that are there
    assert 'flambeau_model_ready{model="a"} 1.0' in lines
    assert 'flambeau_worker_memory_bytes{worker="1.0"} 100.0' in lines
    assert 'flambeau_worker_memory_bytes{worker="2.0"} 100.0' in lines
    assert 'seconds_bucket{le="+Inf"} 8.0' in lines
    assert "seconds_sum 18.0" in lines
    assert "process_start_time_seconds 50.0" in lines


def test_statistics_and_details_are_added_up() -> None:
    one = {"name": "a", "version": "1", "last_inference": 5, "inference_count": 2, "queue": {"count": 2, "ns": 7}}
    two = one | {"last_inference": 9, "inference_count": 3}
    texts = [json.dumps({"model_stats": [each]}).encode() for each in (one, two)]
    [found] = json.loads(totals.add_statistics(texts, [texts[0]]))["model_stats"]
    assert (found["last_inference"], found["inference_count"], found["queue"]) == (9, 7, {"count": 6, "ns": 21})
    model = {"name": "a", "versions": [{"version": "1", "workers": 1, "threshold": 0.5, "memory": 10, "queued": 3}]}
    [version] = json.loads(totals.add_details(json.dumps(model).encode(), [json.dumps(model).encode()]))["versions"]
    assert version == {"version": "1", "workers": 2, "threshold": 0.5, "memory": 20, "queued": 6}


@pytest.fixture
def counts() -> list[SharedCounts]:
    descriptor = shared_counts.create(2)
    try:
        return [SharedCounts(descriptor, fronts=2, number=number) for number in (1, 2)]
    finally:
        os.close(descriptor)


def test_a_rate_holds_over_all_fronts_and_a_key_does_not_pay_for_another(counts: list[SharedCounts]) -> None:
    first, second = (SharedRate(each, 0, most=10, period=3600.0) for each in counts)
    taken = [rate.take("ann") for _ in range(10) for rate in (first, second)]
    assert taken.count(0) == 10
    assert all(0 < wait <= 7200 for wait in taken if wait)
    assert (first.take("bob", 4), second.take("bob", 7) > 0, second.take("bob", 6), first.take("bob") > 0) == (
        0, True, 0, True,
    )  # fmt: skip
    wrong_tokens = SharedRate(counts[0], 1, most=10, period=60.0)
    assert [wrong_tokens.note("ann") for _ in range(10)] == [0] * 10  # a limit of its own


def test_a_flood_of_keys_takes_no_more_memory_and_keys_without_a_place_share_one(counts: list[SharedCounts]) -> None:
    first, second = (SharedRate(each, 0, most=100, period=3600.0) for each in counts)
    admitted = sum(first.take(str(number)) == 0 for number in range(12_000))
    assert 8_000 <= admitted <= 8_192 + 100
    refused = next(str(number) for number in range(12_000, 20_000) if first.take(str(number)))
    assert second.take("new") == 0  # at the other front there are places
    assert first.take(refused) > 0


def test_bytes_in_flight_are_counted_over_all_fronts(counts: list[SharedCounts]) -> None:
    budgets = [SharedBudget(Settings(), each, most=100) for each in counts]
    shares = [Share(each, lambda: 0.0, None) for each in budgets]
    assert shares[0].take(70)
    assert not shares[1].take(40)
    assert shares[1].take(30)
    counts[0].forget(1)  # it has died
    assert shares[1].take(70)
    shares[1].close()
    assert budgets[1].used == 0


def test_limits_are_dealt_out_without_a_rest() -> None:
    whole = Settings(fronts=4, max_connections=1001, replicas=6, max_queue_size=256, max_memory=1 << 30)
    parts = [part_of(whole, number) for number in (1, 2, 3, 4)]
    assert sum(each.max_connections for each in parts) == 1001
    assert [each.replicas for each in parts] == [2, 2, 1, 1]
    assert sum(each.max_memory or 0 for each in parts) == 1 << 30
    assert {each.max_queue_size for each in parts} == {64}
    # a request that one front would take must fit into the queue of each
    assert part_of(Settings(fronts=8), 8).max_queue_size == Settings().max_items


def test_auto_has_as_many_fronts_as_the_cores_can_use() -> None:
    taken = Placed(2, 1, 166.0)
    photographs = Manifest(
        format=FORMAT,
        name="pictures",
        flambeau="0",
        source=Source(kind="file", name="x"),
        pipeline=PictureConfig(classes=2, least=0.5, most=10, most_pixels=1_000_000),
        engine="onnxruntime",
        placements=Placements(processor(), 2, taken, (taken,)),
    )
    assert [fronts_for(photographs, cores) for cores in (1, 2, 8, 64)] == [1, 1, 1, 3]
    numbers = msgspec.structs.replace(
        photographs,
        pipeline=TensorConfig(),
        placements=Placements(processor(), 2, Placed(2, 1, 200_000.0), ()),
    )
    assert [fronts_for(numbers, cores) for cores in (1, 2, 4)] == [1, 2, 4]
    unmeasured = msgspec.structs.replace(photographs, placements=Placements("another", 2, taken, (taken,)))
    assert fronts_for(unmeasured, 64) == 1
    assert settled(Settings(fronts=None), []).fronts == 1
    assert settled(Settings(fronts=3), []).fronts == 3


def test_an_application_has_no_fronts_of_its_own() -> None:
    with pytest.raises(ConfigError, match="only flambeau serve has several fronts"):
        open_access(Settings(fronts=2), ours=False)


def test_every_rule_for_the_whole_service_is_about_a_route_that_exists() -> None:
    there = {(route.method, route.path) for route in open_access(Settings(), ours=True).table}
    assert {("GET", path) for path in whole.RULES} <= there
    # what changes something and is not refused as such needs an admin token: then it reaches every front
    scopes = {(route.method, route.path): route.scope for route in open_access(Settings(), ours=True).table}
    changes = {(method, path) for method, path in there if method in ("PUT", "DELETE") or path.endswith("load")}
    assert {scopes[each] for each in changes if not each[1].startswith("/predictions/")} == {"admin"}


def request(method: str, path: str, **body: object) -> PlainRequest:
    return PlainRequest(method, path, body=json.dumps(body).encode() if body else b"")


def test_the_journal_keeps_what_still_holds() -> None:
    journal = ChangeJournal()
    for _ in range(100):
        journal.note(request("POST", "/models/cats/versions/2/load"))
        journal.note(request("PUT", "/models/cats", default_version="2", aliases={"stable": "1"}))
        journal.note(request("POST", "/models/cats/versions/2/unload"))
        journal.note(request("PUT", "/models/cats", default_version="1"))
        journal.note(request("POST", "/v2/repository/models/dogs/load"))
    kept = [(each.method, each.path, json.loads(each.body or b"{}")) for each in journal.requests()]
    assert kept == [
        ("PUT", "/models/cats", {"aliases": {"stable": "1"}}),
        ("POST", "/models/cats/versions/2/unload", {}),
        ("PUT", "/models/cats", {"default_version": "1"}),
        ("POST", "/v2/repository/models/dogs/load", {}),
    ]
    journal = ChangeJournal()
    for _ in range(3):  # the unload takes the default back, which the load does not give again
        journal.note(request("PUT", "/models/cats", default_version="1"))
        journal.note(request("POST", "/models/cats/versions/1/unload"))
        journal.note(request("POST", "/models/cats/versions/1/load"))
        journal.note(request("POST", "/models/cats/versions/1/load"))
    assert [each.path.rpartition("/")[2] for each in journal.requests()] == ["cats", "unload", "load"]
    journal = ChangeJournal()
    journal.note(request("POST", "/models", model_name="a", url="/x"))
    journal.note(request("DELETE", "/models/a"))
    assert journal.requests() == []


def test_counts_outlive_the_process_that_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = count_memory.create()
    metrics = Metrics(memory=CountMemory(descriptor))
    model = metrics.for_model("a", "1")
    model.timings(Timings(0.0001, 0.02, 7.0, 100.0))
    model.expect_batches(["full"])
    model.batch(3, "full")
    model.answered(200, seconds=0.5)
    metrics.refused("body_too_large", 413)
    shown = [line for line in metrics.render().splitlines() if b"stage_seconds" in line or b"_total" in line]
    left = totals.left_in_memory(count_memory.read(descriptor))
    counted = [line for line in shown if not line.startswith((b"#", b"process_", b"flambeau_log", b"flambeau_worker"))]
    assert len(counted) > 100
    assert not {*counted} - {*left.splitlines()}
    assert totals.latest([left, metrics.render()]).splitlines() != left.splitlines()  # with what lies elsewhere

    # where there is no more room, the rest is counted all the same, and only not left behind
    monkeypatch.setattr(count_memory, "_DIRECTORY", 400)
    descriptor = count_memory.create()
    counters = PlainCounters(CountedMetric("things", "Things.", ("number",)), CountMemory(descriptor))
    for number in range(100):
        counters.labels(str(number)).add(number)
    [family] = counters.collect()
    assert [sample.value for sample in family.samples] == [*range(100)]
    kept = count_memory.read(descriptor)
    assert [(labels, *numbers) for _, labels, numbers, _ in kept] == [((str(n),), n) for n in range(len(kept))]
    assert 0 < len(kept) < 100
