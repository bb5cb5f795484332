"""Traces: the W3C header `traceparent`, and OpenTelemetry spans of requests and their stages.

Reading the header needs no package, so that the log can always name the trace. Spans need the extra `otel`, whose
packages are imported only if spans are asked for. It knows no HTTP and no model.
"""

import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flambeau.errors import ConfigError
from flambeau.system.machine import pip_install
from flambeau.telemetry import logs
from flambeau.types import Timings
from flambeau.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.context import Context

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STANDARD_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_LAST_SPANS_SECONDS = 2.0
_STAGES = Timings.__struct_fields__
_NOTHING = Timings()


class Parent(NamedTuple):
    """The client's span that a request belongs to. Ids are in hexadecimal."""

    trace: str
    span: str
    flags: int


def parent_of(header: str | None) -> Parent | None:
    """The parent that `traceparent` names, or `None` if it is absent or breaks a rule of W3C Trace Context, level 1."""
    matched = _TRACEPARENT.fullmatch(header) if header else None
    if matched is None:
        return None
    version, trace, span, flags, more = matched.groups()
    if version == "ff" or (version == "00" and more) or not trace.strip("0") or not span.strip("0"):
        return None
    return Parent(trace, span, int(flags, 16))


def longest(timings: Sequence[Timings]) -> Timings:
    """For each stage, the longest time among the items."""
    if len(timings) == 1:
        return timings[0]
    return Timings(*(max(getattr(each, stage) for each in timings) for stage in _STAGES)) if timings else _NOTHING


class Tracer:
    """Makes the spans of finished requests; the SDK's own thread sends them."""

    def __init__(self, endpoint: str | None) -> None:
        """`endpoint` is the collector's base URL; without one the standard variables apply. Raises `ImportError`."""
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = {SERVICE_VERSION: VERSION}
        if "OTEL_SERVICE_NAME" not in os.environ:
            named[SERVICE_NAME] = "flambeau"
        self._api: Any = trace
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("flambeau", VERSION)

    def record(
        self,
        name: str,
        parent: Parent | None,
        *,
        began: float,
        queued: float,
        timings: Sequence[Timings],
        attributes: Mapping[str, str | int],
        failed: bool,
    ) -> str:
        """Make the spans of a request that ends now; returns the id of its trace.

        `began` and `queued` are times of `time.monotonic()`. A stage begins where the one before ended, and has its
        exact duration (the longest, if there are several items).
        """
        now = time.monotonic()
        epoch = time.time_ns() - round(now * 1e9)  # to be added to a monotonic time
        context = self._context(parent)
        request = self._tracer.start_span(
            name,
            context,
            kind=self._api.SpanKind.SERVER,
            attributes=attributes,
            start_time=epoch + round(began * 1e9),
        )
        if request.is_recording() and timings:
            inner = self._api.set_span_in_context(request, context)
            start = epoch + round(queued * 1e9)
            spent = longest(timings)
            for stage in _STAGES:
                end = start + round(getattr(spent, stage) * 1e9)
                self._tracer.start_span(stage, inner, start_time=start).end(end)
                start = end
        if failed:
            request.set_status(self._api.StatusCode.ERROR)
        request.end(epoch + round(now * 1e9))
        return f"{request.get_span_context().trace_id:032x}"

    def _context(self, parent: Parent | None) -> "Context | None":
        if parent is None:
            return None
        api = self._api
        remote = api.SpanContext(int(parent.trace, 16), int(parent.span, 16), True, api.TraceFlags(parent.flags))
        found: Context = api.set_span_in_context(api.NonRecordingSpan(remote))
        return found

    def close(self) -> None:
        """Send the remaining spans, and give up after two seconds: the collector may be away. Blocks."""
        # The exporter would retry for half a minute, and a pool's thread could not be abandoned.
        sending = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        sending.start()
        sending.join(_LAST_SPANS_SECONDS)


def start(endpoint: str | None) -> Tracer | None:
    """The tracer, if the setting or one of OpenTelemetry's own variables asks for it, or `None`.

    Raises `ConfigError` if the setting asks for it and the extra is not installed.
    """
    by_variable = [name for name in _STANDARD_VARIABLES if os.environ.get(name)]
    if not endpoint and not by_variable:
        return None
    try:
        return Tracer(endpoint)
    except ImportError:
        remedy = f"install them with: {pip_install('otel')}"
        if endpoint:
            raise ConfigError(f"--otel-endpoint {endpoint} needs OpenTelemetry's packages: {remedy}") from None
        logs.event(f"no spans are sent: OpenTelemetry's packages are not installed: {remedy}", variable=by_variable[0])
        return None
