"""What `torch.save` wrote before 0.2: a tar archive of four members. torch reads it by unpickling it in full only.

So it is told what lies in it, and it is never loaded as data.
"""

import struct
from typing import Any, BinaryIO

from flambeau.checkpoints import pickle_vm, reduce_calls
from flambeau.checkpoints.allowlist import ITEM_SIZES, STORAGES
from flambeau.checkpoints.pickle_stack import Named, Storage
from flambeau.checkpoints.pickle_vm import Pickled
from flambeau.checkpoints.report import DOWNLOAD_AGAIN, ScanError, plain
from flambeau.checkpoints.scan_budget import ScanBudget

_BLOCK = 512
_MAGIC = slice(257, 262)
_MOST_MEMBERS = 64
_MOST_TENSORS = 65_536
_MOST_OF_ONE = 2**12
"""Bytes in which the description of a storage has room."""
_LARGEST_KEY = 2**60
_MEMBERS = {"sys_info", "pickle", "storages", "tensors"}


def looks_like_tar(head: bytes) -> bool:
    """Whether a file's first block is the header of a tar archive's member."""
    return head[_MAGIC] == b"ustar"


def members(file: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """The members by name, as (start, size). Raises `ScanError` for links, devices and what reaches over the end."""
    found: dict[str, tuple[int, int]] = {}
    position = 0
    while position + _BLOCK <= size and len(found) <= _MOST_MEMBERS:
        file.seek(position)
        head = file.read(_BLOCK)
        if not head.strip(b"\0"):
            break
        if not looks_like_tar(head):
            raise ScanError("is a damaged tar archive", DOWNLOAD_AGAIN)
        name = head[:100].rstrip(b"\0").decode("utf-8", "replace")
        kind = head[156:157]
        try:
            length = int(head[124:136].strip(b"\0 ") or b"0", 8)
        except ValueError:
            raise ScanError("is a tar archive with a member of no plain size") from None
        start = position + _BLOCK
        if start + length > size:
            raise ScanError("is a tar archive that is cut short", DOWNLOAD_AGAIN)
        if kind in (b"x", b"g"):  # the times of the files, in fractions of seconds
            if any(word in file.read(min(length, _BLOCK)) for word in (b"path=", b"size=")):
                raise ScanError("is a tar archive whose members are called otherwise than they say")
        elif kind not in (b"0", b"\0", b"5"):
            raise ScanError(f"is a tar archive with a link or a device in it: {plain(name)}")
        elif name in found:
            raise ScanError(f"is a tar archive with two members called {plain(name)}")
        else:
            found[name] = (start, length)
        position = start + -(-length // _BLOCK) * _BLOCK
    return found


def is_one(found: dict[str, tuple[int, int]]) -> bool:
    """Whether these are the members that torch wrote."""
    return set(found) == _MEMBERS


def read(file: BinaryIO, found: dict[str, tuple[int, int]]) -> Pickled:
    """What the archive's pickle describes, its tensors included. Raises `ScanError` where another part is damaged."""
    budget = ScanBudget()
    known = _storages(file, *found["storages"], budget)
    known |= _tensors(_contents(file, *found["tensors"]), known, budget)
    contents = _contents(file, *found["pickle"])
    return pickle_vm.read(contents, of_storage=lambda identity: _of(identity, known), budget=budget)


def _contents(file: BinaryIO, start: int, size: int) -> bytes:
    if size > pickle_vm.MOST_BYTES:
        raise ScanError(f"holds a pickle of {size:,} bytes, too many for weights")
    file.seek(start)
    return file.read(size)


def _value(data: bytes, budget: ScanBudget, *, start: int = 0) -> tuple[Any, int]:
    """A pickle between others, and where it ends. It may name classes of storages and tensors only."""
    budget.charge(_MOST_OF_ONE)
    found = pickle_vm.read(data, start=start, budget=budget)
    if refused := found.fault or found.oddity:
        raise refused
    if unknown := next((name for name in found.globals if not name.startswith("torch.")), None):
        raise ScanError(f"names {plain(unknown)} where torch writes numbers only")
    return found.value, found.end


def _storages(file: BinaryIO, start: int, size: int, budget: ScanBudget) -> dict[Any, Any]:
    """The storages by their keys: a count, each one's description and contents, and last the views into others."""

    def piece() -> bytes:
        file.seek(position)
        return file.read(min(_MOST_OF_ONE, start + size - position))

    position = start
    count, end = _value(piece(), budget)
    found: dict[Any, Any] = {}
    for _ in range(_count(count)):
        position += end
        match _value(piece(), budget):
            case (int(key), str(), Named(name=name)), end if name in STORAGES and 0 <= key < _LARGEST_KEY:
                dtype = STORAGES[name]
            case _:
                raise ScanError("describes a storage in a way that torch did not write")
        position += end
        (length,) = struct.unpack("<q", piece()[:8].ljust(8, b"\0"))
        taken = length * ITEM_SIZES[dtype]
        end = 8 + taken
        if length < 0 or position + end > start + size:
            raise ScanError("is cut short: it ends before its last storage", DOWNLOAD_AGAIN)
        found[key] = Storage(str(key), dtype, taken)
    return found


def _tensors(data: bytes, storages: dict[Any, Any], budget: ScanBudget) -> dict[Any, Any]:
    """The tensors by their keys: a count, and each one's description, sizes, strides and offset."""
    count, position = _value(data, budget)
    found: dict[Any, Any] = {}
    for _ in range(_count(count)):
        described, position = _value(data, budget, start=position)
        (dimensions,) = struct.unpack_from("<i4x", data.ljust(position + 8, b"\0"), position)
        layout = struct.Struct(f"<{2 * dimensions + 1}q") if 0 <= dimensions < 64 else None
        if layout is None or type(described) is not tuple or len(described) != 3 or not _are_keys(described[:2]):
            raise ScanError("describes a tensor in a way that torch did not write")
        if position + 8 + layout.size > len(data):
            raise ScanError("is cut short: it ends before its last tensor", DOWNLOAD_AGAIN)
        *numbers, offset = layout.unpack_from(data, position + 8)
        position += 8 + layout.size
        key, storage, _kind = described
        size, stride = tuple(numbers[:dimensions]), tuple(numbers[dimensions:])
        found[key] = reduce_calls.call("torch._utils._rebuild_tensor", (storages.get(storage), offset, size, stride))
    return found


def _are_keys(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and 0 <= value < _LARGEST_KEY for value in values)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MOST_TENSORS:
        raise ScanError("counts its tensors in a way that torch did not write")
    return value


def _of(identity: Any, known: dict[Any, Any]) -> Any:
    """A persistent id: the key of a tensor or storage, or a class with its source."""
    if type(identity) is tuple and identity and isinstance(identity[0], Named):
        return identity[0]
    key = int(identity) if type(identity) is str and identity.isdecimal() and len(identity) < 20 else identity
    if type(key) is not int or key not in known:
        raise ScanError("speaks of a tensor that it does not hold", DOWNLOAD_AGAIN)
    return known[key]
