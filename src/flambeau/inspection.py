"""What a file is and what `flambeau serve` would do with it, without loading it: formats and detection put together.

It runs nothing, imports nobody's code, and needs no torch.
"""

from collections import Counter
from math import prod
from pathlib import Path

import msgspec

from flambeau import bundle, detection, formats
from flambeau.bundle import ImagePipeline
from flambeau.detection import tasks
from flambeau.detection.finding import Fit, Near, Published
from flambeau.formats.allowed import ITEM_SIZES
from flambeau.formats.report import Entry, Report


class Weights(msgspec.Struct, frozen=True):
    """The tensors that would be served: how many, of which dtypes, how many bytes, and where in the file they lie."""

    where: str
    tensors: int
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    note: str | None = None


class Inspection(msgspec.Struct, frozen=True):
    """What is worth knowing of a file. `serve` is the command that serves it, and `needs` what it lacks.

    With `features` its `classes` are none. `task` says what it is taken for, and which activation is applied by whom.
    """

    file: str
    report: Report
    sha256: str | None = None
    weights: Weights | None = None
    architecture: str | None = None
    classes: int | None = None
    features: bool = False
    also_fits: tuple[str, ...] = ()
    near: tuple[Near, ...] = ()
    notes: tuple[str, ...] = ()
    official: Published | None = None
    preprocessing: ImagePipeline | None = None
    task: str = ""
    serve: str | None = None
    needs: str = ""


def inspect(path: Path, *, weights_key: str | None = None, arch: str | None = None) -> Inspection:
    """Look at a file or folder. Raises `SourceError` when it does not exist or cannot be read, and for a wrong key."""
    report = formats.examine(path)
    sha256 = bundle.sha256_of(path) if path.is_file() else None
    found = Inspection(file=str(path), report=report, sha256=sha256)
    if report.verdict == "refused" or report.format == "repository":
        return msgspec.structs.replace(found, needs=report.remedy or "name one of the bundles in it")
    if report.entries:
        entry, note = formats.choose(report, weights_key)
        found = _with_network(msgspec.structs.replace(found, weights=_weights(entry, note)), entry, arch)
    if report.verdict == "code":
        loadable = report.format != "mar"
        serve = f"flambeau serve {path} --allow-code" if loadable else None
        return msgspec.structs.replace(found, serve=serve, needs=report.remedy)
    task = tasks.of_graph(report.facts) if report.format == "onnx" else ""
    return found if report.entries else msgspec.structs.replace(found, serve=f"flambeau serve {path}", task=task)


def _with_network(found: Inspection, entry: Entry, arch: str | None) -> Inspection:
    finding = detection.detect(entry.tensors, wanted=arch)
    found = msgspec.structs.replace(found, near=finding.near, notes=finding.notes)
    fit = finding.fit
    if fit is None:
        return msgspec.structs.replace(found, needs=finding.advice)
    name = fit.architecture.name
    official = detection.published(str(found.sha256), architecture=name)
    return msgspec.structs.replace(
        found,
        architecture=name,
        classes=fit.classes,
        features=fit.features,
        also_fits=fit.same_weights,
        notes=tuple(note for note in (fit.why, *finding.notes) if note),
        official=official,
        preprocessing=official.pipeline if official else fit.pipeline,
        task=tasks.of_fit(fit, official=official is not None),
        serve=None if tasks.asks(fit) else _command(found, fit, arch, official),
        needs=tasks.ONE_OUTPUT if tasks.asks(fit) else "",
    )


def _command(found: Inspection, fit: Fit, arch: str | None, official: Published | None) -> str:
    named = official or found.report.classes or fit.pipeline is None or fit.features
    parts = ["flambeau serve", found.file, f"--arch {arch}" if arch else "", "" if named else "--labels FILE"]
    return " ".join(part for part in parts if part)


def _weights(entry: Entry, note: str | None) -> Weights:
    tensors = entry.tensors.values()
    return Weights(
        where=".".join(entry.where) or ".",
        tensors=len(entry.tensors),
        parameters=sum(prod(tensor.shape) for tensor in tensors),
        bytes=sum(prod(tensor.shape) * ITEM_SIZES[tensor.dtype] for tensor in tensors),
        dtypes=dict(Counter(tensor.dtype for tensor in tensors)),
        note=note,
    )
