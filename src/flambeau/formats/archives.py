"""Zip archives that carry code: TorchScript, `torch.export`'s `.pt2` and TorchServe's `.mar`, told by their members.

Nothing in them is run or imported, and of the whole archive at most a manifest is unpacked.
"""

from typing import Any

import msgspec

from flambeau.formats.refusals import Refusal, plain
from flambeau.formats.zips import Archive

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
    """Raise `Refusal` for an archive that unpacks to far more than it is (T-04)."""
    packed = sum(member.packed for member in archive.members.values())
    unpacked = sum(member.size for member in archive.members.values())
    if unpacked > _MOST_TIMES * packed + _FREE_BYTES:
        raise Refusal(f"would unpack to {unpacked:,} bytes from {packed:,}: more than {_MOST_TIMES} times is a bomb")


def mar_facts(archive: Archive) -> dict[str, str]:
    """What the manifest of a `.mar` says: model, version, handler, weights. Raises `Refusal` for a damaged one."""
    if len(archive.members) > _MOST_MAR_MEMBERS:
        raise Refusal(f"holds {len(archive.members):,} members; {_MOST_MAR_MEMBERS:,} are enough for any .mar")
    try:
        manifest: Any = msgspec.json.decode(archive.read(_MAR_MANIFEST, limit=_LARGEST_MANIFEST))
    except (msgspec.DecodeError, RecursionError):
        raise Refusal(f"is a .mar whose {_MAR_MANIFEST} is not JSON") from None
    model = manifest.get("model") if isinstance(manifest, dict) else None
    if not isinstance(model, dict):
        raise Refusal(f"is a .mar whose {_MAR_MANIFEST} names no model")
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
