"""Pickles, archives and headers put together byte by byte, with whatever lies they are told to tell.

For files that no honest program writes: `hostile` makes its corpus of them.
"""

import io
import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, function: str) -> bytes:
    return f"c{module}\n{function}\n".encode()


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def call(module: str, function: str, *arguments: bytes) -> bytes:
    return name(module, function) + tuple_of(*arguments) + b"R"


def dict_of(members: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in members.items()) + b"u"


def pickle(body: bytes, *, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage", *, last: bytes = b"") -> bytes:
    return tuple_of(text("storage"), name("torch", kind), text(key), text("cpu"), number(count), last) + b"Q"


def tensor(
    of: bytes = storage(), *, offset: int = 0, size: Iterable[int] = (4,), stride: Iterable[int] = (1,)
) -> bytes:
    hooks = call("collections", "OrderedDict")
    return call(
        "torch._utils", "_rebuild_tensor_v2", of, number(offset), tuple_of(*map(number, size)),
        tuple_of(*map(number, stride)), b"\x89", hooks,
    )  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A member, and what its directory entry and its header say in place of the truth."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    attributes: int = 0
    crc: int | None = None
    packed: int | None = None
    size: int | None = None
    header_name: str | None = None
    header_at: int | None = None
    extra: bytes = b""


def zipped(*members: Member, comment: bytes = b"", count: int | None = None, before: bytes = b"") -> bytes:
    file, directory = io.BytesIO(), io.BytesIO()
    file.write(before)
    for member in members:
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        data = packer.compress(member.data) + packer.flush() if member.method == 8 else member.data
        crc = zlib.crc32(member.data) if member.crc is None else member.crc
        packed = len(data) if member.packed is None else member.packed
        size = len(member.data) if member.size is None else member.size
        shared = struct.pack("<HHIIII", member.flags, member.method, 0, crc, packed, size)
        at = file.tell() if member.header_at is None else member.header_at
        here, there = (member.header_name or member.name).encode(), member.name.encode()
        if member.header_at is None:
            file.write(b"PK\3\4\0\0" + shared + struct.pack("<HH", len(here), 0) + here + data)
        directory.write(b"PK\1\2\0\0\0\0" + shared + struct.pack("<HH", len(there), len(member.extra)))
        directory.write(struct.pack("<HHHII", 0, 0, 0, member.attributes, at) + there + member.extra)
    start, listed = file.tell(), len(members) if count is None else count
    file.write(directory.getvalue())
    file.write(
        b"PK\5\6\0\0\0\0" + struct.pack("<HHIIH", listed, listed, len(directory.getvalue()), start, len(comment))
    )
    return file.getvalue() + comment


def saved(body: bytes, *more: Member, weights: bytes = b"\0" * 16, **lies: object) -> bytes:
    """What `torch.save` would write for the pickle `body`, with one storage."""
    first = Member("m/data.pkl", body, **lies)  # type: ignore[arg-type]
    return zipped(first, Member("m/data/0", weights), Member("m/version", b"3\n"), *more)


def legacy(
    *, body: bytes = b"}.", first: bytes = b"", system: bytes = b"", keys: bytes = b"]", after: bytes = b""
) -> bytes:
    magic = first or pickle(b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19")
    told = system or pickle(dict_of({"little_endian": b"\x88"}))
    return magic + pickle(b"M\xe9\x03") + told + body + pickle(keys) + after


def tar(**members: bytes) -> bytes:
    file = io.BytesIO()
    for member, data in members.items():
        head = bytearray(512)
        head[: len(member)] = member.encode()
        head[100:108], head[124:136], head[156:157], head[257:265] = (
            b"0000644\0", f"{len(data):011o}\0".encode(), b"0", b"ustar\x0000",
        )  # fmt: skip
        head[148:156] = b" " * 8
        head[148:156] = f"{sum(head):06o}\0 ".encode()
        file.write(bytes(head) + data + b"\0" * (-len(data) % 512))
    return file.getvalue() + b"\0" * 1024


def old(**members: bytes) -> bytes:
    empty = {name: pickle(b"K\0") + pickle(b"]") for name in ("sys_info", "storages", "tensors")}
    return tar(**(empty | {"pickle": pickle(b"}")} | members))


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    told = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(told) if length is None else length) + told + data


def described(**changed: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changed


def protobuf(*fields: tuple[int, int | bytes]) -> bytes:
    file = io.BytesIO()
    for tag, value in fields:
        file.write(_varint(tag << 3 | isinstance(value, bytes) * 2))
        file.write(_varint(len(value)) + value if isinstance(value, bytes) else _varint(value))
    return file.getvalue()


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(data) + bytes([value])


def onnx(graph: bytes) -> bytes:
    return protobuf((1, 8), (2, b"hostile"), (7, graph), (8, protobuf((2, 17))))
