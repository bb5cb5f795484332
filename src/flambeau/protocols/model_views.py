"""Models and their versions as the routes about them show them. The OpenAPI schemas are made from these values."""

from datetime import datetime

import msgspec

from flambeau.serving.shadow import Shadow
from flambeau.serving.versions import ServedModel, Version
from flambeau.types import ModelState, TensorSpec, on_nodes


class VersionSummary(msgspec.Struct, omit_defaults=True):
    """A version in a list."""

    version: str
    state: ModelState
    error: str | None = None


class ModelView(msgspec.Struct):
    """What is shown of a model beside its versions.

    `default_version` answers where a request names none; `null`: none is loaded.
    """

    name: str
    state: ModelState
    default_version: str | None
    aliases: dict[str, str]
    traffic: dict[str, float] | None
    shadow: str | None


class ModelSummary(ModelView):
    """A model in a list."""

    versions: list[VersionSummary]


class ModelList(msgspec.Struct):
    """`GET /models`. `default` is the model of `POST /predict`."""

    default: str
    models: list[ModelSummary]


class VersionDetail(msgspec.Struct, omit_defaults=True):
    """A version in full. All but the first three members are there while it is loaded.

    `workers` are its replicas now, from `min_replicas` to `max_replicas`, `nodes` how many of them are on which node
    of a cluster, and `restarts` how many were lost or could not start, by reason. `memory` is the resident bytes of its
    workers together, where they have processes of their own; `cost` is what they took when that was last measured, with
    what they share counted once.
    """

    name: str
    version: str
    state: ModelState
    error: str | None = None
    source: str | None = None
    sha256: str | None = None
    loaded_at: datetime | None = None
    task: str | None = None
    activation: str | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    labels: list[str] | None = None
    threshold: float | None = None
    engine: str | None = None
    device: str | None = None
    agreement: str | None = None
    batch_size: int | None = None
    queued: int | None = None
    workers: int | None = None
    nodes: dict[str, int] | None = None
    restarts: dict[str, int] | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    memory: int | None = None
    cost: int | None = None


class ModelDetail(ModelView):
    """A model in full."""

    versions: list[VersionDetail]


class ShadowView(msgspec.Struct):
    """`GET /models/{model}/shadow`. Counts are of items.

    `agreed` of `compared`, to within a thousandth; `failed`: only the shadow could not answer; `skipped`: there was no
    room for a copy. Medians are in seconds. `differing` are the SHA-256 of the last hundred inputs that did not agree.
    """

    version: str
    compared: int
    agreed: int
    failed: int
    skipped: int
    largest_difference: float
    median_seconds: float | None
    shadow_median_seconds: float | None
    differing: list[str]


def shadow_of(shadow: Shadow) -> ShadowView:
    """The comparison so far."""
    return ShadowView(
        shadow.version, shadow.compared, shadow.agreed, shadow.failed, shadow.skipped, shadow.largest_difference,
        shadow.median(0), shadow.median(1), list(shadow.differing),
    )  # fmt: skip


def summary_of(served: ServedModel, *, reasons: bool = True) -> ModelSummary:
    """A model in a list. `reasons`: with those for which versions failed, which may name paths."""
    versions = [
        VersionSummary(number, each.state, _why(each, reasons=reasons)) for number, each in served.versions.items()
    ]
    return ModelSummary(served.name, served.state, served.current, served.aliases, *_rollout(served), versions)


def _why(entry: Version, *, reasons: bool) -> str | None:
    if not entry.fault:
        return None
    return entry.fault if reasons else "it could not be loaded: an admin token reads why"


def _rollout(served: ServedModel) -> tuple[dict[str, float] | None, str | None]:
    """The shares of traffic, and the shadow."""
    return (served.traffic.shares if served.traffic else None), (served.shadow.version if served.shadow else None)


def detail_of(served: ServedModel, *, reasons: bool) -> ModelDetail:
    """A model in full. Reads files: not on the loop."""
    versions = [version_detail_of(each, reasons=reasons) for each in served.versions.values()]
    return ModelDetail(served.name, served.state, served.current, served.aliases, *_rollout(served), versions)


def version_detail_of(entry: Version, *, reasons: bool) -> VersionDetail:
    """A version in full. Reads files: not on the loop."""
    model, declaration = entry.model, entry.declaration
    detail = VersionDetail(declaration.name, declaration.version, entry.state, _why(entry, reasons=reasons))
    detail.cost = entry.cost or None
    if model is None:
        return detail
    manifest = model.bundle.manifest
    workers = model.metrics.workers()
    memory = [each.memory for each in workers if each.memory is not None]
    labels = model.bundle.labels()
    detail.source, detail.sha256, detail.loaded_at = manifest.source.name, manifest.source.sha256, entry.loaded_at
    detail.task, detail.activation = model.task, manifest.activated_by.function
    detail.inputs, detail.outputs = manifest.inputs, manifest.outputs
    detail.labels = [each.name for each in labels] if labels else None
    detail.threshold, detail.engine, detail.device = model.threshold, model.engine, model.device
    detail.agreement = None if manifest.agreement is None else str(manifest.agreement)
    detail.batch_size, detail.queued = model.batch_size, model.metrics.queue()[0]
    detail.workers, detail.memory = len(workers), sum(memory) if memory else None
    detail.nodes = on_nodes(workers) or None
    detail.restarts = {reason: count for reason, count in model.metrics.losses().items() if count} or None
    detail.max_replicas = model.most_replicas
    detail.min_replicas = (model.least_replicas or 1) if model.elastic else model.most_replicas
    return detail
