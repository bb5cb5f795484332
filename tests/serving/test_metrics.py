"""The metrics of a real server: there from the first scrape, true after traffic, and bounded."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from flambeau.settings.service import Settings
from tests.support import ROOT
from tests.support.fleet import children, wait_for
from tests.support.server import Serve, ServerProcess

MODEL = """
import os
import flambeau


class Mine(flambeau.PythonModel):
    def predict(self, batch):
        if batch == ["die"]:
            os._exit(3)
        return batch
"""


def samples(server: ServerProcess) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """A scrape, read by the library's own parser: values by labels, by name."""
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = frozenset(sample.labels.items())
            assert labels not in series, f"{sample.name} has two series with the labels {sample.labels}"
            series[labels] = sample.value
    return found


def value(server: ServerProcess, name: str, **labels: str) -> float:
    """One sample; fails where there is none."""
    return samples(server)[name][frozenset({"model": "mine", "version": "1", **labels}.items())]


@pytest.fixture(scope="module")
def server(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Two workers of a model that dies when it is told to."""
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "mine.py").write_text(MODEL)
    flags = ("--allow-code", "--name", "mine", "--replicas", 2)
    with serve("mine.py:Mine", *flags, cwd=folder) as started:
        yield started


def test_every_series_is_there_at_zero_before_the_first_request(server: ServerProcess) -> None:
    """Rates and alarms work from the first failure on, and not from the second."""
    first = samples(server)
    own = {name for name in first if name.startswith("flambeau_")}
    assert own == {
        "flambeau_requests_total", "flambeau_rejections_total", "flambeau_batches_closed_total",
        "flambeau_retries_total", "flambeau_worker_restarts_total", "flambeau_queue_items", "flambeau_queue_bytes",
        "flambeau_workers", "flambeau_worker_memory_bytes", "flambeau_model_ready", "flambeau_build_info",
        "flambeau_log_dropped_total",
        *(f"flambeau_{name}_{part}" for name in ("stage_seconds", "batch_size") for part in ("bucket", "count", "sum")),
    }  # fmt: skip
    counters = {name for name in own if name.endswith(("_total", "_count", "_sum"))}
    assert {value for name in counters for value in first[name].values()} == {0.0}
    reasons = {dict(labels)["reason"] for labels in first["flambeau_worker_restarts_total"]}
    assert reasons == {"killed", "crashed", "hung", "out_of_memory", "failed_start"}
    stages = {dict(labels)["stage"] for labels in first["flambeau_stage_seconds_count"]}
    assert stages == {"queue", "preprocess", "inference", "postprocess", "total"}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"} <= first.keys()


def test_traffic_is_counted_where_it_belongs(server: ServerProcess) -> None:
    assert server.post(json={"input": 1}).json() == {"output": 1}
    assert server.post(data=b"no JSON", headers={"Content-Type": "application/json"}).status_code == 400
    assert server.post("/", files={"input": (None, "2")}).status_code == 200
    assert value(server, "flambeau_requests_total", protocol="native", status="200") == 1
    assert value(server, "flambeau_requests_total", protocol="native", status="400") == 1
    assert value(server, "flambeau_requests_total", protocol="page", status="200") == 1
    assert value(server, "flambeau_rejections_total", code="invalid_json") == 1
    assert value(server, "flambeau_stage_seconds_count", stage="inference") == 2
    assert value(server, "flambeau_stage_seconds_count", stage="total") == 1
    assert value(server, "flambeau_stage_seconds_sum", stage="total") > 0
    assert value(server, "flambeau_batch_size_sum") == 2
    assert sum(samples(server)["flambeau_batches_closed_total"].values()) == 2


@pytest.mark.long
def test_workers_their_memory_and_their_restarts_are_told(server: ServerProcess) -> None:
    workers = children(server.process.pid)
    assert value(server, "flambeau_workers", state="idle") == 2
    resident = [
        int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024  # type: ignore[index]
        for pid in workers
    ]
    told = [value(server, "flambeau_worker_memory_bytes", worker=str(number)) for number in range(2)]
    assert sum(told) == pytest.approx(sum(resident), rel=0.05)
    assert server.post(json={"input": "die"}).json()["code"] == "model_crashed"
    assert value(server, "flambeau_worker_restarts_total", reason="crashed") == 1
    [model] = server.get("/models").json()["models"]
    assert server.get(f"/models/{model['name']}/1").json()["restarts"] == {"crashed": 1}
    assert server.post(json={"input": "die"}).json()["code"] == "poison_input"
    assert value(server, "flambeau_rejections_total", code="poison_input") == 1
    wait_for(lambda: value(server, "flambeau_workers", state="idle") == 2)
    assert value(server, "flambeau_model_ready") == 1


def test_request_data_never_becomes_a_label_t28(server: ServerProcess) -> None:
    """T-28: unknown models are counted together, and the number of series stays as it is."""
    before = {name: len(series) for name, series in samples(server).items()}
    for number in range(30):
        server.post(f"/predict/made-up-{number}", json={"input": 1}, headers={"X-Request-ID": f"id-{number}"})
        server.post(f"/predict/mine/{number + 2}", json={"input": 1})
        server.get(f"/made/up/{number}?x={number}")
    after = samples(server)
    assert {name: len(series) for name, series in after.items()} == before
    labels = {"protocol": "native", "model": "_other", "version": "_other", "status": "404"}
    assert after["flambeau_requests_total"][frozenset(labels.items())] == 60
    labels = {"model": "_other", "version": "_other", "code": "model_not_found"}
    assert after["flambeau_rejections_total"][frozenset(labels.items())] == 30


def test_the_dashboard_and_the_alarms_ask_for_what_is_really_there(server: ServerProcess) -> None:
    """Every metric, label and fixed value in the queries of Grafana's file and of the page about alarms."""
    server.post(json={"input": 1})
    scraped = samples(server)
    dashboard = json.loads((ROOT / "deploy/grafana/flambeau.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [each["definition"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    alarms = (ROOT / "docs/observability.md").read_text().split("### Alarms worth having")[1].split("###")[0]
    queries += re.findall(r"\| `([^`]+)`", alarms)
    assert len(queries) > 25
    asked: dict[str, set[str]] = {}
    for query in queries:
        grouped = {name for names in re.findall(r"by \(([^)]*)\)", query) for name in names.split(", ")}
        for name, selected in re.findall(r"((?:flambeau|process)_\w+)(?:\{([^}]*)\})?", query):
            assert name in scraped, query
            labels = {key for series in scraped[name] for key, _ in series}
            for key, how, wanted in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', selected):
                if key == "job":  # Prometheus' own
                    continue
                assert key in labels, query
                values = {value for series in scraped[name] for own, value in series if own == key}
                assert wanted.startswith("$") or any(re.fullmatch(wanted, value) for value in values), (query, how)
            assert grouped <= labels, query
            asked.setdefault(name, set()).update(labels)
    own = {re.sub("_(bucket|sum|count)$", "", name) for name in scraped if name.startswith("flambeau_")}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in asked if name.startswith("flambeau_")} == own


def test_the_scrape_config_asks_where_flambeau_serves() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    [job] = config["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["static_configs"] == [{"targets": [f"{Settings().host}:{Settings().port}"]}]
