"""`examine`: which format a file has, and who looks into it. It knows what begins how, and no format from within."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from flambeau.checkpoints import (
    allowlist,
    classify,
    file_magic,
    folders,
    onnx,
    pickle_vm,
    safetensors,
    torch_legacy,
    torch_zip,
    zip_archive,
)
from flambeau.checkpoints.report import Format, Report, ScanError, plain
from flambeau.checkpoints.zip_archive import Archive
from flambeau.errors import SourceError

_HEAD = 4096
_TAR_MAGIC = slice(257, 262)
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
        return _refused(report.format, report.size, ScanError(
            "is one part of a checkpoint of torch.distributed.checkpoint", f"give its folder, {plain(path.parent.name)}"
        ))  # fmt: skip
    return report


def files_beside(path: Path) -> tuple[Path, ...]:
    """The files beside an ONNX file that hold weights of it. Raises `SourceError` for what `examine` refuses."""
    with path.open("rb") as file:
        try:
            found = onnx.read(file, os.fstat(file.fileno()).st_size, folder=path.parent)
        except ScanError as refusal:
            raise SourceError(f"{path.name} {refusal.reason}: {refusal.remedy}") from None
    return tuple(path.parent / place for place in found.external)


def _folder(path: Path) -> Report:
    try:
        return folders.read(path)
    except ScanError as refusal:
        return _refused("unknown", 0, refusal)


def _file(file: BinaryIO, size: int, *, folder: Path) -> Report:
    head = file.read(_HEAD)
    if head.startswith(b"PK"):
        return _zip(file, size)
    if head[_TAR_MAGIC] == b"ustar":
        return _tar(head, size)
    if safetensors.looks_like_safetensors(head):
        return _safetensors(file, size)
    if onnx.looks_like_onnx(head):
        return _onnx(file, size, folder)
    return _pickle(file, size, head)


def _zip(file: BinaryIO, size: int) -> Report:
    form: Format = "unknown"
    try:
        archive = zip_archive.read(file, size)
        if is_torchscript(archive):
            form = "torchscript"
            refuse_bomb(archive)
            reason = "holds code in TorchScript's language beside its weights"
            weights = "torch.jit.load('PATH', 'cpu').state_dict()"
            return _code(form, size, reason, weights=weights)
        if is_pt2(archive):
            form = "pt2"
            refuse_bomb(archive)
            reason = "is a program of torch.export, whose parts torch may unpickle"
            return _code(form, size, reason, weights="torch.export.load('PATH').state_dict")
        if is_mar(archive):
            form = "mar"
            facts = mar_facts(archive)
            refuse_bomb(archive)
            return _code(form, size, "is an archive of TorchServe with Python code of its author's", facts=facts)
        if torch_zip.is_one(archive):
            form = "torch-zip"
            return classify.of_pickle(torch_zip.read(archive), form, size)
        raise file_magic.of_archive(archive)
    except ScanError as refusal:
        return _refused(form, size, refusal)


def _tar(head: bytes, size: int) -> Report:
    """What `torch.save` wrote before 0.2, whose first member is `sys_info`; or any other archive."""
    if not head.startswith(b"sys_info\0"):
        refusal = ScanError("is a tar archive, which we never unpack", "unpack it, and give the model's file in it")
        return _refused("unknown", size, refusal)
    refusal = ScanError(
        "was saved before torch 0.2, and torch reads such files only by unpickling them in full",
        "if you trust whoever wrote it, save its weights alone, "
        "torch.save(torch.load('PATH', weights_only=False), 'NEW'), and give that",
    )
    return _refused("torch-tar", size, refusal)


def _safetensors(file: BinaryIO, size: int) -> Report:
    try:
        entry, metadata = safetensors.read(file, size)
    except ScanError as refusal:
        return _refused("safetensors", size, refusal)
    facts = {plain(name): plain(text) for name, text in list(metadata.items())[:16]}
    return Report("safetensors", "data", size, entries=(entry,) if entry.tensors else (), facts=facts)


def _onnx(file: BinaryIO, size: int, folder: Path) -> Report:
    try:
        return Report("onnx", "data", size, facts=onnx.read(file, size, folder=folder).facts)
    except ScanError as refusal:
        return _refused("onnx", size, refusal)


def _pickle(file: BinaryIO, size: int, head: bytes) -> Report:
    """torch before 1.6, any other pickle, or none: text may be one too (protocol 0), so it is tried."""
    first = pickle_vm.read(head)
    try:
        if torch_legacy.is_one(first):
            return classify.of_pickle(torch_legacy.read(file, size), "torch-legacy", size)
        if head.startswith(b"\x80") or first.end or first.foreign:
            file.seek(0)
            found = pickle_vm.read(file.read(pickle_vm.MOST_BYTES))
            if not _only_looks_like_a_pickle(found, head):
                return classify.of_stray_pickle(found, size)
        raise file_magic.of_head(head)
    except ScanError as refusal:
        return _refused("torch-legacy" if torch_legacy.is_one(first) else "unknown", size, refusal)


def _only_looks_like_a_pickle(found: pickle_vm.Pickled, head: bytes) -> bool:
    """Text whose first word begins with an operation's letter: "cat", on two lines, would be a global."""
    return not found.end and file_magic.is_text(head) and not any(allowlist.danger(name) for name in found.foreign)


def _code(form: Format, size: int, reason: str, *, weights: str = "", facts: dict[str, str] | None = None) -> Report:
    """The report on a format that is code. `weights` is what makes its state_dict, where that can be saved alone."""
    reason = f"{reason}, and loading it would run that"
    alone = f"save its weights alone, torch.save({weights}, 'NEW'), and give its network with --arch"
    remedy = f"if you trust whoever wrote it, give --allow-code, or {alone}" if weights else _CODE_INSIDE
    return Report(form, "code", size, reason, remedy, facts=facts or {})


def _refused(form: Format, size: int, refusal: ScanError) -> Report:
    return Report(form, "refused", size, reason=refusal.reason, remedy=refusal.remedy)


# Zip archives that carry code: TorchScript, `torch.export`'s `.pt2` and TorchServe's `.mar`, told by their members.
#
# Nothing in them is run or imported, and of the whole archive at most a manifest is unpacked.


_MOST_TIMES = 20
_FREE_BYTES = 2**20
_LARGEST_MANIFEST = 2**20
_MAR_MANIFEST = "MAR-INF/MANIFEST.json"
_MOST_MAR_MEMBERS = 1000

_PT2_MARKS = ("archive_format", "serialized_exported_program.json")


def is_torchscript(archive: Archive) -> bool:
    """Whether it is what `torch.jit.save` writes: constants, and code in TorchScript's language."""
    return any(_inner(name) == "constants.pkl" for name in archive.members)


def is_pt2(archive: Archive) -> bool:
    """Whether it is what `torch.export.save` writes, since 2.6 or before it."""
    return any(_inner(name) in _PT2_MARKS or name in _PT2_MARKS for name in archive.members)


def is_mar(archive: Archive) -> bool:
    """Whether it is what `torch-model-archiver` writes."""
    return _MAR_MANIFEST in archive.members


def refuse_bomb(archive: Archive) -> None:
    """Raise `ScanError` for an archive that unpacks to far more than it is (T-04)."""
    packed = sum(member.packed for member in archive.members.values())
    unpacked = sum(member.size for member in archive.members.values())
    if unpacked > _MOST_TIMES * packed + _FREE_BYTES:
        raise ScanError(f"would unpack to {unpacked:,} bytes from {packed:,}: more than {_MOST_TIMES} times is a bomb")


def mar_facts(archive: Archive) -> dict[str, str]:
    """What the manifest of a `.mar` says: model, version, handler, weights. Raises `ScanError` for a damaged one."""
    if len(archive.members) > _MOST_MAR_MEMBERS:
        raise ScanError(f"holds {len(archive.members):,} members; {_MOST_MAR_MEMBERS:,} are enough for any .mar")
    try:
        manifest: Any = msgspec.json.decode(archive.read(_MAR_MANIFEST, limit=_LARGEST_MANIFEST))
    except (msgspec.DecodeError, RecursionError):
        raise ScanError(f"is a .mar whose {_MAR_MANIFEST} is not JSON") from None
    model = manifest.get("model") if isinstance(manifest, dict) else None
    if not isinstance(model, dict):
        raise ScanError(f"is a .mar whose {_MAR_MANIFEST} names no model")
    said = {
        "model": model.get("modelName"),
        "version": model.get("modelVersion"),
        "handler": model.get("handler"),
        "weights": model.get("serializedFile"),
        "architecture": model.get("modelFile"),
        "runtime": manifest.get("runtime"),
    }
    return {name: plain(value) for name, value in said.items() if isinstance(value, str) and value}


def _inner(name: str) -> str:
    """A member's name without the folder at the top."""
    return name.partition("/")[2]
