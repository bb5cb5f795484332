"""`examine`: identify a file's format by its first bytes and pass it to the format's module; identify folders.

This module knows how formats begin, not what is inside them.
"""

import os
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import msgspec

from flambeau.bundle import storage
from flambeau.checkpoints import (
    allowlist,
    classify,
    file_magic,
    onnx,
    pickle_vm,
    repository,
    safetensors,
    torch_file,
    zip_archive,
)
from flambeau.checkpoints.report import Format, Report, ScanError, plain
from flambeau.errors import SourceError

_HEAD = 4096
_TAR_MAGIC = slice(257, 262)
_CODE_INSIDE = "give --allow-code if you trust its author, or save its weights alone as safetensors"


def examine(path: Path, *, whole: bool = False) -> Report:
    """Report what is at `path`, by its contents and never by its suffix.

    `whole`: compare all of a zip archive with its checksums, tensors too. That reads the file once, and without it
    weights that were damaged on their way would be loaded and answer wrongly in silence.

    Nothing in it is run, imported or unpickled, and the memory and time are bounded whatever it contains. A hostile or
    damaged file gets a report with the verdict `refused`, whose `reason` follows the file's name. Raises `SourceError`
    only when there is no file or it cannot be read.
    """
    try:
        if path.is_dir():
            try:
                return _folder_report(path)
            except ScanError as refusal:
                return _refused("unknown", 0, refusal)
        if not path.is_file():
            raise SourceError(f"{path} {'is not a regular file' if path.exists() else 'does not exist'}: name a file")
        with path.open("rb") as file:
            report = _file(file, os.fstat(file.fileno()).st_size, folder=path.parent, whole=whole)
        part_of_a_folder = path.suffix == ".distcp" and (path.parent / ".metadata").is_file()
        if report.verdict == "refused" and part_of_a_folder:
            reason = "is one part of a checkpoint of torch.distributed.checkpoint"
            return _refused(
                report.format, report.size, ScanError(reason, f"give its folder, {plain(path.parent.name)}")
            )
        return report
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def files_beside(path: Path) -> tuple[Path, ...]:
    """The files beside an ONNX file that hold its weights. Raises `SourceError` for a file that `examine` refuses."""
    with path.open("rb") as file:
        try:
            found = onnx.read(file, os.fstat(file.fileno()).st_size, folder=path.parent)
        except ScanError as refusal:
            raise SourceError(f"{path.name} {refusal.reason}: {refusal.remedy}") from None
    return tuple(path.parent / place for place in found.external)


def _file(file: BinaryIO, size: int, *, folder: Path, whole: bool) -> Report:
    head = file.read(_HEAD)
    if head.startswith(b"PK"):
        report = _zip(file, size)
        return _verified(report, file) if whole and report.format in _TORCHS_OWN else report
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
        if file_magic.is_torchscript(archive):
            form = "torchscript"
            file_magic.refuse_bomb(archive)
            reason = "holds code in TorchScript's language beside its weights"
            weights = "torch.jit.load('PATH', 'cpu').state_dict()"
            return _code(form, size, reason, weights=weights)
        if file_magic.is_pt2(archive):
            form = "pt2"
            file_magic.refuse_bomb(archive)
            reason = "is a program of torch.export, whose parts torch may unpickle"
            return _code(form, size, reason, weights="torch.export.load('PATH').state_dict")
        if file_magic.is_mar(archive):
            form = "mar"
            facts = file_magic.mar_facts(archive)
            file_magic.refuse_bomb(archive)
            return _code(form, size, "is an archive of TorchServe with its author's Python code", facts=facts)
        if torch_file.is_zip(archive):
            form = "torch-zip"
            return classify.of_pickle(torch_file.read_zip(archive), form, size)
        raise file_magic.of_archive(archive)
    except ScanError as refusal:
        return _refused(form, size, refusal)


_TORCHS_OWN = ("torch-zip", "torchscript", "pt2")


def _verified(report: Report, file: BinaryIO) -> Report:
    """The report, or the refusal of an archive whose contents do not fit their checksums."""
    try:
        if report.verdict != "refused":
            zip_archive.read(file, report.size).verify()
        return report
    except ScanError as refusal:
        return _refused(report.format, report.size, refusal)


def _tar(head: bytes, size: int) -> Report:
    """The report on a tar archive: `torch.save`'s from before 0.2, whose first member is `sys_info`, or any other."""
    if not head.startswith(b"sys_info\0"):
        refusal = ScanError("is a tar archive, which we never unpack", "unpack it, and give the model's file in it")
        return _refused("unknown", size, refusal)
    refusal = ScanError(
        "was saved before torch 0.2, and torch reads such files only by unpickling them in full",
        "if you trust its author, save its weights alone, "
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
    """The report on torch's format before 1.6, another pickle, or anything else. Text may be a pickle too (protocol 0),
    so it is tried."""
    first = pickle_vm.read(head)
    try:
        if torch_file.is_legacy(first):
            return classify.of_pickle(torch_file.read_legacy(file, size), "torch-legacy", size)
        if head.startswith(b"\x80") or first.end or first.foreign:
            file.seek(0)
            found = pickle_vm.read(file.read(pickle_vm.MOST_BYTES))
            if not _only_looks_like_a_pickle(found, head):
                return classify.of_other_pickle(found, size)
        raise file_magic.of_head(head)
    except ScanError as refusal:
        return _refused("torch-legacy" if torch_file.is_legacy(first) else "unknown", size, refusal)


def _only_looks_like_a_pickle(found: pickle_vm.Pickled, head: bytes) -> bool:
    """Whether it is text whose first letter happens to be an operation: "cat", on two lines, would be a global."""
    return not found.end and file_magic.is_text(head) and not any(allowlist.danger(name) for name in found.foreign)


def _code(form: Format, size: int, reason: str, *, weights: str = "", facts: dict[str, str] | None = None) -> Report:
    """The report on a format that is code. `weights` is the Python expression for its state_dict, if there is one."""
    reason = f"{reason}, and loading it would run that"
    alone = f"save its weights alone, torch.save({weights}, 'NEW'), and give its network with --arch"
    remedy = f"if you trust its author, give --allow-code, or {alone}" if weights else _CODE_INSIDE
    return Report(form, "code", size, reason, remedy, facts=facts or {})


def _refused(form: Format, size: int, refusal: ScanError) -> Report:
    return Report(form, "refused", size, reason=refusal.reason, remedy=refusal.remedy)


# Folders: a bundle, a repository of bundles, or something else. Then the files in it that may be meant are named.


_MOST_FILES = 10_000
_LARGEST_MANIFEST = 2**20
_LIKELY = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".onnx", ".pt2")
_GRAPH_OVER_TEXTS = "onnx/model.onnx"  # in repositories of Hugging Face, of the weights above it


def _folder_report(path: Path) -> Report:
    """The report on a folder. Raises `ScanError` for one without a bundle."""
    size = sum(file.stat().st_size for file in islice(path.rglob("*"), _MOST_FILES) if file.is_file())
    if (path / storage.MANIFEST).is_file():
        return _bundle_report(path, size)
    names = list(repository.read(path))
    if names:
        return Report("repository", "data", size, facts={"models": ", ".join(map(plain, names[:16]))})
    files = sorted(file.name for file in islice(path.iterdir(), _MOST_FILES) if file.suffix.lower() in _LIKELY)
    if (path / "saved_model.pb").is_file():
        raise ScanError(
            "is a model of TensorFlow, not of PyTorch", "export it to ONNX with tf2onnx, and give that file"
        )
    if (path / "data.pkl").is_file():
        raise ScanError("is a file of torch.save that was unpacked", "give the file itself, as it was downloaded")
    if (path / ".metadata").is_file() and any(path.glob("*.distcp")):
        raise ScanError(
            "is a checkpoint of torch.distributed.checkpoint, whose tensors are in several files",
            "join them, if you trust its author, because that unpickles: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER NEW.pth, and give NEW.pth",
        )
    if shards := next(path.glob("*.index.json"), None):
        raise ScanError(
            f"is a checkpoint in several files ({plain(shards.name)})",
            "join them into one: load each, and save the state_dict as one safetensors file",
        )
    if (path / _GRAPH_OVER_TEXTS).is_file():
        files.insert(0, _GRAPH_OVER_TEXTS)
    if files:
        raise ScanError("is neither a bundle nor a repository", f"give the file in it: {plain(', '.join(files))}")
    raise ScanError(
        "is a folder without a bundle or a model in it", "give a model's file, or a folder of flambeau build"
    )


def _refuse_unlisted(path: Path, manifest: storage.Manifest) -> None:
    """Raise `ScanError` where a graph keeps weights in a file that the manifest does not list: it would not be
    verified."""
    for name in (storage.ONNX, storage.OPTIMISED_ONNX, storage.INT8_ONNX):
        if name not in manifest.members or not (path / name).is_file():
            continue
        with (path / name).open("rb") as file:
            found = onnx.read(file, os.fstat(file.fileno()).st_size, folder=path)
        for place in found.external:
            if str(PurePosixPath(place)) not in manifest.members:
                raise ScanError(
                    f"is a bundle whose {name} keeps weights in {plain(place)}, which is not a member of it",
                    "build it again with flambeau build",
                )


def _bundle_report(path: Path, size: int) -> Report:
    try:
        with (path / storage.MANIFEST).open("rb") as file:
            header: Any = msgspec.json.decode(file.read(_LARGEST_MANIFEST))
        if header.get("format") != storage.FORMAT:
            raise ScanError(
                f"is a bundle of format {plain(str(header.get('format')))}; this flambeau reads {storage.FORMAT}",
                "build it again with flambeau build",
            )
        manifest = msgspec.convert(header, storage.Manifest, str_keys=True)  # JSON has no other keys
    except (msgspec.MsgspecError, AttributeError, RecursionError):
        raise ScanError(
            f"is a bundle whose {storage.MANIFEST} is damaged", "build it again with flambeau build"
        ) from None
    if fault := storage.members_fault(path, manifest):
        raise ScanError(f"is a bundle that {plain(fault)}", "build it again with flambeau build")
    _refuse_unlisted(path, manifest)
    facts = {
        "name": plain(manifest.name),
        "engine": manifest.engine,
        "flambeau": plain(manifest.flambeau),
    }
    if manifest.outputs:
        facts["outputs"] = plain(", ".join(f"{each.name} {each.dtype}{[*each.shape]}" for each in manifest.outputs))
    facts["task"] = manifest.what_it_does
    facts["activation"] = str(manifest.activated_by)
    if manifest.one_row:
        facts["one row"] = plain(f"at a time, because {manifest.one_row}")
    if manifest.architecture:
        facts["architecture"] = plain(manifest.architecture.name)
    code = getattr(manifest.pipeline, "code", None) or (manifest.architecture and manifest.architecture.code)
    if code is None:
        return Report("bundle", "data", size, facts=facts)
    return Report(
        "bundle", "code", size, facts=facts,
        reason=f"is a bundle with its author's code in it ({plain(code.name)}), which runs when it is served",
        remedy="give --allow-code if you trust its author",
    )  # fmt: skip
