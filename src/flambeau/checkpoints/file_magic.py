"""Identify a file by its first bytes and a zip archive by its members: a torch program, or not a supported model."""

import re
from typing import Any

import msgspec

from flambeau.checkpoints.report import DOWNLOAD_AGAIN, ScanError, plain
from flambeau.checkpoints.zip_archive import Archive

_TO_ONNX = "convert it to ONNX, and give that file"
_UNPACK = "unpack it, and give the model's file in it"

_BEGINNINGS: tuple[tuple[re.Pattern[bytes], str, str], ...] = tuple(
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), reason, remedy)
    for pattern, reason, remedy in (
        (
            rb"version https://git-lfs\.github\.com/spec/",
            "is a pointer of Git LFS in place of the file",
            "fetch the file itself with git lfs pull",
        ),
        (
            rb"\s*(<!doctype html|<html|<head)",
            "is a web page, saved in place of a download",
            "open the address in a browser, for it may ask for a login or a consent, and download the file again",
        ),
        (rb"\s*<\?xml", "is XML, perhaps an error message saved in place of a download", DOWNLOAD_AGAIN),
        (rb"\x1f\x8b", "is compressed with gzip", _UNPACK),
        (rb"BZh[1-9]|\xfd7zXZ\0|7z\xbc\xaf\x27\x1c|Rar!|\x28\xb5\x2f\xfd", "is a compressed archive", _UNPACK),
        (rb"\x89HDF\r\n\x1a\n", "is HDF5, which Keras and TensorFlow write", _TO_ONNX),
        (rb"....TFL3", "is a model of TensorFlow Lite", _TO_ONNX),
        (
            rb"\x93NUMPY",
            "is an array of numpy, not a model",
            "save the weights with torch.save(model.state_dict(), PATH)",
        ),
        (rb"GGUF|ggml|tjgg", "is a language model of llama.cpp (GGUF)", "serve it with llama.cpp"),
        (rb"\x89PNG|\xff\xd8\xff|GIF8|BM....\0\0\0\0|RIFF....WEBP", "is a picture, not a model", "give it to predict"),
        (rb"%PDF", "is a PDF, not a model", "give the model's file"),
        (rb"\x7fELF|MZ.{58}|\xcf\xfa\xed\xfe", "is a program or a library, not a model", "give the model's file"),
        (
            rb"\s*\{\s*\"(metadata|weight_map)\"",
            "is the index of a checkpoint in several files",
            "join them into one: load each, and save the state_dict as one safetensors file",
        ),
        (
            rb"\s*(#!|\"\"\"|'''|import\s|from\s+[\w.]+\s+import\s|class\s+\w|def\s+\w)",
            "is Python source",
            "name the class in it, as FILE:CLASS, with --allow-code",
        ),
        (rb"\s*[\[{]", "is JSON, not a model", "give the model's file"),
    )
)


def of_head(head: bytes) -> ScanError:
    """The refusal of a file in no supported format, by its first bytes."""
    if not head:
        return ScanError("is empty", DOWNLOAD_AGAIN)
    for pattern, reason, remedy in _BEGINNINGS:
        if pattern.match(head):
            return ScanError(reason, remedy)
    if not head.strip(b"\0"):
        return ScanError("begins with zeros only, as a download does that was broken off", DOWNLOAD_AGAIN)
    what = "is text, not a model" if is_text(head) else "is in no format that we know"
    return ScanError(what, "give what torch.save, safetensors, torch.export, torch.jit.save or an ONNX exporter wrote")


def of_archive(archive: Archive) -> ScanError:
    """The refusal of a zip archive that is not a model, by its members."""
    names = [name.lower() for name in archive.members]
    models = [name for name in names if name.endswith((".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".onnx"))]
    if names and all(name.endswith(".npy") for name in names):
        return ScanError("holds arrays of numpy (.npz), not a model", "save the weights with torch.save or safetensors")
    if "model.weights.h5" in names or ("config.json" in names and any(name.endswith(".h5") for name in names)):
        return ScanError("is a model of Keras", _TO_ONNX)
    if models:
        return ScanError("is a zip archive with a model's file in it", _UNPACK)
    if "[content_types].xml" in names:
        return ScanError("is a document of an office program", "give the model's file")
    return ScanError("is a zip archive, and nothing in it says that it is a model", _UNPACK)


def is_text(head: bytes) -> bool:
    """Whether the first bytes of a file are printable text in UTF-8."""
    try:
        head[:-3].decode("utf-8")  # the last character may be cut
    except UnicodeDecodeError:
        return False
    return all(byte >= 0x20 or byte in b"\t\r\n\f" for byte in head)


# Zip archives that carry code, identified by their members: TorchScript, `torch.export`'s `.pt2`, TorchServe's `.mar`.
# Nothing in them is run or imported, and at most a manifest is unpacked.


_MOST_TIMES = 20
_FREE_BYTES = 2**20
_LARGEST_MAR_MANIFEST = 2**20
_MAR_MANIFEST = "MAR-INF/MANIFEST.json"
_MOST_MAR_MEMBERS = 1000

_PT2_MARKS = ("archive_format", "serialized_exported_program.json")


def is_torchscript(archive: Archive) -> bool:
    """Whether `torch.jit.save` wrote it: it has constants, and code in TorchScript's language."""
    return any(_inner(name) == "constants.pkl" for name in archive.members)


def is_pt2(archive: Archive) -> bool:
    """Whether `torch.export.save` wrote it, since torch 2.6 or before."""
    return any(_inner(name) in _PT2_MARKS or name in _PT2_MARKS for name in archive.members)


def is_mar(archive: Archive) -> bool:
    """Whether `torch-model-archiver` wrote it."""
    return _MAR_MANIFEST in archive.members


def most_unpacked(packed: int) -> int:
    """How many bytes an archive of `packed` bytes may unpack to: more is a bomb."""
    return _MOST_TIMES * packed + _FREE_BYTES


def refuse_bomb(archive: Archive) -> None:
    """Raise `ScanError` for an archive that unpacks to far more than its own size (T-04)."""
    packed = sum(member.packed for member in archive.members.values())
    unpacked = sum(member.size for member in archive.members.values())
    if unpacked > most_unpacked(packed):
        raise ScanError(f"would unpack to {unpacked:,} bytes from {packed:,}: more than {_MOST_TIMES} times is a bomb")


def mar_facts(archive: Archive) -> dict[str, str]:
    """Facts from the manifest of a `.mar`: model, version, handler, weights. Raises `ScanError` for a damaged one."""
    if len(archive.members) > _MOST_MAR_MEMBERS:
        raise ScanError(f"holds {len(archive.members):,} members; {_MOST_MAR_MEMBERS:,} are enough for any .mar")
    try:
        manifest: Any = msgspec.json.decode(archive.read(_MAR_MANIFEST, limit=_LARGEST_MAR_MANIFEST))
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
    """A member's name without the top folder."""
    return name.partition("/")[2]
