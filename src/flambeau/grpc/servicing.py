"""The calls of the protocol that are no predictions: health, metadata, statistics, the repository, settings.

What they say comes from `flambeau.protocols.v2_models`, as over REST; here it becomes messages.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from google.protobuf import json_format

from flambeau.errors import RequestError
from flambeau.grpc.calls import Calls
from flambeau.grpc.descriptors import message
from flambeau.grpc.inference_proto import INFERENCE_CALLS
from flambeau.grpc.methods import GrpcCall, Method, Unary
from flambeau.protocols import v2_models
from flambeau.protocols.models import REFRESH_SECONDS
from flambeau.protocols.routes import RequiredScope
from flambeau.protocols.v2_routes import model_is_ready

_SHARED_MEMORY = "shared memory is not supported: send tensors in the request"
_FIXED = "is set when the server starts and cannot be changed here"


def _made(name: str, **values: Any) -> Any:
    return message(name)(**values)


def _filled(name: str, values: Any) -> Any:
    """The message with those values, a dictionary in the form of its JSON. What it has no field for is left out."""
    return json_format.ParseDict(values, message(name)(), ignore_unknown_fields=True)


class Servicing:
    """Answers about the server and its models."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._service = calls.service
        self._admission = calls.admission

    def methods(self) -> list[Method]:
        """The methods."""
        answers: dict[str, tuple[RequiredScope, Callable[[GrpcCall, Any], Any], bool]] = {
            "ServerLive": ("public", lambda _, __: _made("ServerLiveResponse", live=True), True),
            "ServerReady": ("public", self._server_ready, True),
            "ModelReady": ("infer", self._model_ready, True),
            "ServerMetadata": ("infer", self._server_metadata, False),
            "ModelMetadata": ("infer", self._model_metadata, False),
            "ModelConfig": ("infer", self._model_config, False),
            "ModelStatistics": ("infer", self._statistics, False),
            "RepositoryIndex": ("infer", self._index, False),
            "RepositoryModelLoad": ("admin", self._load, False),
            "RepositoryModelUnload": ("admin", self._unload, False),
            "TraceSetting": ("infer", self._trace, False),
            "LogSettings": ("infer", self._log, False),
        }
        for name in INFERENCE_CALLS:
            if "SharedMemory" in name:
                answers[name] = ("infer", self._no_shared_memory, False)
        return [
            Unary(name, scope, message(f"{name}Request"), _coroutine(answer), quiet=quiet)
            for name, (scope, answer, quiet) in answers.items()
        ]

    def _server_ready(self, _: GrpcCall, __: Any) -> Any:
        return _made("ServerReadyResponse", ready=self._service.ready())

    def _model_ready(self, _: GrpcCall, asked: Any) -> Any:
        ready = model_is_ready(self._service, _name(asked.name), asked.version or None)
        return _made("ModelReadyResponse", ready=ready)

    def _server_metadata(self, _: GrpcCall, __: Any) -> Any:
        return _filled("ServerMetadataResponse", msgspec.to_builtins(v2_models.server_metadata()))

    async def _model_metadata(self, call: GrpcCall, asked: Any) -> Any:
        """On demand the model is loaded first, because its tensors are not known before."""
        async with self._service.using(_name(asked.name), asked.version or None, call.key) as model:
            return _filled("ModelMetadataResponse", msgspec.to_builtins(v2_models.metadata(self._service, model)))

    async def _model_config(self, call: GrpcCall, asked: Any) -> Any:
        async with self._service.using(_name(asked.name), asked.version or None, call.key) as model:
            return _filled("ModelConfigResponse", {"config": v2_models.config(self._service, model)})

    def _statistics(self, _: GrpcCall, asked: Any) -> Any:
        if asked.version:
            models = [self._service.get(_name(asked.name), asked.version)]
        elif asked.name:
            self._service.table.named(asked.name)  # raises for a name that is not there
            models = [each for each in self._service.models() if each.name == asked.name]
        else:
            models = self._service.models()
        return _filled("ModelStatisticsResponse", v2_models.statistics(self._service, models))

    async def _index(self, call: GrpcCall, asked: Any) -> Any:
        _one_repository(asked)
        await self._service.loader.refresh(at_most=REFRESH_SECONDS)
        reasons = self._admission.is_admin(call.metadata)
        found = v2_models.index(self._service, ready=asked.ready, reasons=reasons)
        return _filled("RepositoryIndexResponse", {"models": msgspec.to_builtins(found)})

    async def _load(self, call: GrpcCall, asked: Any) -> Any:
        self._refuse_managing(asked)
        parameters = {name: getattr(each, each.WhichOneof("parameter_choice") or "string_param")
                      for name, each in asked.parameters.items()}  # fmt: skip
        await v2_models.load(self._service, asked.model_name, parameters, by=self._who(call))
        return _made("RepositoryModelLoadResponse")

    async def _unload(self, call: GrpcCall, asked: Any) -> Any:
        self._refuse_managing(asked)
        await v2_models.unload(self._service, asked.model_name, by=self._who(call))
        return _made("RepositoryModelUnloadResponse")

    def _refuse_managing(self, asked: Any) -> None:
        if self._admission.managing is not None:
            raise RequestError(self._admission.managing, code="forbidden")
        _one_repository(asked)
        _name(asked.model_name)

    def _who(self, call: GrpcCall) -> str:
        return self._admission.name(call.metadata, call.client)

    def _trace(self, _: GrpcCall, asked: Any) -> Any:
        """No request is traced by level or rate here: every one has a span, or none, as `--otel-endpoint` says."""
        if asked.settings:
            raise RequestError(f"tracing (--otel-endpoint) {_FIXED}", code="not_implemented")
        traced = "TIMESTAMPS" if self._service.tracer is not None else "OFF"
        return _filled("TraceSettingResponse", {"settings": {"trace_level": {"value": [traced]}}})

    def _log(self, _: GrpcCall, asked: Any) -> Any:
        if asked.settings:
            raise RequestError(f"the log (--log-level, --log-format) {_FIXED}", code="not_implemented")
        level = self._service.settings.log_level
        settings: dict[str, dict[str, Any]] = {
            "log_error": {"bool_param": True},
            "log_warning": {"bool_param": level != "error"},
            "log_info": {"bool_param": level in ("info", "debug")},
            "log_verbose_level": {"uint32_param": int(level == "debug")},
        }
        return _filled("LogSettingsResponse", {"settings": settings})

    def _no_shared_memory(self, _: GrpcCall, __: Any) -> Any:
        raise RequestError(_SHARED_MEMORY, code="not_implemented")


def _name(given: str) -> str:
    if not given:
        raise RequestError("the call names no model: set its name", code="bad_request")
    return given


def _coroutine(answer: Callable[[GrpcCall, Any], Any]) -> Callable[[GrpcCall, Any], Any]:
    async def answered(call: GrpcCall, asked: Any) -> Any:
        found = answer(call, asked)
        return await found if hasattr(found, "__await__") else found

    return answered


def _one_repository(asked: Any) -> None:
    if asked.repository_name:
        sentence = f"there is one repository, and it has no name: leave out {asked.repository_name!r}"
        raise RequestError(sentence, code="not_found")
