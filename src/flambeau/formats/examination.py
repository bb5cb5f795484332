"""`examine`: which format a file has, and who looks into it. It knows what begins how, and no format from within."""

import os
from pathlib import Path
from typing import BinaryIO

from flambeau.errors import SourceError
from flambeau.formats import (
    archives,
    dangers,
    folders,
    guesses,
    judgement,
    onnx_file,
    pickles,
    safetensors_file,
    torch_legacy,
    torch_tar,
    torch_zip,
    zips,
)
from flambeau.formats.refusals import Refusal, plain
from flambeau.formats.report import Format, Report

_HEAD = 4096
_CODE_INSIDE = "give --allow-code if you trust whoever wrote it, or save its weights alone as safetensors"


def examine(path: Path) -> Report:
    """What lies at `path`, by its contents and never by its suffix.

    Nothing of it is run, imported or unpickled, and the memory and the time it takes are bounded whatever it holds. A
    hostile or damaged file is a report with the verdict `refused`, whose `reason` reads on from the file's name. Raises
    `SourceError` only when nothing lies there, or it cannot be read.
    """
    try:
        if path.is_dir():
            return _folder(path)
        if not path.is_file():
            raise SourceError(f"{path} {'is no regular file' if path.exists() else 'does not exist'}: name a file")
        with path.open("rb") as file:
            report = _file(file, os.fstat(file.fileno()).st_size, folder=path.parent)
        return _part(path, report) if report.verdict == "refused" else report
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def _part(path: Path, report: Report) -> Report:
    """The report on a file that is one part of a whole folder, and nothing by itself: said of what it is."""
    if path.suffix == ".distcp" and (path.parent / ".metadata").is_file():
        return _refused(report.format, report.size, Refusal(
            "is one part of a checkpoint of torch.distributed.checkpoint", f"give its folder, {plain(path.parent.name)}"
        ))  # fmt: skip
    return report


def files_beside(path: Path) -> tuple[Path, ...]:
    """The files beside an ONNX file that hold weights of it. Raises `SourceError` for what `examine` refuses."""
    with path.open("rb") as file:
        try:
            found = onnx_file.read(file, os.fstat(file.fileno()).st_size, folder=path.parent)
        except Refusal as refusal:
            raise SourceError(f"{path.name} {refusal.reason}: {refusal.remedy}") from None
    return tuple(path.parent / place for place in found.external)


def _folder(path: Path) -> Report:
    try:
        return folders.read(path)
    except Refusal as refusal:
        return _refused("unknown", 0, refusal)


def _file(file: BinaryIO, size: int, *, folder: Path) -> Report:
    head = file.read(_HEAD)
    if head.startswith(b"PK"):
        return _zip(file, size)
    if torch_tar.looks_like_tar(head):
        return _tar(file, size)
    if safetensors_file.looks_like_safetensors(head):
        return _safetensors(file, size)
    if onnx_file.looks_like_onnx(head):
        return _onnx(file, size, folder)
    return _pickle(file, size, head)


def _zip(file: BinaryIO, size: int) -> Report:
    form: Format = "unknown"
    try:
        archive = zips.read(file, size)
        if archives.is_torchscript(archive):
            form = "torchscript"
            archives.refuse_bomb(archive)
            reason = "holds code in TorchScript's language beside its weights"
            weights = "torch.jit.load('PATH', 'cpu').state_dict()"
            return _code(form, size, reason, weights=weights)
        if archives.is_pt2(archive):
            form = "pt2"
            archives.refuse_bomb(archive)
            reason = "is a program of torch.export, whose parts torch may unpickle"
            return _code(form, size, reason, weights="torch.export.load('PATH').state_dict")
        if archives.is_mar(archive):
            form = "mar"
            facts = archives.mar_facts(archive)
            archives.refuse_bomb(archive)
            return _code(form, size, "is an archive of TorchServe with Python code of its author's", facts=facts)
        if torch_zip.is_one(archive):
            form = "torch-zip"
            return judgement.of_pickle(torch_zip.read(archive), form, size)
        raise guesses.of_archive(archive)
    except Refusal as refusal:
        return _refused(form, size, refusal)


def _tar(file: BinaryIO, size: int) -> Report:
    form: Format = "unknown"
    try:
        members = torch_tar.members(file, size)
        if not torch_tar.is_one(members):
            raise Refusal("is a tar archive, which we never unpack", "unpack it, and give the model's file in it")
        form = "torch-tar"
        return judgement.of_pickle(torch_tar.read(file, members), form, size)
    except Refusal as refusal:
        return _refused(form, size, refusal)


def _safetensors(file: BinaryIO, size: int) -> Report:
    try:
        entry, metadata = safetensors_file.read(file, size)
    except Refusal as refusal:
        return _refused("safetensors", size, refusal)
    facts = {plain(name): plain(text) for name, text in list(metadata.items())[:16]}
    return Report("safetensors", "data", size, entries=(entry,) if entry.tensors else (), facts=facts)


def _onnx(file: BinaryIO, size: int, folder: Path) -> Report:
    try:
        return Report("onnx", "data", size, facts=onnx_file.read(file, size, folder=folder).facts)
    except Refusal as refusal:
        return _refused("onnx", size, refusal)


def _pickle(file: BinaryIO, size: int, head: bytes) -> Report:
    """torch before 1.6, any other pickle, or none: text may be one too (protocol 0), so it is tried."""
    first = pickles.read(head)
    try:
        if torch_legacy.is_one(first):
            return judgement.of_pickle(torch_legacy.read(file, size), "torch-legacy", size)
        if head.startswith(b"\x80") or first.end or first.foreign:
            file.seek(0)
            found = pickles.read(file.read(pickles.MOST_BYTES))
            if not _only_looks_like_a_pickle(found, head):
                return judgement.of_stray_pickle(found, size)
        raise guesses.of_head(head)
    except Refusal as refusal:
        return _refused("torch-legacy" if torch_legacy.is_one(first) else "unknown", size, refusal)


def _only_looks_like_a_pickle(found: pickles.Pickled, head: bytes) -> bool:
    """Text whose first word begins with an operation's letter: "cat", on two lines, would be a global."""
    return not found.end and guesses.is_text(head) and not any(dangers.danger(name) for name in found.foreign)


def _code(form: Format, size: int, reason: str, *, weights: str = "", facts: dict[str, str] | None = None) -> Report:
    """The report on a format that is code. `weights` is what makes its state_dict, where that can be saved alone."""
    reason = f"{reason}, and loading it would run that"
    alone = f"save its weights alone, torch.save({weights}, 'NEW'), and give its network with --arch"
    remedy = f"if you trust whoever wrote it, give --allow-code, or {alone}" if weights else _CODE_INSIDE
    return Report(form, "code", size, reason, remedy, facts=facts or {})


def _refused(form: Format, size: int, refusal: Refusal) -> Report:
    return Report(form, "refused", size, reason=refusal.reason, remedy=refusal.remedy)
