"""The routes for operators: whether the service is live, whether it is ready, and its metrics."""

import msgspec
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from flambeau.protocols.errors import STATUS
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.serving.service import Service

_STATUSES = sorted({200, *STATUS.values()})


async def live(service: Service, request: HttpRequest) -> HttpAnswer:
    """200 as long as the loop runs."""
    return HttpAnswer(200, b'{"status":"live"}')


async def ready(service: Service, request: HttpRequest) -> HttpAnswer:
    """200 when every model that is loaded can answer, 503 when one cannot or the service is stopping."""
    ready = service.ready()
    body = {
        "status": "ready" if ready else "draining" if service.draining else "not ready",
        "models": {served.name: served.state for served in service.table.served()},
    }
    return HttpAnswer(200 if ready else 503, msgspec.json.encode(body))


def metrics(service: Service, request: HttpRequest) -> HttpAnswer:
    """The metrics, in Prometheus' text format."""
    for counted in (service.metrics.other, *(model.metrics for model in service.models())):
        counted.expect(_STATUSES)
    return HttpAnswer(200, service.metrics.render(), CONTENT_TYPE_PLAIN_0_0_4)
