"""The routes about models: which there are, what each is, and for operators loading, unloading and switching versions.

    GET  /models                                    every model, its versions and their states
    GET  /models/{model}  /models/{model}/{version} one of them, in full
    POST /models/{model}/versions/{version}/load    …/unload
    PUT  /models/{model}                            {"default_version": "2", "aliases": {"stable": "1"}}
    POST /models                                    {"model": "cats", "version": "3", "source": "__incoming/cats.pth"}

Every change is one line in the log: who, what, from which version to which, and how long it took.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from flambeau.errors import RequestError
from flambeau.protocols import openapi
from flambeau.protocols.messages import JSON, HttpAnswer, HttpRequest
from flambeau.protocols.model_views import ModelList, detail_of, shadow_of, summary_of, version_detail_of
from flambeau.protocols.routes import Route
from flambeau.serving import additions
from flambeau.serving.additions import Addition
from flambeau.serving.changes import Change
from flambeau.serving.service import Service
from flambeau.serving.versions import Traffic

T = TypeVar("T")

REFRESH_SECONDS = 0.2
"""Between two readings of the repository for those who only look."""

_BEYOND_LOOPBACK = "models are managed with an admin token only, for others reach this server: give it --tokens-file"
_IN_THREADS_OF_OTHERS = "models are managed where flambeau serve runs them: this server may have other processes beside"


class _ChangeBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `PUT /models/{model}`. What is left out stays as it is; `null` takes a choice back."""

    default_version: str | msgspec.UnsetType | None = msgspec.UNSET
    aliases: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    traffic: dict[str, float] | msgspec.UnsetType | None = msgspec.UNSET
    sticky_header: str | None = None
    shadow: str | msgspec.UnsetType | None = msgspec.UNSET
    max_batch_size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    max_queue_size: Annotated[int, msgspec.Meta(ge=1)] | None = None
    replicas: Annotated[int, msgspec.Meta(ge=1)] | None = None

    def change(self) -> Change:
        """The same for the loader. Raises `RequestError` for what says nothing."""
        given: dict[str, Any] = {"default": self.default_version, "aliases": self.aliases, "shadow": self.shadow}
        if not isinstance(self.traffic, msgspec.UnsetType):
            sticky = self.sticky_header.lower() if self.sticky_header else None
            given["traffic"] = Traffic(self.traffic, sticky) if self.traffic else None
        elif self.sticky_header is not None:
            raise RequestError("sticky_header says nothing without traffic", code="bad_request", hint=_CHANGE_HINT)
        given = {name: value for name, value in given.items() if value is not msgspec.UNSET}
        limits = {
            "max_batch_size": self.max_batch_size,
            "max_queue_size": self.max_queue_size,
            "replicas": self.replicas,
        }
        given["limits"] = {name: size for name, size in limits.items() if size is not None}
        return Change(named=frozenset(given) - {"limits"}, **given)


class _AdditionBody(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of `POST /models`. `source` is a path below the repository."""

    model: str
    version: str
    source: str
    load: bool = False


class _ModelRoutes:
    """The functions of the routes. `may_see_reasons`: whether who sends a request may read why a model failed."""

    def __init__(self, may_see_reasons: Callable[[Mapping[str, str]], bool], *, tokens: bool) -> None:
        self._may_see_reasons = may_see_reasons
        self._tokens = tokens

    async def listed(self, service: Service, request: HttpRequest) -> HttpAnswer:
        """`GET /models`."""
        await service.loader.refresh(at_most=REFRESH_SECONDS)
        reasons = self._may_see_reasons(request.headers)
        found = [summary_of(each, reasons=reasons) for each in service.table.served()]
        return _json(ModelList(service.table.default, found))

    def shown(self, service: Service, request: HttpRequest, model: str) -> HttpAnswer:
        """`GET /models/{model}`."""
        return _json(detail_of(service.table.named(model), reasons=self._may_see_reasons(request.headers)))

    def version_shown(self, service: Service, request: HttpRequest, model: str, version: str) -> HttpAnswer:
        """`GET /models/{model}/{version}`."""
        entry = service.table.version(model, version)
        return _json(version_detail_of(entry, reasons=self._may_see_reasons(request.headers)))

    def shadow_shown(self, service: Service, request: HttpRequest, model: str) -> HttpAnswer:
        """`GET /models/{model}/shadow`."""
        shadow = service.table.named(model).shadow
        if shadow is None:
            hint = 'set one with PUT: {"shadow": "VERSION"}'
            raise RequestError("the model has no shadow", code="not_found", hint=hint)
        return _json(shadow_of(shadow))

    async def load(self, service: Service, request: HttpRequest, model: str, version: str) -> HttpAnswer:
        """`POST /models/{model}/versions/{version}/load`: answers when it is loaded."""
        await service.loader.refresh()
        await service.loader.load(model, version, by=sender(request, tokens=self._tokens))
        return _json(summary_of(service.table.named(model)))

    async def unload(self, service: Service, request: HttpRequest, model: str, version: str) -> HttpAnswer:
        """`POST /models/{model}/versions/{version}/unload`: answers when its last request is answered."""
        await service.loader.unload(model, version, by=sender(request, tokens=self._tokens))
        return _json(summary_of(service.table.named(model)))

    async def change(self, service: Service, request: HttpRequest, model: str) -> HttpAnswer:
        """`PUT /models/{model}`: default version, aliases, traffic, shadow and limits. What is left out stays."""
        wanted = _decoded(request.body, _ChangeBody, hint=_CHANGE_HINT)
        await service.loader.refresh()
        await service.loader.set(model, wanted.change(), by=sender(request, tokens=self._tokens))
        return _json(summary_of(service.table.named(model)))

    async def add(self, service: Service, request: HttpRequest) -> HttpAnswer:
        """`POST /models`: a version more, from a file of the repository (JSON) or from the body, a bundle (tar)."""
        if request.media_type() in _ARCHIVES:
            given = {name: (request.parameters(name) or [""])[-1] for name in ("model", "version", "load")}
            if (load := _SWITCHES.get(given["load"].lower())) is None:
                raise RequestError(f"load={given['load']} is neither true nor false", code="bad_request")
            addition = Addition(given["model"], given["version"], archive=request.body, load=load)
        elif request.media_type() == JSON:
            body = _decoded(request.body, _AdditionBody, hint=_ADDITION_HINT)
            addition = Addition(body.model, body.version, source=body.source, load=body.load)
        else:
            raise RequestError(
                f"the content type {request.media_type() or '(none)'} is not understood here",
                code="unsupported_media_type",
                hint=_ADDITION_HINT,
            )
        await additions.add(service, addition, by=sender(request, tokens=self._tokens))
        return _json(summary_of(service.table.named(addition.model)), status=201)


def sender(request: HttpRequest, *, tokens: bool) -> str:
    """Who sends a request, for the log: a token by the start of its SHA-256, as a tokens file may hold it; without
    tokens the client's address."""
    _, _, token = request.headers.get("authorization", "").partition(" ")
    if tokens and token:
        return f"token sha256:{hashlib.sha256(token.strip().encode()).hexdigest()[:8]}"
    return request.client or "a client of this machine"


def why_nothing_changes(*, ours: bool, guarded: bool) -> str | None:
    """Why the routes that change something refuse here; `None` where they do not. Arguments as for `routes`."""
    if ours and guarded:
        return None
    return _BEYOND_LOOPBACK if ours else _IN_THREADS_OF_OTHERS


_ARCHIVES = ("application/x-tar", "application/gzip", "application/x-gzip")
_SWITCHES = {"": False, "false": False, "0": False, "true": True, "1": True}
_ADDITION_HINT = (
    'send JSON like {"model": "cats", "version": "3", "source": "__incoming/cats.pth"}, or a bundle, as '
    "application/x-tar, to /models?model=cats&version=3"
)
_CHANGE_HINT = 'send JSON like {"default_version": "2", "aliases": {"stable": "1"}}'


def _decoded(body: bytes | memoryview, kind: type[T], *, hint: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise RequestError(f"the body is not understood: {error}", code="bad_request", hint=hint) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not JSON: {error}", code="invalid_json", hint=hint) from None


def _json(value: Any, *, status: int = 200) -> HttpAnswer:
    return HttpAnswer(status, msgspec.json.encode(value))


def _refusing(sentence: str) -> Callable[..., HttpAnswer]:
    def refuse(service: Service, request: HttpRequest, **_: str) -> HttpAnswer:
        raise RequestError(sentence, code="forbidden")

    return refuse


def routes(
    may_see_reasons: Callable[[Mapping[str, str]], bool], *, ours: bool, guarded: bool, tokens: bool
) -> tuple[Route, ...]:
    """The routes. `ours`: one process serves alone. `guarded`: nobody else reaches it, or it asks for `tokens`.

    Where it is not ours, or not guarded, those that change something refuse and say why.
    """
    functions = _ModelRoutes(may_see_reasons, tokens=tokens)
    reads = (
        Route("GET", "/models", "infer", functions.listed, describe=openapi.models),
        Route("GET", "/models/{model}", "infer", functions.shown, describe=openapi.model),
        Route("GET", "/models/{model}/shadow", "infer", functions.shadow_shown, describe=openapi.model_shadow),
        Route("GET", "/models/{model}/{version}", "infer", functions.version_shown, describe=openapi.model_version),
    )
    version = "/models/{model}/versions/{version}"
    refused = why_nothing_changes(ours=ours, guarded=guarded)
    if refused is not None:
        refuse = _refusing(refused)
        return (
            *reads,
            Route("POST", f"{version}/load", "admin", refuse),
            Route("POST", f"{version}/unload", "admin", refuse),
            Route("PUT", "/models/{model}", "admin", refuse),
            Route("POST", "/models", "admin", refuse),
        )
    return (
        *reads,
        Route("POST", f"{version}/load", "admin", functions.load, describe=openapi.model_load),
        Route("POST", f"{version}/unload", "admin", functions.unload, describe=openapi.model_unload),
        Route("PUT", "/models/{model}", "admin", functions.change, describe=openapi.model_change),
        Route("POST", "/models", "admin", functions.add, describe=openapi.model_add, upload=True),
    )
