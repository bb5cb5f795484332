"""The formats of `torch.save`: since 1.6 a zip archive of one pickle and the storages, before that a stream of both."""

import re
import struct
from functools import partial
from typing import Any, BinaryIO

from flambeau.checkpoints import pickle_vm
from flambeau.checkpoints.allowlist import ITEM_SIZES, STORAGES
from flambeau.checkpoints.pickle_stack import Named, Storage
from flambeau.checkpoints.pickle_vm import Pickled
from flambeau.checkpoints.report import DOWNLOAD_AGAIN, ScanBudget, ScanError, plain
from flambeau.checkpoints.zip_archive import STORED, Archive

_LONGEST_KEY = 200

_RECORDS = {
    "version": re.compile(rb"[1-9][0-9]?\n?"),
    "byteorder": re.compile(rb"little|big"),
    ".format_version": re.compile(rb"[0-9]{1,3}"),
    ".storage_alignment": re.compile(rb"[0-9]{1,6}"),
    ".data/serialization_id": re.compile(rb"[0-9]{1,64}"),
}
"""Records in an archive other than the pickle and the storages, and the contents that torch writes there."""


def is_zip(archive: Archive) -> bool:
    """Whether an archive has a member called `data.pkl`, in whatever folder and case."""
    return any(name.casefold().rpartition("/")[2] == "data.pkl" for name in archive.members)


def read_zip(archive: Archive) -> Pickled:
    """What the archive's pickle describes. Raises `ScanError` for an archive that torch would not write."""
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
    found = pickle_vm.read(data, of_storage=_StoragesOfZip(archive, top))
    if found.fault is None and found.end != len(data):
        found.fault = ScanError(f"has {len(data) - found.end:,} bytes after the end of its pickle")
    return found


class _StoragesOfZip:
    """Maps persistent ids to storages, and checks each storage's size against its member."""

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
            raise ScanError(f"lacks the storage {plain(storage.key)} that its tensors use", DOWNLOAD_AGAIN)
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
        raise ScanError("asks for a persistent object that is not a storage of tensors")
    kind, key, location, count = identity[1:5]
    if not isinstance(kind, Named) or kind.name not in STORAGES:
        raise ScanError("asks for a storage of a kind that holds no plain numbers")
    texts = type(key) is str and len(key) <= _LONGEST_KEY and type(location) is str
    if not texts or type(count) is not int or not 0 <= count < 2**60:
        raise ScanError("describes a storage in a way that torch.save does not write")
    dtype = STORAGES[kind.name]
    return Storage(key, dtype, count * ITEM_SIZES[dtype])


# The format before torch 1.6: five pickles in a row, then the storages one after the other.


_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_USUAL_BYTES = 2**20
_SAVE_AGAIN = "load it where it was made, and save the weights as safetensors"


def is_legacy(first: Pickled) -> bool:
    """Whether the first pickle of a file is torch's magic number."""
    return type(first.value) is int and first.value == _MAGIC


def read_legacy(file: BinaryIO, size: int) -> Pickled:
    """What the file's pickle describes. Raises `ScanError` if the parts around it are not as torch writes them."""
    for limit in (_USUAL_BYTES, pickle_vm.MOST_BYTES):
        file.seek(0)
        data = file.read(limit)
        storages: dict[str, Storage] = {}
        budget = ScanBudget()
        of_storage = partial(_storage, storages=storages)
        found = pickle_vm.read(data, start=_start(data, budget), of_storage=of_storage, budget=budget)
        keys = pickle_vm.read(data, start=found.end, budget=budget)
        if not (found.fault or keys.fault) or len(data) == size:
            break
    # if the pickle alone shows that these are not weights, its storages do not matter
    if not (found.fault or found.oddity or found.foreign):
        _compare(file, storages, _plain(keys), start=keys.end, size=size)
    return found


def _start(data: bytes, budget: ScanBudget) -> int:
    """The offset of the weights' pickle: after the magic number, the protocol and a dict about the machine."""
    _, position = _value(data, 0, budget)
    protocol, position = _value(data, position, budget)
    system, position = _value(data, position, budget)
    if protocol != _PROTOCOL or type(system) is not dict:
        raise ScanError("begins as torch.save wrote before 1.6, and goes on as something else", DOWNLOAD_AGAIN)
    if system.get("little_endian") is not True:
        raise ScanError("was saved on a machine with another byte order", _SAVE_AGAIN)
    return position


def _value(data: bytes, start: int, budget: ScanBudget) -> tuple[Any, int]:
    found = pickle_vm.read(data, start=start, budget=budget)
    return _plain(found), found.end


def _plain(found: Pickled) -> Any:
    """The value of one of the small pickles around the weights, which may name no global. Raises `ScanError`."""
    if refused := found.fault or found.oddity:
        raise refused
    if found.globals:
        raise ScanError(f"names {plain(next(iter(found.globals)))} where torch writes plain numbers only")
    return found.value


def _storage(identity: Any, storages: dict[str, Storage]) -> Any:
    if type(identity) is tuple and len(identity) == 4 and identity[0] == "module":  # a class with its source code
        kind = identity[1]
        if isinstance(kind, Named) and not kind.harmless:
            return kind
    storage = storage_of(identity, parts=6)
    if identity[1].name == "torch.storage.UntypedStorage":  # for dtypes such as uint16 and the 8-bit floats
        raise ScanError("holds a tensor of a dtype that torch does not read back from this old format", _SAVE_AGAIN)
    known = storages.setdefault(storage.key, storage)
    if (known.dtype, known.size) != (storage.dtype, storage.size):
        raise ScanError(f"describes its storage {plain(storage.key)} in two ways that contradict each other")
    return known if identity[5] is None else _view(known, identity[5])


def _view(storage: Storage, place: Any) -> Storage:
    """A part of a storage with its own key, as torch wrote until 0.4."""
    match place:
        case (str(key), int(offset), int(count)) if 0 <= offset < 2**60 and 0 <= count < 2**60:
            item = ITEM_SIZES[storage.dtype]
            if (offset + count) * item <= storage.size:
                return Storage(key, storage.dtype, count * item)
    raise ScanError(f"describes a part of its storage {plain(storage.key)} that is not within it")


def _compare(file: BinaryIO, storages: dict[str, Storage], keys: Any, *, start: int, size: int) -> None:
    """Check the storages that follow against the pickle: all present, each of the right size, and nothing after."""
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise ScanError("lists other storages than its tensors use")
    position = start
    for key in keys:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            raise ScanError("is cut short: it ends before its last tensor", DOWNLOAD_AGAIN)
        storage = storages[key]
        (count,) = struct.unpack("<q", head)
        if count * ITEM_SIZES[storage.dtype] != storage.size:
            raise ScanError(f"declares a storage of {storage.size:,} bytes where it holds {count:,} elements")
        position += 8 + storage.size
        if position > size:
            raise ScanError("is cut short: it ends before its last tensor", DOWNLOAD_AGAIN)
    if position != size:
        raise ScanError(f"has {size - position:,} bytes after its end")
