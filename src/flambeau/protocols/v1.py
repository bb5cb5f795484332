"""The routes of KServe v1, the protocol that KServe takes by default. `v1_documents` has the bodies.

CloudEvents in binary mode (headers `ce-*`) are answered with an event: the request's attributes, with an id, a source
and a type of its own, as KServe's server does it.
"""

import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec

from flambeau.errors import RequestError
from flambeau.protocols import content_encoding, dispatch, v1_documents, v2_rest
from flambeau.protocols import kserve_openapi as described
from flambeau.protocols.content_encoding import UnpackingBudget
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.protocols.native import Answered
from flambeau.protocols.routes import Route
from flambeau.protocols.v2_routes import in_its_form, model_is_ready
from flambeau.serving.model import Model
from flambeau.serving.service import Service

_OF_AN_EVENT = ("ce-id", "ce-source", "ce-specversion", "ce-type")
_RESPONSE_TYPE = "io.kserve.inference.response"


class _V1Routes:
    """The functions of the routes."""

    def __init__(self, unpacking: UnpackingBudget) -> None:
        self._unpacking = unpacking

    async def listed(self, service: Service, request: HttpRequest) -> HttpAnswer:
        """`GET /v1/models`."""
        names = [served.name for served in service.table.served()]
        return HttpAnswer(200, msgspec.json.encode({"models": names}))

    async def model(self, service: Service, request: HttpRequest, model: str, version: str | None = None) -> HttpAnswer:
        """`GET /v1/models/{model}`."""
        ready = model_is_ready(service, model, version)
        return HttpAnswer(200 if ready else 503, msgspec.json.encode({"name": model, "ready": ready}))

    async def predict(self, service: Service, model: Model, request: HttpRequest) -> Answered:
        """`POST /v1/models/{model}:predict`, as `dispatch.prediction` takes it."""
        async with self._unpacking.unpacked(request) as body:
            try:
                asked = v1_documents.read(body, model, service.settings)
                if request.charge is not None:
                    request.charge(len(asked.payloads) - 1)
            except RequestError as error:
                model.metrics.rejected(error.code)
                raise
            queued = time.monotonic()
            timeout = service.settings.deadline
            outcomes = await service.predict(model, asked.payloads, asked.options, timeout=timeout)
        text, nonfinite = v1_documents.body_of(asked, outcomes)
        headers = _event_of(model, request.identity, request.headers)
        if nonfinite:
            headers = (*headers, ("X-Nonfinite-Outputs", str(nonfinite)))
        answer = HttpAnswer(200, text, headers=headers)
        answer = await content_encoding.packed(answer, request.headers.get("accept-encoding", ""))
        return Answered(answer, None, [outcome.timings for outcome in outcomes], queued)

    async def explain(self, service: Service, request: HttpRequest, model: str) -> HttpAnswer:
        """`POST /v1/models/{model}:explain`."""
        service.table.named(model)
        raise RequestError(
            "explanations are not supported: serve an explainer beside this predictor, as KServe does",
            code="not_implemented",
        )


def answering(unpacking: UnpackingBudget) -> Callable[[Service, Model, HttpRequest], Coroutine[Any, Any, Answered]]:
    """The function that answers instances for one model, as `dispatch.prediction` takes it."""
    return _V1Routes(unpacking).predict


def _event_of(model: Model, identity: str, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The headers of the event that answers one; none if the request is no event."""
    if not all(name in headers for name in _OF_AN_EVENT):
        return ()
    own = {"ce-id": identity, "ce-source": f"io.kserve.inference.{model.name}", "ce-type": _RESPONSE_TYPE}
    passed = {name: value for name, value in headers.items() if name.startswith("ce-") and name != "ce-time"}
    return tuple((passed | own).items())


def routes(unpacking: UnpackingBudget) -> tuple[Route, ...]:
    """The routes."""
    functions = _V1Routes(unpacking)
    one, versioned = "/v1/models/{model}", "/v1/models/{model}/versions/{version}"
    predict = dispatch.prediction(f"{one}:predict", functions.predict, v2_rest.refusal, protocol="v1")
    return (
        Route("GET", "/v1/models", "infer", in_its_form(functions.listed), describe=described.v1_listed),
        Route("GET", one, "infer", in_its_form(functions.model)),
        Route("GET", versioned, "infer", in_its_form(functions.model)),
        Route("POST", f"{one}:predict", "infer", predict, quiet=True, by_model=True, describe=described.v1_predict),
        Route("POST", f"{versioned}:predict", "infer", predict, quiet=True),
        Route("POST", f"{one}:explain", "infer", in_its_form(functions.explain)),
    )
