"""What every prediction comes to when it is over, whatever its protocol: metrics, a line of the log, a trace.

It knows neither HTTP nor gRPC. Statuses are those of HTTP for every protocol, so that they can be added up.
"""

import time
from collections.abc import Mapping, Sequence

import msgspec

from flambeau.errors import RequestError
from flambeau.serving.model import Model
from flambeau.serving.service import Service
from flambeau.telemetry import logs, tracing
from flambeau.telemetry.metrics import Protocol
from flambeau.types import Timings


class Ended(msgspec.Struct, frozen=True):
    """A prediction that is over. `name` is that of its line in the log and of its span.

    `received` and `queued` are times of `time.monotonic()`, `timings` are one for each item, and `attributes` are the
    protocol's own, for the span.
    """

    name: str
    protocol: Protocol
    identity: str
    received: float
    status: int
    error: RequestError | None
    timings: Sequence[Timings]
    queued: float
    traceparent: str | None
    attributes: Mapping[str, str | int]


def told(error: Exception, identity: str) -> RequestError:
    """The error as the client sees it: unexpected ones are logged, and their details kept from the client."""
    if isinstance(error, RequestError):
        return error
    logs.failure("a request failed unexpectedly", error, id=identity)
    return RequestError("the server failed on this request", code="internal")


def account(service: Service, model: Model | None, ended: Ended) -> float:
    """Count, log and trace a prediction. `model` is `None` if it never got to one. Returns its seconds."""
    seconds = time.monotonic() - ended.received
    if model is None:
        if ended.error is not None:
            service.metrics.other.rejected(ended.error.code)
        service.metrics.other.answered(ended.status, ended.protocol)
    else:
        model.metrics.answered(ended.status, ended.protocol, seconds)
    trace = None
    if service.tracer is not None or ended.traceparent is not None:
        trace = _trace(service, model, ended)
    logs.event(
        ended.name,
        id=ended.identity,
        trace=trace,
        model=model.name if model else None,
        status=ended.status,
        code=ended.error.code if ended.error else None,
        ms=1000 * seconds,
    )
    return seconds


def _trace(service: Service, model: Model | None, ended: Ended) -> str | None:
    """The id of the request's trace, if it has one. Its spans are recorded now that the request is over."""
    parent = tracing.parent_of(ended.traceparent)
    if service.tracer is None:
        return parent.trace if parent else None
    attributes = {**ended.attributes, "flambeau.request_id": ended.identity}
    if model is not None:
        attributes |= {"flambeau.serving.model": model.name, "flambeau.version": model.version}
    if ended.error is not None:
        attributes["error.type"] = ended.error.code
    return service.tracer.record(
        ended.name,
        parent,
        began=ended.received,
        queued=ended.queued,
        timings=ended.timings,
        attributes=attributes,
        failed=ended.status >= 500,
    )
