"""TorchServe's management API, in the place of our routes at /models: archives of one folder, the model store.

    POST   /models?url=cats.mar&initial_workers=1       registers an archive; also as a JSON body of these members
    GET    /models   /models/{model}[/{version} | /all] those that are registered; one of them, with its workers
    PUT    /models/{model}[/{version}]?min_worker=2     loads it, or changes how many workers it has; 0 unloads it
    PUT    /models/{model}/{version}/set-default
    DELETE /models/{model}[/{version}]

The first version of a model answers by default until another is set. Nothing outside of the model store is registered,
and nothing is fetched.
"""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from flambeau.checkpoints import model_archive
from flambeau.checkpoints.repository import NAME, newest_first
from flambeau.errors import RequestError, SetupError
from flambeau.protocols.messages import JSON, HttpAnswer, HttpRequest
from flambeau.protocols.models import sender, why_nothing_changes
from flambeau.protocols.routes import Route
from flambeau.protocols.torchserve import pretty, refuse
from flambeau.serving.changes import Change
from flambeau.serving.service import Service
from flambeau.serving.versions import ServedModel, Version
from flambeau.settings.source import SourceOptions
from flambeau.sources.declarations import Declaration, DeclaredModel, declare_archive
from flambeau.types import ModelState

_MOST_LISTED = 100
_LONGEST_SHOWN = 256
_LOOK_AGAIN = 0.05  # seconds
_STATUS = {"idle": "READY", "busy": "READY", "starting": "UNLOADING"}  # TorchServe's word for a worker that is loading


class ManagedArchives:
    """The functions of the routes. They raise `RequestError`."""

    def __init__(self, store: Path, *, tokens: bool) -> None:
        self._store = store
        self._tokens = tokens
        self._background: set[asyncio.Task[Any]] = set()

    async def register(self, service: Service, request: HttpRequest) -> HttpAnswer:
        """`POST /models`."""
        asked = _parameters(request)
        path = self._path(asked.get("url"))
        settings = {ours: number for theirs, ours in _LIMITS.items() if (number := _number(asked, theirs)) is not None}
        workers = _number(asked, "initial_workers", least=0) or 0
        if workers:
            Change(limits={"replicas": workers}).check(ServedModel("", {}), service.settings)
            settings["replicas"] = workers
        options = SourceOptions(source=str(path), allow_code=service.settings.allow_code,
                                allow_installs=service.settings.allow_installs)  # fmt: skip
        name = asked.get("model_name")
        declared = await asyncio.to_thread(_declared, options, name, asked.get("handler"))
        [declaration] = declared.versions
        declaration = Declaration(declared.name, declaration.version, options, settings)
        self._declare(service, declaration)
        if not workers:
            return _said(f'Model "{declared.name}" Version: {declaration.version} registered with 0 initial workers. '
                         "Use scale workers API to add workers for the model.")  # fmt: skip
        loading = self._load(service, declaration, workers, by=sender(request, tokens=self._tokens))
        if asked.get("synchronous", "true").lower() == "false":
            _ = self._keep(loading)
            return _said("Processing worker updates...", 202)
        await asyncio.shield(self._keep(loading))
        return _said(
            f'Model "{declared.name}" Version: {declaration.version} registered with {workers} initial workers'
        )

    def _path(self, url: str | None) -> Path:
        """The archive that a parameter `url` names. Raises `RequestError`."""
        if not url:
            raise RequestError("Parameter url is required.", code="bad_request")
        if "://" in url and not url.startswith("file://"):
            raise RequestError(f"nothing is fetched here: put {url} into the model store, and name its file",
                               code="forbidden")  # fmt: skip
        path, store = self._store / url.removeprefix("file://"), self._store.resolve()
        missing = RequestError(f"Model not found at: {url[:_LONGEST_SHOWN]}", code="not_found")
        try:
            found = path.resolve()
            exists = path.exists()
        except (OSError, ValueError):  # no name that a file could have
            raise missing from None
        if ".." in Path(url).parts or not found.is_relative_to(store):
            raise RequestError(f"Relative path is not allowed in url: {url[:_LONGEST_SHOWN]}", code="not_found")
        if not exists or found == store:
            raise missing
        return path

    def _declare(self, service: Service, declaration: Declaration) -> None:
        name, version = declaration.name, declaration.version
        served = next((each for each in service.table.served() if each.name == name), None)
        if served is None:
            service.table.declare(DeclaredModel(name, (declaration,))).pinned = version
            return
        if version in served.versions:
            raise RequestError(f"Model version {version} is already registered for model {name}", code="version_exists")
        served.versions[version] = Version(declaration)
        served.versions = {number: served.versions[number] for number in newest_first(served.versions)}

    async def _load(self, service: Service, declaration: Declaration, workers: int, *, by: str) -> None:
        """Load a version that was registered just now. One that cannot be loaded is not registered."""
        try:
            await service.loader.load(declaration.name, declaration.version, by=by)
            await _scale_up(service.table.version(declaration.name, declaration.version), workers)
        except BaseException:
            _forget(service, service.table.named(declaration.name), declaration.version)
            raise

    def _keep(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # the log has it

    async def listed(self, service: Service, request: HttpRequest) -> HttpAnswer:
        """`GET /models`: `next_page_token` is the place of the next page's first."""
        asked = _parameters(request)
        limit = _number(asked, "limit") or _MOST_LISTED
        limit = min(limit, _MOST_LISTED)
        start = _number(asked, "next_page_token", least=0) or 0
        served = sorted(service.table.served(), key=lambda each: each.name)
        page = [{"modelName": each.name, "modelUrl": _url(each)} for each in served[start : start + limit]]
        more = {"nextPageToken": str(start + limit)} if len(served) > start + limit else {}
        return HttpAnswer(200, pretty({**more, "models": page}))

    async def shown(self, service: Service, request: HttpRequest, model: str, version: str = "") -> HttpAnswer:
        """`GET /models/{model}`, or one version, or `all`."""
        served = service.table.named(model)
        if version == "all":
            entries = list(served.versions.values())
        else:
            entries = [service.table.version(model, version or None)]
        return HttpAnswer(200, pretty([_described(each, service) for each in entries]))

    async def scale(self, service: Service, request: HttpRequest, model: str, version: str = "") -> HttpAnswer:
        """`PUT /models/{model}`."""
        asked = _parameters(request)
        entry = service.table.version(model, version or asked.get("model_version"))
        least = _number(asked, "min_worker", least=0)
        least = 1 if least is None else least
        most = _number(asked, "max_worker", least=0)
        if most is not None and most < least:
            raise RequestError("max_worker cannot be less than min_worker.", code="bad_request")
        if least:  # at once: whoever does not wait for the end would not learn of it
            Change(limits={"replicas": most or least}).check(ServedModel("", {}), service.settings)
        by = sender(request, tokens=self._tokens)
        work = self._keep(self._scale(service, entry, least, most or least, by=by))
        if asked.get("synchronous", "false").lower() != "true":
            return _said("Processing worker updates...", 202)
        await asyncio.shield(work)
        of = f", version: {version}" if version else ""
        return _said(f"Workers scaled to {least} for model: {model}{of}")

    async def _scale(self, service: Service, entry: Version, least: int, most: int, *, by: str) -> None:
        name, version = entry.declaration.name, entry.declaration.version
        if not least:
            await service.loader.unload(name, version, by=by)
            return
        await service.loader.set(name, Change(limits={"replicas": most}), by=by)
        await service.loader.load(name, version, by=by)
        await _scale_up(entry, least)

    async def set_default(self, service: Service, request: HttpRequest, model: str, version: str) -> HttpAnswer:
        """`PUT /models/{model}/{version}/set-default`."""
        entry = service.table.version(model, version)
        if entry.usable():
            change = Change(named=frozenset({"default"}), default=version)
            await service.loader.set(model, change, by=sender(request, tokens=self._tokens))
        else:
            service.table.named(model).pinned = version  # it answers once it has workers, and nothing else does before
            service.table.named(model).choose()
        return _said(f'Default version successfully updated for model "{model}" to "{version}"')

    async def unregister(self, service: Service, request: HttpRequest, model: str, version: str = "") -> HttpAnswer:
        """`DELETE /models/{model}`: answers when its last request is answered."""
        served = service.table.named(model)
        entry = service.table.version(model, version or None)
        number = entry.declaration.version
        if len(served.versions) > 1 and number == (served.pinned or served.current):
            raise RequestError(f"Cannot remove default version for model {model}", code="forbidden")
        await service.loader.unload(model, number, by=sender(request, tokens=self._tokens))
        _forget(service, served, number)
        return _said(f'Model "{model}" unregistered')


async def _scale_up(entry: Version, least: int) -> None:
    """Return when so many workers answer. Raises `RequestError` if one cannot start, or is not wanted any more."""
    model = entry.model
    if model is None or not model.elastic:
        return
    if model.replicas < least:
        model.scale(least)
    given_up = model.demand().given_up
    while (demand := model.demand()).warm < least:
        if demand.given_up > given_up or demand.replicas < least or model.state is not ModelState.READY:
            raise RequestError(
                f"model '{model.name}' has {demand.warm} workers and not {least}: why stands in the log",
                code="load_failed",
            )
        await asyncio.sleep(_LOOK_AGAIN)  # a runner tells nobody but its model that a worker is warm


def _declared(options: SourceOptions, name: str | None, handler: str | None) -> DeclaredModel:
    """What an archive is called, or any other source of the model store. `handler` is the one that it must have."""
    if name is not None and not NAME.fullmatch(name):
        raise RequestError("the model's name has other characters than letters, digits, '.', '_' and '-'",
                           code="bad_request")  # fmt: skip
    try:
        found = declare_archive(options, name=name)
        if handler:
            _refuse_another(handler, model_archive.read(Path(str(options.source))))
    except SetupError as error:
        raise RequestError(str(error), code="load_failed") from None
    if found is not None:
        return found
    name = name or Path(str(options.source)).name.partition(".")[0]
    if not NAME.fullmatch(name):
        raise RequestError("Model name is not defined.", code="bad_request")
    return DeclaredModel(name, (Declaration(name, "1.0", options),))


def _refuse_another(handler: str, archive: model_archive.ArchivedModel | None) -> None:
    """Raise `RequestError` for a handler that is not the archive's: it would not be the one that answers."""
    own = "" if archive is None else archive.handler
    if handler != own:
        raise RequestError(
            f"handler={handler[:_LONGEST_SHOWN]} is not the archive's own, {own or 'which has none'}: archive it again "
            "with that handler, or leave the parameter out",
            code="bad_request",
        )


_LIMITS = {"batch_size": "max_batch_size", "max_batch_delay": "max_queue_delay_ms",
           "response_timeout": "compute_timeout", "startup_timeout": "startup_timeout"}  # fmt: skip


def _parameters(request: HttpRequest) -> dict[str, str]:
    """The parameters of a request: those of its query, and of a JSON body. Raises `RequestError`."""
    found: dict[str, str] = {}
    if request.media_type() == JSON and request.body:
        try:
            body = msgspec.json.decode(request.body, type=dict[str, str | int | float | bool | None])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RequestError(f"the body is not understood: {error}", code="bad_request") from None
        found = {name: _text(value) for name, value in body.items() if value is not None}
    for name in _NAMES:
        if values := request.parameters(name):
            found[name] = values[-1]
    return found


_NAMES = (
    "url", "model_name", "handler", "runtime", "initial_workers", "synchronous", "limit", "next_page_token",
    "min_worker", "max_worker", "model_version", *_LIMITS,
)  # fmt: skip


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(asked: dict[str, str], name: str, *, least: int = 1) -> int | None:
    """A whole number; anything else counts as not given, as TorchServe has it."""
    text = asked.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least else None


def _forget(service: Service, served: ServedModel, version: str) -> None:
    served.versions.pop(version, None)
    served.forget(version)
    if served.current == version:
        served.current = None
    if not served.versions:
        service.table.forget(served.name)


def _url(served: ServedModel) -> str:
    entry = served.find(None)
    return Path(str(entry.declaration.source.source)).name if entry is not None else ""


def _described(entry: Version, service: Service) -> dict[str, Any]:
    """A version, in the members that TorchServe's clients read."""
    declaration, model = entry.declaration, entry.model
    settings = service.settings if model is None else model.settings
    workers = [] if model is None else model.metrics.workers()
    since = entry.loaded_at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z" if entry.loaded_at else ""
    return {
        "modelName": declaration.name,
        "modelVersion": declaration.version,
        "modelUrl": Path(str(declaration.source.source)).name,
        "runtime": "python",
        "minWorkers": 0 if model is None else model.replicas,
        "maxWorkers": 0 if model is None else model.most_replicas,
        "batchSize": 1 if model is None else model.batch_size,
        "maxBatchDelay": int(settings.max_queue_delay_ms),
        "responseTimeout": int(settings.compute_timeout),
        "startupTimeout": int(settings.startup_timeout),
        "loadedAtStartup": service.table.named(declaration.name).repository is not None,
        "workers": [
            {"id": str(9000 + index), "startTime": since,
             "status": _STATUS[each.state], "memoryUsage": each.memory or 0, "gpu": False, "gpuUsage": "N/A"}
            for index, each in enumerate(workers)
        ],
        "jobQueueStatus": {
            "remainingCapacity": settings.max_queue_size - (0 if model is None else model.queued),
            "pendingRequests": 0 if model is None else model.queued,
        },
    }  # fmt: skip


def _said(text: str, status: int = 200) -> HttpAnswer:
    return HttpAnswer(status, pretty({"status": text}))


def _in_their_words(function: Any) -> Any:
    """The function with its failures in the form of TorchServe's errors."""

    async def answer(service: Service, request: HttpRequest, **parameters: str) -> HttpAnswer:
        try:
            found: HttpAnswer = await function(service, request, **parameters)
        except RequestError as error:
            return refuse(error, request.identity)
        return found

    return answer


def routes(store: str, *, ours: bool, guarded: bool, tokens: bool) -> tuple[Route, ...]:
    """The routes for a model store. Where nothing may be changed (`protocols.models`), they refuse and say why."""
    functions = ManagedArchives(Path(store), tokens=tokens)
    refused = why_nothing_changes(ours=ours, guarded=guarded)

    async def refuse_change(service: Service, request: HttpRequest, **_: str) -> HttpAnswer:
        raise RequestError(str(refused), code="forbidden")

    def changing(function: Any) -> Any:
        return _in_their_words(refuse_change if refused is not None else function)

    one, version = "/models/{model}", "/models/{model}/{version}"
    return (
        Route("GET", "/models", "infer", _in_their_words(functions.listed)),
        Route("GET", one, "infer", _in_their_words(functions.shown)),
        Route("GET", version, "infer", _in_their_words(functions.shown)),
        Route("POST", "/models", "admin", changing(functions.register)),
        Route("PUT", f"{version}/set-default", "admin", changing(functions.set_default)),
        Route("PUT", one, "admin", changing(functions.scale)),
        Route("PUT", version, "admin", changing(functions.scale)),
        Route("DELETE", one, "admin", changing(functions.unregister)),
        Route("DELETE", version, "admin", changing(functions.unregister)),
    )
