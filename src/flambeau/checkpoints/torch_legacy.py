"""What `torch.save` wrote before 1.6: five pickles in a row, and then the storages one after the other."""

import struct
from functools import partial
from typing import Any, BinaryIO

from flambeau.checkpoints import pickle_vm
from flambeau.checkpoints.allowlist import ITEM_SIZES
from flambeau.checkpoints.pickle_stack import Named, Storage
from flambeau.checkpoints.pickle_vm import Pickled
from flambeau.checkpoints.report import DOWNLOAD_AGAIN, ScanError, plain
from flambeau.checkpoints.scan_budget import ScanBudget
from flambeau.checkpoints.torch_zip import storage_of

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_USUAL_BYTES = 2**20
_SAVE_AGAIN = "load it where it was made, and save the weights as safetensors"


def is_one(first: Pickled) -> bool:
    """Whether the first pickle of a file is torch's magic number."""
    return type(first.value) is int and first.value == _MAGIC


def read(file: BinaryIO, size: int) -> Pickled:
    """What the file's pickle describes. Raises `ScanError` where the parts around it are not as torch writes them."""
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
    # where the pickle alone tells that these are no weights, its storages do not matter
    if not (found.fault or found.oddity or found.foreign):
        _compare(file, storages, _plain(keys), start=keys.end, size=size)
    return found


def _start(data: bytes, budget: ScanBudget) -> int:
    """Where the pickle of the weights begins: after the magic number, the protocol and a dict about the machine."""
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
    """What one of the small pickles around the others says: numbers and strings, without a global in it."""
    if refused := found.fault or found.oddity:
        raise refused
    if found.globals:
        raise ScanError(f"names {plain(next(iter(found.globals)))} where torch writes plain numbers only")
    return found.value


def _storage(identity: Any, storages: dict[str, Storage]) -> Any:
    if type(identity) is tuple and len(identity) == 4 and identity[0] == "module":  # a class, with its source
        kind = identity[1]
        if isinstance(kind, Named) and not kind.harmless:
            return kind
    storage = storage_of(identity, parts=6)
    if identity[1].name == "torch.storage.UntypedStorage":  # of dtypes such as uint16 and the ones of eight-bit floats
        raise ScanError("holds a tensor of a dtype that torch does not read back from this old format", _SAVE_AGAIN)
    known = storages.setdefault(storage.key, storage)
    if (known.dtype, known.size) != (storage.dtype, storage.size):
        raise ScanError(f"describes its storage {plain(storage.key)} in two ways that contradict each other")
    return known if identity[5] is None else _view(known, identity[5])


def _view(storage: Storage, place: Any) -> Storage:
    """A part of a storage that has a key of its own, as torch wrote until 0.4."""
    match place:
        case (str(key), int(offset), int(count)) if 0 <= offset < 2**60 and 0 <= count < 2**60:
            item = ITEM_SIZES[storage.dtype]
            if (offset + count) * item <= storage.size:
                return Storage(key, storage.dtype, count * item)
    raise ScanError(f"describes a part of its storage {plain(storage.key)} that is not within it")


def _compare(file: BinaryIO, storages: dict[str, Storage], keys: Any, *, start: int, size: int) -> None:
    """Hold the storages that follow to what the pickle said of them: all there, each of its size, and nothing after."""
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise ScanError("lists other storages than its tensors lie in")
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
