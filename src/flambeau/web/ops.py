"""Routes for operators."""

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from flambeau.service import AttachedService, BlockingService


def make_blueprint(handle: AttachedService | BlockingService) -> Blueprint:
    """`GET /metrics`."""
    blueprint = Blueprint("ops", __name__)

    @blueprint.get("/metrics")
    def metrics() -> Response:
        return Response(handle.service.metrics.render(), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    return blueprint
