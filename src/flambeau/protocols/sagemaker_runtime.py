"""AWS's own API for predictions, for programs whose boto3 has this server as its `endpoint_url`.

    POST /endpoints/{model}/invocations     as /invocations: `client.invoke_endpoint(EndpointName=...)`

The endpoint's name is a model's; `TargetModel` is another's, and `TargetVariant` is a version of it. An error has the
form that botocore makes a `ModelError` of, and the status of its reason: AWS says 424 to all. The signature of the
request is not looked at: AWS's keys open nothing here.
"""

from collections.abc import Awaitable
from typing import cast

import msgspec
from msgspec.structs import replace

from flambeau.errors import RequestError
from flambeau.protocols import dispatch, invocations
from flambeau.protocols.content_encoding import UnpackingBudget
from flambeau.protocols.errors import error_answer
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.protocols.native import Answered
from flambeau.protocols.routes import Route
from flambeau.serving.model import Model
from flambeau.serving.service import Service

_PATH = "/endpoints/{model}/invocations"
_TARGET_MODEL, _TARGET_VARIANT = "x-amzn-sagemaker-target-model", "x-amzn-sagemaker-target-variant"
_NOT_FOUND = frozenset({"model_not_found", "version_not_found"})


def refuse(error: RequestError, request_id: str) -> HttpAnswer:
    """The answer to a request that failed."""
    message = error.message if not error.hint else f"{error.message}: {error.hint}"
    kind = "ValidationError" if error.code in _NOT_FOUND else "ModelError"
    return _failed(error_answer(error, request_id), kind, message)


def _failed(told: HttpAnswer, kind: str, message: str) -> HttpAnswer:
    original = bytes(told.body).decode("utf-8", "replace")
    body = {"code": kind, "message": message, "OriginalStatusCode": told.status, "OriginalMessage": original}
    return HttpAnswer(told.status, msgspec.json.encode(body), headers=(("x-amzn-errortype", kind), *told.headers))


def routes(unpacking: UnpackingBudget) -> tuple[Route, ...]:
    """The route."""
    infer = invocations.answering(unpacking)

    async def answer(service: Service, model: Model, request: HttpRequest) -> Answered:
        found = await infer(service, model, request)
        http = found.http
        if found.error is not None:
            http = refuse(found.error, request.identity)
        elif http.status >= 400:  # which a script has chosen
            http = _failed(http, "ModelError", f"the model answered with the status {http.status}")
        headers = (("x-Amzn-Invoked-Production-Variant", model.version), *http.headers)
        return replace(found, http=replace(http, headers=headers))

    predict = dispatch.prediction(_PATH, answer, refuse, protocol="platform")

    async def invoke(service: Service, request: HttpRequest, model: str) -> HttpAnswer:
        name, version = request.headers.get(_TARGET_MODEL, model), request.headers.get(_TARGET_VARIANT)
        return await cast("Awaitable[HttpAnswer]", predict(service, request, name, version))

    return (Route("POST", _PATH, "infer", invoke, quiet=True),)
