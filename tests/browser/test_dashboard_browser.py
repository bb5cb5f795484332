"""The dashboard in a real browser: what it shows, and that it computes as Prometheus does."""

import pytest

from tests.support.browser import Browser
from tests.support.page_site import Site
from tests.support.server import ServerProcess

# The dashboard


def test_the_dashboard_shows_what_happens(browser: Browser, cat_server: ServerProcess, cat: bytes) -> None:
    browser.open(f"{cat_server.url}/dashboard")
    browser.until(lambda: browser.texts("#state") == ["Live"])

    def asked_and_shown() -> bool:
        assert cat_server.post(files={"file": cat}).status_code == 200
        return browser.texts("#p99")[0].endswith("ms") and browser.texts("#rate") != ["0"]

    browser.until(asked_and_shown)
    assert browser.texts("#models th") == ["efficientnet_lite0"]
    assert browser.texts("#batches .legend b") == ["1"]
    drawn = "return document.querySelector(arguments[0]).getAttribute(arguments[1])"
    assert browser.run(drawn, "#requests svg", "aria-label").startswith("Requests per second: answered ")
    assert browser.run(drawn, "#latency .line.major", "d").startswith("M")
    assert browser.complaints() == []


EARLIER = """
# TYPE flambeau_requests_total counter
flambeau_requests_total{protocol="native",model="a",version="1",status="200"} 100.0
flambeau_requests_total{protocol="page",model="a",version="1",status="415"} 7.0
flambeau_requests_total{protocol="native",model="b",version="1",status="200"} 1000.0
flambeau_stage_seconds_bucket{model="a",stage="total",le="0.1"} 0.0
flambeau_stage_seconds_bucket{model="a",stage="total",le="0.2"} 0.0
flambeau_stage_seconds_bucket{model="a",stage="total",le="+Inf"} 0.0
flambeau_stage_seconds_count{model="a",stage="total"} 0.0
flambeau_stage_seconds_sum{model="a",stage="total"} 0.0
"""
LATER = """
flambeau_requests_total{protocol="native",model="a",version="1",status="200"} 150.0
flambeau_requests_total{protocol="page",model="a",version="1",status="415"} 7.0
flambeau_requests_total{protocol="native",model="a",version="1",status="503"} 20.0
flambeau_requests_total{protocol="native",model="b",version="1",status="200"} 30.0
flambeau_stage_seconds_bucket{model="a",stage="total",le="0.1"} 10.0
flambeau_stage_seconds_bucket{model="a",stage="total",le="0.2"} 40.0
flambeau_stage_seconds_bucket{model="a",stage="total",le="+Inf"} 40.0
flambeau_stage_seconds_count{model="a",stage="total"} 40.0
flambeau_stage_seconds_sum{model="a",stage="total"} 6.0
flambeau_batch_size_count{model="a"} 4.0
flambeau_batch_size_sum{model="a"} 10.0
flambeau_rejections_total{model="a",code="queue_full"} 20.0
flambeau_rejections_total{model="b",code="queue_full"} 1.0
flambeau_rejections_total{model="b",code="draining"} 0.0
flambeau_queue_items{model="a"} 3.0
flambeau_queue_items{model="b"} 4.0
flambeau_workers{model="a",version="1",state="busy"} 1.0
flambeau_workers{model="a",version="1",state="idle"} 2.0
flambeau_workers{model="b",version="2",state="idle"} 0.0
flambeau_worker_nodes{model="a",version="1",node="10.0.0.7/1a2b"} 2.0
flambeau_worker_nodes{model="a",version="1",node="10.0.0.8/3c4d"} 1.0
flambeau_worker_restarts_total{model="a",reason="crash"} 5.0
flambeau_worker_memory_bytes{model="a",version="1",worker="0"} 2e+08
flambeau_worker_memory_bytes{model="a",version="1",worker="1"} 1e+08
flambeau_model_ready{model="a",version="1"} 1.0
flambeau_model_ready{model="b",version="1"} 1.0
flambeau_model_ready{model="b",version="2"} 0.0
"""


@pytest.mark.slow
def test_the_dashboard_says_when_its_server_is_gone(browser: Browser, site: Site) -> None:
    browser.open(f"{site.url}/dashboard")
    browser.until(lambda: browser.texts("#state") == ["Live"])
    browser.command("Network.enable")
    speed = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.command("Network.emulateNetworkConditions", offline=True, **speed)
    browser.until(lambda: browser.texts("#state") == ["The server cannot be reached. What is shown is old."])
    browser.command("Network.emulateNetworkConditions", offline=False, **speed)
    browser.until(lambda: browser.texts("#state") == ["Live"])


def test_the_dashboard_computes_as_prometheus_does(browser: Browser, cat_server: ServerProcess) -> None:
    """Counters that start anew (those of `b`), quantiles within a bucket, and metrics that are not there."""
    browser.open(f"{cat_server.url}/dashboard")
    script = """
        const { parse } = await import("/static/dashboard/exposition.js");
        const { compare, perVersion, refusals } = await import("/static/dashboard/figures.js");
        const [earlier, later] = arguments[0].map((text, index) => ({ at: 10 * index, samples: parse(text) }));
        const plain = (figures) => ({ ...figures, spent: Object.fromEntries(figures.spent) });
        return [plain(compare(earlier, later, "")), plain(compare(earlier, later, "b")), perVersion(later),
                refusals(later, "")];
    """
    everything, b, models, refused = browser.run(script, [EARLIER, LATER])
    assert everything == {
        "at": 10, "answered": 8, "refused": 0, "failed": 2, "timed": "total",
        "median": pytest.approx(100 + 100 * 10 / 30), "slowest": pytest.approx(100 + 100 * 29.6 / 30),
        "spent": {"total": 150}, "batch": 2.5, "waiting": 7, "waitingBytes": None, "workers": 3, "restarts": 5,
        "memory": 3e8,
    }  # fmt: skip
    assert (b["answered"], b["median"], b["batch"], b["waiting"], b["memory"]) == (3, None, None, 4, None)
    assert models == [
        {"title": "a", "ready": True, "states": [["busy", 1], ["idle", 2]], "restarts": [["crash", 5]],
         "memory": [2e8, 1e8], "nodes": [["on 10.0.0.7/1a2b", 2], ["on 10.0.0.8/3c4d", 1]]},
        {"title": "b 1", "ready": True, "states": [], "restarts": [], "memory": [], "nodes": []},
        {"title": "b 2", "ready": False, "states": [["idle", 0]], "restarts": [], "memory": [], "nodes": []},
    ]  # fmt: skip
    assert refused == [["queue_full", 21]]


def test_the_text_of_metrics_is_read_with_every_escape(browser: Browser, cat_server: ServerProcess) -> None:
    browser.open(f"{cat_server.url}/dashboard")
    script = """
        const { parse } = await import("/static/dashboard/exposition.js");
        return [...parse(arguments[0])].map(([name, samples]) => [name, samples.map(
            ({ labels, value }) => [labels, String(value)])]);
    """
    text = '# HELP x {y="1"}\nx{a="q\\"u\\\\o\\nte{},",b=""} +Inf\nx 1e-3 1700000000\n\n???\ny{a="b"} NaN\n'
    assert browser.run(script, text) == [
        ["x", [[{"a": 'q"u\\o\nte{},', "b": ""}, "Infinity"], [{}, "0.001"]]],
        ["y", [[{"a": "b"}, "NaN"]]],
    ]
