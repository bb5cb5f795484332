"""What a file is and what `flambeau serve` would do with it, without loading it: its format and its architecture.

It runs nothing, imports nobody's code, and needs no torch.
"""

from collections import Counter
from math import prod
from pathlib import Path

import msgspec

from flambeau import checkpoints, identify
from flambeau.bundle import storage
from flambeau.bundle.storage import DenseConfig, ImageConfig, PictureConfig
from flambeau.checkpoints.allowlist import ITEM_SIZES
from flambeau.checkpoints.report import Report, TensorMapping
from flambeau.errors import SourceError
from flambeau.identify import unsupported
from flambeau.identify.finding import (
    ONE_OUTPUT,
    Fit,
    Near,
    Published,
    asks,
    assess_graph,
    task_of_fit,
    task_of_graph,
    task_of_text,
)
from flambeau.sources import request


class WeightsReport(msgspec.Struct, frozen=True):
    """The tensors that would be served: their number, dtypes and bytes, and where in the file they lie."""

    where: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    note: str | None = None


class Inspection(msgspec.Struct, frozen=True):
    """The findings about a file. `serve` is the command that serves it; `needs` says what is missing.

    If `features` is set, `classes` counts features, not classes. `task` is the detected task, and which activation is
    applied by whom. Without `serve` the file cannot be served as it is; `example`, if any, is the source of a Python
    model that serves it.
    """

    file: str
    report: Report
    sha256: str | None = None
    weights: WeightsReport | None = None
    architecture: str | None = None
    classes: int | None = None
    features: bool = False
    also_fits: tuple[str, ...] = ()
    near: tuple[Near, ...] = ()
    notes: tuple[str, ...] = ()
    official: Published | None = None
    preprocessing: ImageConfig | PictureConfig | DenseConfig | None = None
    task: str = ""
    serve: str | None = None
    needs: str = ""
    example: str = ""


def inspect(path: Path, *, weights_key: str | None = None, arch: str | None = None) -> Inspection:
    """Examine a file or folder. Raises `SourceError` when it does not exist or cannot be read, and for a wrong key."""
    report = checkpoints.examine(path)
    sha256 = storage.sha256_of(path) if path.is_file() else None
    found = Inspection(file=str(path), report=report, sha256=sha256)
    if report.verdict == "refused":
        return msgspec.structs.replace(found, needs=report.remedy)
    if report.format == "repository":
        return msgspec.structs.replace(found, serve=f"flambeau serve {path}")
    module = True
    if report.entries:
        entry, note = checkpoints.choose(report, weights_key)
        found = _with_network(msgspec.structs.replace(found, weights=_weights(entry, note)), entry, arch)
        module = entry.module
    if report.verdict == "code":
        return _with_code(found, whole=module)
    if report.entries:
        return found
    needs, example, task = "", "", ""
    if report.format == "onnx":
        beside = request.tokenizer_beside(path)
        task = task_of_text(report.facts, beside.name) if beside else ""
        task = task or task_of_graph(report.facts)
        assessment = assess_graph(report.facts, str(path.resolve()))
        needs, example = assessment.needs, assessment.example
    elif report.format != "bundle":
        try:
            checkpoints.choose(report, weights_key)
        except SourceError as error:
            needs = str(error)
    return msgspec.structs.replace(
        found, serve=None if needs else f"flambeau serve {path}", needs=needs, example=example, task=task
    )


def _with_code(found: Inspection, *, whole: bool) -> Inspection:
    """What a file that carries code needs. `whole`: the network itself is code, known only once it runs."""
    allowed = f"flambeau serve {found.file} --allow-code"
    if found.report.format == "mar":
        return msgspec.structs.replace(found, serve=None, needs=request.UNPACK)
    if whole or (found.architecture and not found.needs):
        return msgspec.structs.replace(found, serve=allowed, needs=found.report.remedy)
    # weights beside code: the code has to be allowed, and the weights need the same as without it
    return msgspec.structs.replace(found, needs=f"{found.report.remedy}; and {found.needs}")


def _with_network(found: Inspection, entry: TensorMapping, arch: str | None) -> Inspection:
    identified = identify.detect(entry.tensors, wanted=arch)
    found = msgspec.structs.replace(found, near=identified.near, notes=identified.notes)
    fit = identified.fit
    if fit is None:
        known = identified.known
        example = known and unsupported.image_sketch(known, str(Path(found.file).resolve()), entry.where)
        needs = identified.advice.replace(unsupported.AROUND, unsupported.PRINTED) if example else identified.advice
        return msgspec.structs.replace(found, needs=needs, example=example or "")
    name = fit.architecture.name
    official = identify.published(str(found.sha256), architecture=name)
    return msgspec.structs.replace(
        found,
        architecture=name,
        classes=fit.classes,
        features=fit.features,
        also_fits=fit.same_weights,
        notes=tuple(note for note in (fit.why, *identified.notes) if note),
        official=official,
        preprocessing=official.pipeline if official else fit.pipeline,
        task=task_of_fit(fit, official=official is not None),
        serve=None if asks(fit) else _command(found, fit, arch, official),
        needs=ONE_OUTPUT if asks(fit) else "",
    )


def _command(found: Inspection, fit: Fit, arch: str | None, official: Published | None) -> str:
    named = official or found.report.classes or fit.pipeline is None or fit.features
    parts = ["flambeau serve", found.file, f"--arch {arch}" if arch else "", "" if named else "--labels FILE"]
    return " ".join(part for part in parts if part)


def _weights(entry: TensorMapping, note: str | None) -> WeightsReport:
    tensors = entry.tensors.values()
    return WeightsReport(
        where=".".join(entry.where) or ".",
        tensors=len(entry.tensors),
        parameters=sum(prod(tensor.shape) for tensor in tensors),
        bytes=sum(prod(tensor.shape) * ITEM_SIZES[tensor.dtype] for tensor in tensors),
        dtypes=dict(Counter(tensor.dtype for tensor in tensors)),
        note=note,
    )
