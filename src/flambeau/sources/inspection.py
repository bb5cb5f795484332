"""What a file is and what `flambeau serve` would do with it, without loading it: its format and its architecture.

It runs nothing, imports nobody's code, and needs no torch.
"""

import tempfile
from collections import Counter
from math import prod
from pathlib import Path

import msgspec

from flambeau import checkpoints, identify
from flambeau.bundle import storage
from flambeau.bundle.storage import DenseConfig, ImageConfig, PictureConfig
from flambeau.checkpoints import model_archive, prepared, stated, timm_config, transformers_config
from flambeau.checkpoints.allowlist import ITEM_SIZES
from flambeau.checkpoints.model_archive import ArchivedModel
from flambeau.checkpoints.report import Report, TensorMapping, plain
from flambeau.checkpoints.timm_config import TimmConfig
from flambeau.checkpoints.transformers_config import TransformersConfig
from flambeau.errors import SourceError
from flambeau.identify import of_timm, of_transformers, segmentation_models, unsupported
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
from flambeau.sources import archives, request


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
    return _inspected(path, weights_key=weights_key, arch=arch, alone=False)


def _inspected(path: Path, *, weights_key: str | None, arch: str | None, alone: bool) -> Inspection:
    """`alone`: what lies beside the file says nothing about it."""
    report = checkpoints.examine(path, whole=True)
    sha256 = storage.sha256_of(path) if path.is_file() else None
    if archive := _archive(path, report):
        return _of_archive(archive, path, sha256, weights_key)
    found = Inspection(file=str(path), report=report, sha256=sha256)
    if report.verdict == "refused":
        return msgspec.structs.replace(found, needs=report.remedy)
    if report.format == "repository":
        return msgspec.structs.replace(found, serve=f"flambeau serve {path}")
    module = True
    if report.entries:
        entry, note = checkpoints.choose(report, weights_key)
        found = msgspec.structs.replace(found, weights=_weights(entry, note))
        safe = report.verdict == "data" and not alone
        if safe and arch is None and (beside := transformers_config.beside(path)):
            return _of_transformers(found, transformers_config.read(beside))
        config = timm_config.read(beside) if safe and (beside := timm_config.beside(path)) else None
        found = _with_network(found, entry, arch, config)
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


def _archive(path: Path, report: Report) -> ArchivedModel | None:
    try:
        return model_archive.read(path)
    except SourceError:
        if report.verdict == "refused" and path.is_file() and path.suffix in (".mar", ".zip"):
            return None  # the report has the reason
        raise


def _of_archive(archive: ArchivedModel, path: Path, sha256: str | None, weights_key: str | None) -> Inspection:
    """What an archive of TorchServe holds, and who would answer: our own task, or its handler."""
    about = {
        "model": archive.name, "version": archive.version, "handler": archive.handler, "weights": archive.weights,
        "network": archive.network, "packages": archive.requirements, "labels": archive.labels,
        "settings": ", ".join(f"{name}={value}" for name, value in archive.config.items()),
        "files": ", ".join(each for each in archive.names if each != model_archive.MANIFEST),
    }  # fmt: skip
    facts = {name: plain(value) for name, value in about.items() if value}
    size = path.stat().st_size if path.is_file() else sum((path / each).stat().st_size for each in archive.names)
    report = Report("mar", "code", size, _CODE, "give --allow-code if you trust its author", facts=facts)
    found = Inspection(file=str(path), report=report, sha256=sha256)
    if not archives.is_mapped(archive):
        told = f"its handler {archive.handler} answers, in the workers"
        return msgspec.structs.replace(found, task=told, serve=f"flambeau serve {path} --allow-code")
    with tempfile.TemporaryDirectory(prefix="flambeau-inspect-") as folder:
        model_archive.unpack(path, Path(folder))
        try:
            code = archives.code_needed(archive, path, Path(folder))
        except SourceError as error:
            return msgspec.structs.replace(found, needs=str(error))
        inner = _inspected(Path(folder, str(archive.weights)), weights_key=weights_key, arch=None, alone=True)
    told = f"as {archive.handler}, by Flambeau's own code"
    if archives.answers_itself(archive, code):
        told = f"its handler {archive.handler} answers, in the workers"
    same = {name: getattr(inner, name) for name in ("weights", "architecture", "classes", "features", "also_fits",
                                                    "notes", "official", "near")}  # fmt: skip
    found = msgspec.structs.replace(found, **same)
    if code:
        needs = f"its weights alone do not say what it computes ({code}): give --allow-code if you trust its author"
        return msgspec.structs.replace(found, task=told, serve=f"flambeau serve {path} --allow-code", needs=needs)
    if inner.serve is None:
        return msgspec.structs.replace(found, task=told, needs=inner.needs)
    safe = msgspec.structs.replace(report, verdict="data", reason="", remedy="")
    return msgspec.structs.replace(found, report=safe, task=f"{told}; none of its Python is run",
                                   serve=f"flambeau serve {path}")  # fmt: skip


_CODE = "is an archive of TorchServe with its author's Python code, and loading it would run that"


def _with_code(found: Inspection, *, whole: bool) -> Inspection:
    """What a file that carries code needs. `whole`: the network itself is code, known only once it runs."""
    allowed = f"flambeau serve {found.file} --allow-code"
    if whole or (found.architecture and not found.needs):
        return msgspec.structs.replace(found, serve=allowed, needs=found.report.remedy)
    # weights beside code: the code has to be allowed, and the weights need the same as without it
    return msgspec.structs.replace(found, needs=f"{found.report.remedy}; and {found.needs}")


def _with_network(found: Inspection, entry: TensorMapping, arch: str | None, config: TimmConfig | None) -> Inspection:
    if arch is not None and ":" in arch:
        needs = (
            f"--arch {arch} is code, and inspect runs none: leave it out here, and build it with flambeau build "
            f"{found.file} --arch {arch} --allow-code -o FOLDER"
        )
        return msgspec.structs.replace(found, needs=needs)
    said = stated.networks(found.report.stated)
    identified = identify.detect(entry.tensors, wanted=arch, said=said, config=config)
    found = msgspec.structs.replace(found, near=identified.near, notes=identified.notes)
    fit = identified.fit
    if fit is None:
        known = identified.known
        example = known and unsupported.image_sketch(known, str(Path(found.file).resolve()), entry.where)
        needs = identified.advice.replace(unsupported.AROUND, unsupported.PRINTED) if example else identified.advice
        needs += request.as_graph(Path(found.file))
        return msgspec.structs.replace(found, needs=needs, example=example or "")
    name = fit.architecture.name
    official = identify.published(str(found.sha256), architecture=name)
    asked = ONE_OUTPUT if asks(fit) else segmentation_models.question(fit) if fit.normalises else ""
    preprocessing = official.pipeline if official else fit.pipeline
    classes, note = found.report.classes, timm_config.passed_over(Path(found.file))
    if config is not None:
        classes, note = of_timm.names(config, fit, classes)
        try:
            preprocessing = of_timm.prepared(config)
        except SourceError as error:
            preprocessing, asked = None, str(error)
    if not asked and official is None and isinstance(preprocessing, ImageConfig | DenseConfig):
        constants = prepared.beside(found.report.prepares, entry.where)
        asked = prepared.question(constants, preprocessing.mean, preprocessing.std)
    return msgspec.structs.replace(
        found,
        report=msgspec.structs.replace(found.report, classes=classes),
        architecture=name,
        classes=fit.classes,
        features=fit.features,
        also_fits=fit.same_weights,
        notes=tuple(each for each in (fit.why, *identified.notes, note) if each),
        official=official,
        preprocessing=preprocessing,
        task=task_of_fit(fit, official=official is not None),
        serve=None if asked else _command(found, fit, arch, named=bool(official or classes)),
        needs=asked,
    )


def _of_transformers(found: Inspection, config: TransformersConfig) -> Inspection:
    """What is served of weights with transformers' files beside them."""
    path = Path(found.file)
    found = msgspec.structs.replace(found, architecture=config.network, notes=(of_transformers.statement(config),))
    try:
        kind = of_transformers.kind_of(config)
        preprocessing = of_transformers.prepared(config, asked={}) if kind == "image" else None
    except SourceError as error:
        return msgspec.structs.replace(found, needs=f"{error}{request.as_graph(path)}")
    tokenizer = request.tokenizer_beside(path)
    needs = of_transformers.missing(config, tokenizer is not None)
    labelled = config.labels or of_transformers.makes_vectors(config)
    return msgspec.structs.replace(
        found,
        report=msgspec.structs.replace(found.report, classes=config.labels),
        classes=len(config.labels) if config.labels else None,
        preprocessing=preprocessing,
        task=of_transformers.task_in_words(config),
        serve=None if needs else f"flambeau serve {found.file}{'' if labelled else ' --labels FILE'}",
        needs=needs,
    )


def _command(found: Inspection, fit: Fit, arch: str | None, *, named: bool) -> str:
    named = named or fit.pipeline is None or fit.features
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
