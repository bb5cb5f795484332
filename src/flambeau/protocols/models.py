"""The routes about models: which there are, what each is, and for operators loading, unloading and switching versions.

    GET  /models                                    every model, its versions and their states
    GET  /models/{model}  /models/{model}/{version} one of them, in full
    POST /models/{model}/versions/{version}/load    …/unload
    PUT  /models/{model}                            {"default_version": "2", "aliases": {"stable": "1"}}

Every change is one line in the log: who, what, from which version to which, and how long it took.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec

from flambeau.errors import RequestError
from flambeau.protocols import openapi
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.protocols.model_views import ModelList, detail_of, shadow_of, summary_of, version_detail_of
from flambeau.protocols.routes import Route
from flambeau.serving.service import Service
from flambeau.serving.versions import Traffic
from flambeau.telemetry import logs

_REFRESH_SECONDS = 0.2  # between two readings of the repository for those who only look
_BEYOND_LOOPBACK = "models are managed with an admin token only, for others reach this server: give it --tokens-file"
_IN_THREADS_OF_OTHERS = "models are managed where flambeau serve runs them: this server may have other processes beside"


class _Change(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `PUT /models/{model}`. What is left out stays as it is; `null` takes the newest version again."""

    default_version: str | msgspec.UnsetType | None = msgspec.UNSET
    aliases: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    traffic: dict[str, float] | msgspec.UnsetType | None = msgspec.UNSET
    sticky_header: str | None = None
    shadow: str | msgspec.UnsetType | None = msgspec.UNSET
    max_batch_size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_queue_size: Annotated[int, msgspec.Meta(ge=1)] | None = None


async def listed(service: Service, request: HttpRequest) -> HttpAnswer:
    """`GET /models`."""
    table = service.table
    await service.loader.refresh(at_most=_REFRESH_SECONDS)
    return _json(ModelList(table.default, [summary_of(each) for each in table.served()]))


def shown(service: Service, request: HttpRequest, model: str) -> HttpAnswer:
    """`GET /models/{model}`."""
    return _json(detail_of(service.table.named(model)))


def version_shown(service: Service, request: HttpRequest, model: str, version: str) -> HttpAnswer:
    """`GET /models/{model}/{version}`."""
    return _json(version_detail_of(service.table.version(model, version)))


async def shadow_shown(service: Service, request: HttpRequest, model: str) -> HttpAnswer:
    """`GET /models/{model}/shadow`."""
    shadow = service.table.named(model).shadow
    if shadow is None:
        raise RequestError("the model has no shadow", code="not_found", hint='set one with PUT: {"shadow": "VERSION"}')
    return _json(shadow_of(shadow))


async def load(service: Service, request: HttpRequest, model: str, version: str) -> HttpAnswer:
    """`POST /models/{model}/versions/{version}/load`: answers when it is loaded."""
    return await _changed(service, request, model, "load", version, lambda: service.loader.load(model, version))


async def unload(service: Service, request: HttpRequest, model: str, version: str) -> HttpAnswer:
    """`POST /models/{model}/versions/{version}/unload`: answers when its last request is answered."""
    return await _changed(service, request, model, "unload", version, lambda: service.loader.unload(model, version))


async def change(service: Service, request: HttpRequest, model: str) -> HttpAnswer:
    """`PUT /models/{model}`: default version, aliases, traffic, shadow and limits. What is left out stays."""
    try:
        wanted = msgspec.json.decode(request.body, type=_Change)
    except msgspec.ValidationError as error:
        raise RequestError(f"the change is not understood: {error}", code="bad_request", hint=_CHANGE_HINT) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not JSON: {error}", code="invalid_json", hint=_CHANGE_HINT) from None

    async def whole() -> None:
        if not isinstance(wanted.aliases, msgspec.UnsetType):
            await service.loader.set_aliases(model, wanted.aliases)
        if not isinstance(wanted.default_version, msgspec.UnsetType):
            await service.loader.set_default(model, wanted.default_version)
        if not isinstance(wanted.traffic, msgspec.UnsetType):
            sticky = wanted.sticky_header.lower() if wanted.sticky_header else None
            await service.loader.set_traffic(model, Traffic(wanted.traffic, sticky) if wanted.traffic else None)
        if not isinstance(wanted.shadow, msgspec.UnsetType):
            await service.loader.set_shadow(model, wanted.shadow)
        limits = {"max_batch_size": wanted.max_batch_size, "max_queue_size": wanted.max_queue_size}
        service.loader.set_limits(model, **{name: value for name, value in limits.items() if value is not None})

    return await _changed(service, request, model, "set", bytes(request.body).decode(), whole)


_CHANGE_HINT = 'send JSON like {"default_version": "2", "aliases": {"stable": "1"}}'


async def _changed(
    service: Service, request: HttpRequest, model: str, what: str, to: str, carry_out: Callable[[], Awaitable[object]]
) -> HttpAnswer:
    """Carry out a change and answer with the model as it is then. The log gets a line, however it ended."""
    await service.loader.refresh()
    served = service.table.named(model)
    before, began, outcome = served.current, time.monotonic(), "failed"
    try:
        await carry_out()
        outcome = "done"
        return _json(summary_of(served))
    except RequestError as error:
        outcome = error.code
        raise
    finally:
        logs.event(
            f"model {what}", id=request.identity, by=_who(request), model=model, asked=to, before=before,
            default=served.current, outcome=outcome, seconds=f"{time.monotonic() - began:.2f}",
        )  # fmt: skip


def _who(request: HttpRequest) -> str:
    """A token by the start of its SHA-256, which is what a tokens file may hold of it; else the client's address."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return f"token sha256:{hashlib.sha256(token.strip().encode()).hexdigest()[:8]}"
    return request.client or "a client of this machine"


def _json(value: Any) -> HttpAnswer:
    return HttpAnswer(200, msgspec.json.encode(value))


def _refusing(sentence: str) -> Callable[..., HttpAnswer]:
    def refuse(service: Service, request: HttpRequest, **_: str) -> HttpAnswer:
        raise RequestError(sentence, code="forbidden")

    return refuse


def routes(*, ours: bool, guarded: bool) -> tuple[Route, ...]:
    """The routes. `ours`: one process serves alone. `guarded`: nobody else reaches it, or it asks for tokens.

    Where one of them is not so, those that change something refuse, and say why.
    """
    reads = (
        Route("GET", "/models", "infer", listed, describe=openapi.models),
        Route("GET", "/models/{model}", "infer", shown, describe=openapi.model),
        Route("GET", "/models/{model}/shadow", "infer", shadow_shown, describe=openapi.model_shadow),
        Route("GET", "/models/{model}/{version}", "infer", version_shown, describe=openapi.model_version),
    )
    version = "/models/{model}/versions/{version}"
    if not (ours and guarded):
        refuse = _refusing(_BEYOND_LOOPBACK if ours else _IN_THREADS_OF_OTHERS)
        return (
            *reads,
            Route("POST", f"{version}/load", "admin", refuse),
            Route("POST", f"{version}/unload", "admin", refuse),
            Route("PUT", "/models/{model}", "admin", refuse),
        )
    return (
        *reads,
        Route("POST", f"{version}/load", "admin", load, describe=openapi.model_load, quiet=True),
        Route("POST", f"{version}/unload", "admin", unload, describe=openapi.model_unload, quiet=True),
        Route("PUT", "/models/{model}", "admin", change, describe=openapi.model_change, quiet=True),
    )
