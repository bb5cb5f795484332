"""The routes that a platform asks for, put into the table: its health check, its predictions, and SageMaker's models.

A route of the platform takes the place of ours at the same path. The platforms' paths are settings
(`flambeau.settings.platforms` fills them); this module knows which form each platform speaks there.
"""

from collections.abc import Iterable
from dataclasses import replace

from flambeau.protocols import dispatch, huggingface, invocations, operations, sagemaker
from flambeau.protocols.content_encoding import UnpackingBudget
from flambeau.protocols.errors import error_answer
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.protocols.routes import Route
from flambeau.serving.service import Service
from flambeau.settings.platforms import PLATFORMS
from flambeau.settings.service import Settings


def added(routes: Iterable[Route], settings: Settings, unpacking: UnpackingBudget) -> list[Route]:
    """The routes with those of the platform: on one, health checks are answered whatever the header Host says."""
    kept = list(routes)
    if settings.multi_model is not None:
        kept = [route for route in kept if not route.path.startswith("/models")]
    if settings.platform in PLATFORMS:
        kept = [replace(route, scope="health") if _is_health(route) else route for route in kept]
    extra = _routes(settings, unpacking)
    taken = {(route.method, route.path) for route in extra}
    return [*extra, *(route for route in kept if (route.method, route.path) not in taken)]


def _is_health(route: Route) -> bool:
    return route.vital and route.scope == "public"


def _routes(settings: Settings, unpacking: UnpackingBudget) -> list[Route]:
    found: list[Route] = []
    if (path := settings.health_route) is not None:
        health = _healthy if settings.platform == "azure-ml" else operations.ready
        found.append(Route("GET", path, "health", sagemaker.ping if settings.platform == "sagemaker" else health,
                           vital=True, quiet=True))  # fmt: skip
    infer = huggingface.answer if settings.platform == "huggingface" else invocations.answering(unpacking)
    if (path := settings.predict_route) is not None:
        predict = dispatch.prediction(path, infer, error_answer, protocol="platform")
        found.append(Route("POST", path, "infer", predict, quiet=True))
    if settings.multi_model is not None:
        found += sagemaker.model_routes(settings.multi_model, infer)
    return found


async def _healthy(service: Service, request: HttpRequest) -> HttpAnswer:
    """As Azure's own server says it."""
    if not service.ready():
        return await operations.ready(service, request)
    return HttpAnswer(200, b"Healthy", "text/plain; charset=utf-8")
