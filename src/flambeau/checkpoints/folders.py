"""Folders: a bundle, a repository of bundles, or something else, with the files in it that may be what was meant."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from flambeau.bundle import storage
from flambeau.checkpoints import onnx
from flambeau.checkpoints.report import Report, ScanError, plain

_MOST_FILES = 10_000
_LARGEST_MANIFEST = 2**20
_LIKELY = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".onnx", ".pt2")


def read(path: Path) -> Report:
    """What a folder is. Raises `ScanError` for one that holds no bundle."""
    size = sum(file.stat().st_size for file in islice(path.rglob("*"), _MOST_FILES) if file.is_file())
    if (path / storage.MANIFEST).is_file():
        return _bundle(path, size)
    names = sorted({place.relative_to(path).parts[0] for place in islice(_manifests(path), _MOST_FILES)})
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
            "is a checkpoint of torch.distributed.checkpoint, whose tensors lie in parts",
            "join them, if you trust whoever wrote it, for that unpickles: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER NEW.pth, and give NEW.pth",
        )
    if shards := next(path.glob("*.index.json"), None):
        raise ScanError(
            f"is a checkpoint in several files ({plain(shards.name)})",
            "join them into one: load each, and save the state_dict as one safetensors file",
        )
    if files:
        raise ScanError("is neither a bundle nor a repository", f"give the file in it: {plain(', '.join(files))}")
    raise ScanError(
        "is a folder without a bundle or a model in it", "give a model's file, or a folder of flambeau build"
    )


def _manifests(path: Path) -> Iterator[Path]:
    """The manifests of a repository: NAME/manifest.json, or NAME/VERSION/manifest.json."""
    for pattern in (f"*/{storage.MANIFEST}", f"*/*/{storage.MANIFEST}"):
        yield from path.glob(pattern)


def _refuse_unlisted(path: Path, manifest: storage.Manifest) -> None:
    """Raise `ScanError` where a graph keeps weights in a file that the manifest does not list, and so nobody
    verifies."""
    for name in (storage.ONNX, storage.OPTIMISED_ONNX, storage.INT8_ONNX):
        if name not in manifest.members or not (path / name).is_file():
            continue
        with (path / name).open("rb") as file:
            found = onnx.read(file, os.fstat(file.fileno()).st_size, folder=path)
        for place in found.external:
            if str(PurePosixPath(place)) not in manifest.members:
                raise ScanError(
                    f"is a bundle whose {name} keeps weights in {plain(place)}, which is no member of it",
                    "build it again with flambeau build",
                )


def _bundle(path: Path, size: int) -> Report:
    try:
        with (path / storage.MANIFEST).open("rb") as file:
            said: Any = msgspec.json.decode(file.read(_LARGEST_MANIFEST))
        if said.get("format") != storage.FORMAT:
            raise ScanError(
                f"is a bundle of format {plain(str(said.get('format')))}; this flambeau reads {storage.FORMAT}",
                "build it again with flambeau build",
            )
        manifest = msgspec.convert(said, storage.Manifest, str_keys=True)  # JSON has no other keys
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
        facts["one row"] = plain(f"at a time, for {manifest.one_row}")
    if manifest.architecture:
        facts["architecture"] = plain(manifest.architecture.name)
    code = getattr(manifest.pipeline, "code", None) or (manifest.architecture and manifest.architecture.code)
    if code is None:
        return Report("bundle", "data", size, facts=facts)
    return Report(
        "bundle", "code", size, facts=facts,
        reason=f"is a bundle with code of its author's in it ({plain(code.name)}), which runs when it is served",
        remedy="give --allow-code if you trust whoever wrote it",
    )  # fmt: skip
