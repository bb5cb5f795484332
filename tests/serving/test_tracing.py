"""Traces: what `traceparent` may say, and the spans that a collector really gets."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from flambeau.system.machine import pip_install
from tests.support.fleet import wait_for
from tests.support.server import Serve, ServerProcess, run_anew

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
MODEL = """
import time
import flambeau


class Slow(flambeau.PythonModel):
    def predict(self, batch):
        time.sleep(0.05)
        return [1 / item for item in batch]
"""


class Collector:
    """An OTLP collector: an HTTP server that reads what the exporter sends."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.service = ""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                sent = ExportTraceServiceRequest.FromString(body)
                for resource in sent.resource_spans:
                    named = {each.key: each.value.string_value for each in resource.resource.attributes}
                    collector.service = named["service.name"]
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, trace: str) -> dict[str, Span]:
        """The spans of a trace, by name."""
        return {span.name: span for span in self.spans if span.trace_id.hex() == trace}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(serve: Serve, collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A model of 50 ms, whose spans the collector gets at once."""
    folder = tmp_path_factory.mktemp("tracing")
    (folder / "slow.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # milliseconds
        with serve("slow.py:Slow", "--allow-code", "--otel-endpoint", collector.url, cwd=folder) as started:
            yield started


def spans_of(collector: Collector, trace: str, names: set[str]) -> dict[str, Span]:
    wait_for(lambda: collector.of(trace).keys() == names)
    return collector.of(trace)


def test_a_request_and_its_stages_are_spans_of_the_clients_trace(server: ServerProcess, collector: Collector) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "traced"}
    began = time.time_ns()
    answered = server.post(json={"input": 4}, headers=headers)
    ended = time.time_ns()
    assert answered.json() == {"output": 0.25}
    spans = spans_of(collector, TRACE, {"POST /predict", "queue", "preprocess", "inference", "postprocess"})
    request = spans.pop("POST /predict")
    assert request.parent_span_id.hex() == PARENT
    assert request.kind == Span.SPAN_KIND_SERVER
    told = {each.key: each.value.string_value or each.value.int_value for each in request.attributes}
    assert told["http.response.status_code"] == 200
    assert (told["flambeau.serving.model"], told["flambeau.request_id"]) == ("Slow", "traced")
    assert collector.service == "flambeau"
    assert began <= request.start_time_unix_nano < request.end_time_unix_nano <= ended
    timing = dict(re.findall(r"(\w+);dur=([\d.]+)", answered.headers["Server-Timing"]))
    for name, span in spans.items():
        assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
        milliseconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        assert milliseconds == pytest.approx(float(timing[name]), abs=0.01)
    assert spans["inference"].end_time_unix_nano - spans["inference"].start_time_unix_nano >= 50e6
    assert f"trace={TRACE}" in next(line for line in server.log().splitlines() if "id=traced" in line)


def test_a_failure_is_told_with_its_code(server: ServerProcess, collector: Collector) -> None:
    trace = "ab" * 16
    answered = server.post(json={"input": 0}, headers={"traceparent": f"00-{trace}-{PARENT}-01"})
    assert answered.json()["code"] == "model_error"
    assert "inference;dur=" in answered.headers["Server-Timing"]
    request = spans_of(collector, trace, {"POST /predict", "queue", "preprocess", "inference", "postprocess"})[
        "POST /predict"
    ]
    assert request.status.code == Status.STATUS_CODE_ERROR
    assert {each.key: each.value.string_value for each in request.attributes}["error.type"] == "model_error"


def test_what_the_client_does_not_sample_is_not_sent(server: ServerProcess, collector: Collector) -> None:
    quiet, loud = "cd" * 16, "ef" * 16
    assert server.post(json={"input": 1}, headers={"traceparent": f"00-{quiet}-{PARENT}-00"}).status_code == 200
    assert server.post("/predict/none", headers={"traceparent": f"00-{loud}-{PARENT}-01"}).status_code == 404
    spans_of(collector, loud, {"POST /predict"})
    assert not collector.of(quiet)


@pytest.mark.parametrize(
    "header",
    [
        "", "none", f"00-{TRACE}-{PARENT}", f"00-{TRACE}-{PARENT}-1", f"00-{TRACE}-{PARENT}-01-more",
        f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01", f"00-{TRACE[1:]}-{PARENT}-01", f"00-{TRACE}-{PARENT}-0g",
        f"00 -{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01, 00-{TRACE}-{PARENT}-01",
    ],
)  # fmt: skip
def test_a_traceparent_that_breaks_a_rule_is_passed_over(server: ServerProcess, header: str) -> None:
    """W3C Trace Context, 3.2.2: then the request begins a trace of its own."""
    identity = f"broken-{abs(hash(header))}"
    answered = server.post(json={"input": 1}, headers={"traceparent": header, "X-Request-ID": identity})
    assert answered.status_code == 200
    [line] = [line for line in server.log().splitlines() if f"id={identity} " in line]
    found = re.search(r" trace=([0-9a-f]{32}) ", line)
    assert found is not None
    assert found.group(1) != TRACE


def test_a_later_version_of_the_header_may_say_more(server: ServerProcess) -> None:
    headers = {"traceparent": f"01-{TRACE}-{PARENT}-01-what-comes", "X-Request-ID": "later"}
    server.post(json={"input": 1}, headers=headers)
    assert f"id=later trace={TRACE}" in server.log()


@pytest.mark.long
def test_a_collector_that_is_away_costs_no_request_and_no_stop(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(MODEL)
    with socket.create_server(("127.0.0.1", 0)) as unheard:  # it takes connections, and never answers
        endpoint = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        with serve("slow.py:Slow", "--allow-code", "--otel-endpoint", endpoint, cwd=tmp_path) as server:
            assert server.post(json={"input": 2}).json() == {"output": 0.5}
            server.process.terminate()
            assert server.process.wait(60) == 0


@pytest.mark.long
def test_without_the_extra_the_error_names_it(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry.py").write_text("raise ImportError\n")
    (tmp_path / "slow.py").write_text(MODEL)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = "
        "['serve', 'slow.py:Slow', '--allow-code', '--port', '0', '--otel-endpoint', 'http://127.0.0.1:4318']; "
        "from flambeau.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert done.stderr.splitlines()[-1] == (
        "flambeau: --otel-endpoint http://127.0.0.1:4318 needs OpenTelemetry's packages: "
        f"install them with: {pip_install('otel')}"
    )


def test_spans_are_not_even_imported_unless_they_are_asked_for() -> None:
    code = "import flambeau.http.server, sys, json; print(json.dumps([m for m in sys.modules if 'opentelemetry' in m]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_bad_command_line_is_told_in_text() -> None:
    done = run_anew("serve", "--log-format", "xml")
    assert done.returncode == 78
    assert "--log-format" in done.stderr
