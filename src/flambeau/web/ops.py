"""Routes for operators."""

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from flambeau.service import AttachedService, BlockingService
from flambeau.web.errors import STATUS

_STATUSES = sorted({200, *STATUS.values()})


def make_blueprint(handle: AttachedService | BlockingService) -> Blueprint:
    """`GET /metrics`."""
    blueprint = Blueprint("ops", __name__)

    @blueprint.get("/metrics")
    def metrics() -> Response:
        for counted in (handle.service.metrics.other, *(model.metrics for model in handle.service.models())):
            counted.expect(_STATUSES)
        return Response(handle.service.metrics.render(), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    return blueprint
