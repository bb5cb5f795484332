"""The lines that a server prints when it can be reached. It prints nothing itself."""

from collections.abc import Sequence

from flambeau.protocols.model_sentences import about
from flambeau.serving.model import Model
from flambeau.serving.service import Service

_MOST_NAMED = 8


def lines_about(service: Service, where: str, *, grpc: str | None = None, more: Sequence[str] = ()) -> list[str]:
    """What is served and where, what the models do, and which are not served.

    `grpc`: the addresses for gRPC. `more`: further addresses.
    """
    loaded = service.models()
    named = [f"{_called(model, loaded)} on {model.engine}, {model.device}" for model in loaded[:_MOST_NAMED]]
    names = ", ".join(named) or _unloaded(service)
    if len(loaded) > _MOST_NAMED:
        names += f" and {len(loaded) - _MOST_NAMED} more"
    told = [
        f"{_called(model, loaded)}: {about(model)}"
        for model in loaded[:_MOST_NAMED]
        if model.kind in ("image", "text", "audio")
    ]
    faults = [f"{name}, version {version}, is not served: {why}" for name, version, why in service.faults()]
    if grpc is not None:
        told.insert(0, f"gRPC: {grpc}")
    told += [f"also at {each}" for each in more]
    if service.settings.model_store is not None:
        told.append("Model server started.")  # which scripts for TorchServe wait for
    return [f"Flambeau serves {names}: {where}", *told, *faults]


def _unloaded(service: Service) -> str:
    if (folder := service.settings.multi_model or service.settings.model_store) is not None:
        return f"models of {folder}, as they are loaded"
    return f"{len(service.table.served())} models on demand"


def _called(model: Model, beside: list[Model]) -> str:
    alone = model.version == "1" and sum(each.name == model.name for each in beside) == 1
    return model.name if alone else f"{model.name} (version {model.version})"
