"""The routes of the Open Inference Protocol (KServe v2) over REST, with Triton's extensions as far as they make sense.

Values come from `v2_models` and `v2_inference`, and bodies from `v2_rest`. What the protocol has and Flambeau does not
is answered 501 with a sentence, so that a client learns it at once.
"""

import functools
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec

from flambeau.errors import RequestError
from flambeau.protocols import content_encoding, dispatch, models, v2_inference, v2_models, v2_rest
from flambeau.protocols import kserve_openapi as described
from flambeau.protocols.content_encoding import UnpackingBudget
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.protocols.native import Answered
from flambeau.protocols.routes import Route
from flambeau.protocols.v2_values import ParameterValue
from flambeau.serving.model import Model
from flambeau.serving.service import Service

_NO_SHARED_MEMORY = "shared memory is not supported: send tensors in the request, as binary data if they are large"
_NO_SETTINGS = "{} is set where flambeau serve starts, and cannot be changed over the protocol"

_Async = Callable[..., Coroutine[Any, Any, HttpAnswer]]


class _IndexBody(msgspec.Struct):
    ready: bool = False


class _RepositoryBody(msgspec.Struct):
    parameters: dict[str, ParameterValue] = {}


def in_its_form(function: _Async) -> _Async:
    """The function with errors in KServe's form."""

    @functools.wraps(function)
    async def answer(service: Service, request: HttpRequest, **parameters: str) -> HttpAnswer:
        try:
            return await function(service, request, **parameters)
        except RequestError as error:
            return v2_rest.refusal(error, request.identity)

    return answer


def model_is_ready(service: Service, model: str, version: str | None) -> bool:
    """Whether a request would be answered, where models are loaded on demand also by loading it. Raises `RequestError`
    for a model or version that is not there."""
    entry = service.table.version(model, version)
    if entry.usable() and entry.model is not None:
        return not service.draining and entry.model.ready()
    loads = service.settings.load == "on-demand" and not entry.fault
    return not service.draining and loads


class _V2Routes:
    """The functions of the routes. `may_see_reasons` and `tokens` as for `flambeau.protocols.models`."""

    def __init__(
        self, unpacking: UnpackingBudget, may_see_reasons: Callable[[Mapping[str, str]], bool], *, tokens: bool
    ) -> None:
        self._may_see_reasons = may_see_reasons
        self._tokens = tokens
        self._unpacking = unpacking

    # Health

    async def live(self, service: Service, request: HttpRequest) -> HttpAnswer:
        """`GET /v2/health/live`."""
        return _json({"live": True})

    async def ready(self, service: Service, request: HttpRequest) -> HttpAnswer:
        """`GET /v2/health/ready`."""
        ready = service.ready()
        return _json({"ready": ready}, 200 if ready else 503)

    async def model_ready(
        self, service: Service, request: HttpRequest, model: str, version: str | None = None
    ) -> HttpAnswer:
        """`GET /v2/models/{model}/ready`. What a request would load is ready."""
        ready = model_is_ready(service, model, version)
        return _json({"name": model, "ready": ready}, 200 if ready else 503)

    # Metadata

    async def server(self, service: Service, request: HttpRequest) -> HttpAnswer:
        """`GET /v2`."""
        return _json(v2_models.server_metadata())

    async def listed(self, service: Service, request: HttpRequest) -> HttpAnswer:
        """`GET /v2/models`, as KServe's own server has it."""
        return _json({"models": [served.name for served in service.table.served()]})

    async def metadata(
        self, service: Service, request: HttpRequest, model: str, version: str | None = None
    ) -> HttpAnswer:
        """`GET /v2/models/{model}`. On demand the model is loaded first, because its tensors are not known before."""
        async with service.using(model, version, request.key) as taken:
            return _json(v2_models.metadata(service, taken))

    async def config(
        self, service: Service, request: HttpRequest, model: str, version: str | None = None
    ) -> HttpAnswer:
        """`GET /v2/models/{model}/config`."""
        async with service.using(model, version, request.key) as taken:
            return _json(v2_models.config(service, taken))

    async def statistics(
        self, service: Service, request: HttpRequest, model: str | None = None, version: str | None = None
    ) -> HttpAnswer:
        """`GET /v2/models/stats`, or of one model, in all its loaded versions or in one."""
        if model is None:
            return _json(v2_models.statistics(service, service.models()))
        if version is not None:
            return _json(v2_models.statistics(service, [service.get(model, version)]))
        service.table.named(model)
        loaded = [each for each in service.models() if each.name == model]
        return _json(v2_models.statistics(service, loaded))

    # Inference

    async def infer(self, service: Service, model: Model, request: HttpRequest) -> Answered:
        """`POST /v2/models/{model}/infer`, as `dispatch.prediction` takes it."""
        if "content-encoding" not in request.headers:
            return await self._infer(service, model, request, request.body)
        async with self._unpacking.unpacked(request) as body:
            return await self._infer(service, model, request, body)

    async def _infer(self, service: Service, model: Model, request: HttpRequest, body: bytes | memoryview) -> Answered:
        began = time.monotonic()
        try:
            length = request.headers.get(_JSON_LENGTH)
            asked = await v2_rest.request_of(body, length, model, service.settings)
        except RequestError as error:
            model.metrics.rejected(error.code)
            raise
        most = service.settings.deadline - (time.monotonic() - began)
        response = await v2_inference.infer(service, model, asked, most=most, charge=request.charge)
        answer = await v2_rest.answer_of(asked, response)
        if "accept-encoding" in request.headers:
            answer = await content_encoding.packed(answer, request.headers["accept-encoding"])
        return Answered(answer, None, response.timings, response.queued)

    # The repository

    async def index(self, service: Service, request: HttpRequest) -> HttpAnswer:
        """`POST /v2/repository/index`."""
        asked = await self._body(request, _IndexBody)
        await service.loader.refresh(at_most=models.REFRESH_SECONDS)
        reasons = self._may_see_reasons(request.headers)
        return _json(v2_models.index(service, ready=asked.ready, reasons=reasons))

    async def load(self, service: Service, request: HttpRequest, model: str) -> HttpAnswer:
        """`POST /v2/repository/models/{model}/load`."""
        asked = await self._body(request, _RepositoryBody)
        await v2_models.load(service, model, asked.parameters, by=models.sender(request, tokens=self._tokens))
        return _json({"name": model, "load": True})

    async def unload(self, service: Service, request: HttpRequest, model: str) -> HttpAnswer:
        """`POST /v2/repository/models/{model}/unload`. There are no dependents, so `unload_dependents` says nothing."""
        await self._body(request, _RepositoryBody)
        await v2_models.unload(service, model, by=models.sender(request, tokens=self._tokens))
        return _json({"name": model, "unload": True})

    async def _body(self, request: HttpRequest, kind: Any) -> Any:
        async with self._unpacking.unpacked(request) as body:
            if len(body) > _LARGEST_COMMAND:
                raise RequestError(f"the body has more than {_LARGEST_COMMAND} bytes", code="body_too_large")
            try:
                return msgspec.json.decode(body or b"{}", type=kind)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise RequestError(f"the body is not understood: {error}", code="invalid_json") from None

    # What can only be looked at

    async def trace(self, service: Service, request: HttpRequest, model: str | None = None) -> HttpAnswer:
        """`GET /v2/trace/setting`."""
        if model is not None:
            service.table.named(model)
        traced = service.tracer is not None
        return _json(
            {
                "trace_level": ["TIMESTAMPS" if traced else "OFF"],
                "trace_rate": "1",
                "trace_count": "-1",
                "log_frequency": "0",
                "trace_file": "",
                "trace_mode": "opentelemetry",
            }
        )

    async def logging(self, service: Service, request: HttpRequest) -> HttpAnswer:
        """`GET /v2/logging`."""
        return _json(
            {
                "log_file": "",
                "log_info": True,
                "log_warning": True,
                "log_error": True,
                "log_verbose_level": 0,
                "log_format": "default",
            }
        )


_JSON_LENGTH = v2_rest.JSON_LENGTH.lower()
_LARGEST_COMMAND = 64 * 1024
_REGIONS_SHOWN = ("/status", "/region/{region}/status")
_REGIONS_CHANGED = ("/region/{region}/register", "/unregister", "/region/{region}/unregister")


def _json(value: Any, status: int = 200) -> HttpAnswer:
    return HttpAnswer(status, msgspec.json.encode(value))


def _refusing(sentence: str, code: str) -> _Async:
    async def refuse(service: Service, request: HttpRequest, **_: str) -> HttpAnswer:
        raise RequestError(sentence, code=code)  # type: ignore[arg-type]  # of the closed set

    return in_its_form(refuse)


def routes(
    unpacking: UnpackingBudget,
    may_see_reasons: Callable[[Mapping[str, str]], bool],
    *,
    ours: bool,
    guarded: bool,
    tokens: bool,
) -> tuple[Route, ...]:
    """The routes; the arguments are those of `flambeau.protocols.models.routes`."""
    functions = _V2Routes(unpacking, may_see_reasons, tokens=tokens)
    refused = models.why_nothing_changes(ours=ours, guarded=guarded)

    def get(path: str, function: _Async, **more: Any) -> Route:
        return Route("GET", path, "infer", in_its_form(function), **more)

    def command(path: str, function: _Async) -> Route:
        answer = in_its_form(function) if refused is None else _refusing(refused, "forbidden")
        return Route("POST", path, "admin", answer)

    def both(path: str, what: str, function: _Async) -> tuple[Route, Route]:
        change = _refusing(_NO_SETTINGS.format(what), "not_implemented")
        return get(path, function), Route("POST", path, "admin", change)

    infer = dispatch.prediction("/v2/models/{model}/infer", functions.infer, v2_rest.refusal, protocol="v2")
    one, versioned = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    health = "/v2/health"
    no_memory = _refusing(_NO_SHARED_MEMORY, "not_implemented")
    memory = [f"/v2/{kind}sharedmemory" for kind in ("system", "cuda")]
    shared = [
        *(Route("GET", f"{each}{rest}", "infer", no_memory) for each in memory for rest in _REGIONS_SHOWN),
        *(Route("POST", f"{each}{rest}", "infer", no_memory) for each in memory for rest in _REGIONS_CHANGED),
    ]
    return (
        Route("GET", f"{health}/live", "public", functions.live, describe=described.live, vital=True, quiet=True),
        Route("GET", f"{health}/ready", "public", functions.ready, describe=described.ready, vital=True, quiet=True),
        get("/v2", functions.server, slash=True, describe=described.server),
        get("/v2/models", functions.listed, describe=described.listed),
        get("/v2/models/stats", functions.statistics),
        *(
            route
            for path in (one, versioned)
            for route in (
                Route("POST", f"{path}/infer", "infer", infer, quiet=True, by_model=True, describe=described.infer),
                get(f"{path}/ready", functions.model_ready, describe=described.model_ready),
                get(f"{path}/config", functions.config),
                get(f"{path}/stats", functions.statistics),
                get(path, functions.metadata, describe=described.metadata),
            )
        ),
        Route("POST", "/v2/repository/index", "infer", in_its_form(functions.index)),
        command("/v2/repository/models/{model}/load", functions.load),
        command("/v2/repository/models/{model}/unload", functions.unload),
        *both("/v2/trace/setting", "tracing", functions.trace),
        *both(f"{one}/trace/setting", "tracing", functions.trace),
        *both("/v2/logging", "the log", functions.logging),
        *shared,
    )
