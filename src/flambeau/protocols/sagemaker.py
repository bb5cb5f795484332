"""SageMaker's health check, and the routes of its multi-model endpoints, by which it loads and unloads models.

    GET    /ping                      200, without a body
    POST   /models                    {"model_name": "a1", "url": "/opt/ml/models/a1/model"}: 200; 409 if it is loaded;
                                      507 if there is no memory for it: SageMaker then unloads others, and asks again
    GET    /models, /models/{model}   {"modelName": "a1", "modelUrl": "/opt/ml/models/a1/model"}
    DELETE /models/{model}            200 when its last request is answered
    POST   /models/{model}/invoke     as /invocations

Contract: docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis.html. Nothing outside of the folder of models is
loaded, whoever asks.
"""

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from flambeau.checkpoints.repository import NAME
from flambeau.errors import ConfigError, RequestError
from flambeau.protocols import dispatch
from flambeau.protocols.errors import error_answer
from flambeau.protocols.invocations import Infer
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.protocols.routes import Route
from flambeau.serving.service import Service
from flambeau.serving.versions import unknown_model
from flambeau.settings.source import SourceOptions
from flambeau.sources import model_folder
from flambeau.sources.declarations import Declaration, DeclaredModel

_VERSION = "1"
_BY = "SageMaker"
_HINT = 'send {"model_name": "a1", "url": "/opt/ml/models/a1/model"}'
_MOST_LISTED = 100


async def ping(service: Service, request: HttpRequest) -> HttpAnswer:
    """`GET /ping`: 200 when the service can answer, else 503; no body."""
    return HttpAnswer(200 if service.ready() else 503, b"")


class _LoadBody(msgspec.Struct):
    model_name: str
    url: str


class _ModelsOfSageMaker:
    """The functions of the routes for models below one folder."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._urls: dict[str, str] = {}  # by name, those that are loaded or being loaded
        self._loading: set[asyncio.Task[None]] = set()

    async def load(self, service: Service, request: HttpRequest) -> HttpAnswer:
        """`POST /models`."""
        try:
            body = msgspec.json.decode(request.body, type=_LoadBody)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RequestError(f"the body is not understood: {error}", code="bad_request", hint=_HINT) from None
        name = body.model_name
        if not NAME.fullmatch(name):
            raise RequestError("the model's name has other characters than letters, digits, '.', '_' and '-'",
                               code="bad_request")  # fmt: skip
        if name in self._urls:
            raise RequestError(f"the model '{name}' is loaded already", code="version_exists")
        self._urls[name] = body.url
        loading = asyncio.get_running_loop().create_task(self._load(service, name, body.url))
        self._loading.add(loading)
        loading.add_done_callback(self._loading.discard)
        await asyncio.shield(loading)  # a caller who leaves does not undo it half-way
        return _json(self._shown(name))

    async def _load(self, service: Service, name: str, url: str) -> None:
        try:
            source = await asyncio.to_thread(self._source_at, url, service.settings.allow_code)
            options = SourceOptions(source=source, allow_code=service.settings.allow_code,
                                    allow_installs=service.settings.allow_installs)  # fmt: skip
            service.table.declare(DeclaredModel(name, (Declaration(name, _VERSION, options),)))
            await service.loader.load(name, _VERSION, by=_BY)
        except BaseException:
            del self._urls[name]
            service.table.forget(name)
            raise

    def _source_at(self, url: str, allow_code: bool) -> str:
        """The SOURCE at a path of the container, which must lie below the folder of models. Raises `RequestError`."""
        path = Path(url.removeprefix("file://"))
        if not path.resolve().is_relative_to(self._folder.resolve()):
            raise RequestError(f"{url} does not lie below {self._folder}", code="forbidden")
        try:
            return model_folder.find(str(path), allow_code=allow_code).source
        except ConfigError as error:
            raise RequestError(str(error), code="load_failed") from None

    async def listed(self, service: Service, request: HttpRequest) -> HttpAnswer:
        """`GET /models`, by pages: `next_page_token` is the first name of the next one."""
        [limit] = request.parameters("limit")[:1] or [str(_MOST_LISTED)]
        [first] = request.parameters("next_page_token")[:1] or [""]
        if not (limit.isascii() and limit.isdigit() and int(limit) > 0):
            raise RequestError("limit must be a whole number from 1", code="bad_request")
        names = [name for name in sorted(self._urls) if name >= first]
        size = min(int(limit), _MOST_LISTED)
        page = {"models": [self._shown(name) for name in names[:size]]}
        more = {"nextPageToken": names[size]} if len(names) > size else {}
        return _json(page | more)

    async def shown(self, service: Service, request: HttpRequest, model: str) -> HttpAnswer:
        """`GET /models/{model}`."""
        self._known(model)
        return _json(self._shown(model))

    async def unload(self, service: Service, request: HttpRequest, model: str) -> HttpAnswer:
        """`DELETE /models/{model}`: answers when its last request is answered."""
        self._known(model)
        service.table.named(model)
        await service.loader.unload(model, _VERSION, by=_BY)
        service.table.forget(model)
        self._urls.pop(model, None)
        return HttpAnswer(200, b"")

    def _known(self, model: str) -> None:
        if model not in self._urls:
            raise unknown_model(model, self._urls)

    def _shown(self, model: str) -> dict[str, Any]:
        return {"modelName": model, "modelUrl": self._urls[model]}


def _json(value: Any) -> HttpAnswer:
    return HttpAnswer(200, msgspec.json.encode(value))


def model_routes(folder: str, infer: Infer) -> tuple[Route, ...]:
    """The routes for models below a folder. `infer` answers for one model."""
    functions = _ModelsOfSageMaker(folder)
    invoke = dispatch.prediction("/models/{model}/invoke", infer, error_answer, protocol="platform")
    return (
        Route("POST", "/models", "admin", functions.load),
        Route("GET", "/models", "infer", functions.listed),
        Route("GET", "/models/{model}", "infer", functions.shown),
        Route("DELETE", "/models/{model}", "admin", functions.unload),
        Route("POST", "/models/{model}/invoke", "infer", invoke, quiet=True),
    )
