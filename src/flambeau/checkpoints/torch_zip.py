"""What `torch.save` has written since 1.6: a zip archive with one pickle, and a member for each storage."""

import re
from typing import Any

from flambeau.checkpoints import pickle_vm
from flambeau.checkpoints.allowlist import ITEM_SIZES, STORAGES
from flambeau.checkpoints.pickle_stack import Named, Storage
from flambeau.checkpoints.pickle_vm import Pickled
from flambeau.checkpoints.report import DOWNLOAD_AGAIN, ScanError, plain
from flambeau.checkpoints.zip_archive import STORED, Archive

_LONGEST_KEY = 200

_RECORDS = {
    "version": re.compile(rb"[1-9][0-9]?\n?"),
    "byteorder": re.compile(rb"little|big"),
    ".format_version": re.compile(rb"[0-9]{1,3}"),
    ".storage_alignment": re.compile(rb"[0-9]{1,6}"),
    ".data/serialization_id": re.compile(rb"[0-9]{1,64}"),
}
"""What lies in an archive beside the pickle and the storages, and what torch makes numbers of."""


def is_one(archive: Archive) -> bool:
    """Whether an archive has a `data.pkl` in a folder at its top, or claims to."""
    return any(name.casefold().rpartition("/")[2] == "data.pkl" for name in archive.members)


def read(archive: Archive) -> Pickled:
    """What the archive's pickle describes. Raises `ScanError` where the archive itself is not as torch writes it."""
    top = next(iter(archive.members)).partition("/")[0]
    for name, member in archive.members.items():
        if not name.startswith(f"{top}/"):
            raise ScanError(f"holds {plain(name)} outside its folder {plain(top)}, where torch.save writes everything")
        if member.method != STORED:
            raise ScanError(
                f"packs {plain(name)} by compression ({member.packed:,} bytes for {member.size:,}), which torch.save "
                "never does",
                "if a program of yours has packed it again, unpack it and save it anew with torch.save",
            )
    pickles_inside = [name for name in archive.members if name.casefold().rpartition("/")[2] == "data.pkl"]
    if pickles_inside != [f"{top}/data.pkl"]:
        raise ScanError("holds more than one data.pkl, or none where torch looks for it")
    for name, fits in _RECORDS.items():
        record = f"{top}/{name}"
        if record in archive.members and not fits.fullmatch(archive.read(record, limit=64)):
            raise ScanError(f"holds a record {name} that torch.save does not write", DOWNLOAD_AGAIN)
    data = archive.read(f"{top}/data.pkl", limit=pickle_vm.MOST_BYTES)
    found = pickle_vm.read(data, of_storage=_Storages(archive, top))
    if found.fault is None and found.end != len(data):
        found.fault = ScanError(f"has {len(data) - found.end:,} bytes after the end of its pickle")
    return found


class _Storages:
    """Persistent ids to storages, each held to the size of its member."""

    def __init__(self, archive: Archive, top: str) -> None:
        self._archive = archive
        self._top = top
        self._known: dict[str, Storage] = {}

    def __call__(self, identity: Any) -> Storage:
        storage = storage_of(identity, parts=5)
        if known := self._known.get(storage.key):
            if (known.dtype, known.size) != (storage.dtype, storage.size):
                raise ScanError(f"describes its storage {plain(storage.key)} in two ways that contradict each other")
            return known
        member = self._archive.members.get(f"{self._top}/data/{storage.key}")
        if member is None:
            raise ScanError(f"lacks the storage {plain(storage.key)} that its tensors lie in", DOWNLOAD_AGAIN)
        if member.size != storage.size:
            raise ScanError(
                f"declares a storage of {storage.size:,} bytes where it holds {member.size:,} (CVE-2026-24747 is a lie "
                "of this kind)"
            )
        self._known[storage.key] = storage
        return storage


def storage_of(identity: Any, *, parts: int) -> Storage:
    """The storage that a persistent id of torch describes. Raises `ScanError` for any other id."""
    if type(identity) is not tuple or len(identity) != parts or identity[0] != "storage":
        raise ScanError("asks for a persistent object that is no storage of tensors")
    kind, key, location, count = identity[1:5]
    if not isinstance(kind, Named) or kind.name not in STORAGES:
        raise ScanError("asks for a storage of a kind that holds no plain numbers")
    texts = type(key) is str and len(key) <= _LONGEST_KEY and type(location) is str
    if not texts or type(count) is not int or not 0 <= count < 2**60:
        raise ScanError("describes a storage in a way that torch.save does not write")
    dtype = STORAGES[kind.name]
    return Storage(key, dtype, count * ITEM_SIZES[dtype])
