"""Files made to harm whoever loads them: the corpus of T-01 to T-05 and T-25, written without torch.

Every payload touches the canary file it is given when it runs. No test loads one of them, but for the control that
shows that payloads would work.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support import forge
from tests.support.forge import (
    Member,
    call,
    dict_of,
    name,
    number,
    pickle,
    saved,
    storage,
    tensor,
    text,
    tuple_of,
    zipped,
)

Make = Callable[[str], bytes]
"""The path of the canary to the bytes of a file."""


@dataclass(frozen=True)
class Hostile:
    """A file, the fault it belongs to, and words that its reason holds. `code` marks what only `--allow-code` opens."""

    name: str
    fault: str
    words: tuple[str, ...]
    make: Make
    code: bool = False
    suffix: str = ".pth"


def write_corpus(folder: Path, canary: Path) -> dict[str, Path]:
    """Write every case into a folder: the files by the names of the cases."""
    files = {}
    for case in CORPUS:
        files[case.name] = folder / f"{case.name}{case.suffix}"
        files[case.name].write_bytes(case.make(str(canary)))
    return files


def script(canary: str) -> bytes:
    return text(f"__import__('pathlib').Path({canary!r}).touch()")


def shell(canary: str) -> bytes:
    return text(f"touch {canary}")


def run(canary: str) -> bytes:
    """The payload of most."""
    return call("os", "system", shell(canary))


def good(*more: Member) -> bytes:
    """An honest file, where the lie is not in the pickle."""
    return saved(pickle(dict_of({"w": tensor()})), *more)


def _payload(module: str, function: str, arguments: Callable[[str], bytes], could: str = "") -> Hostile:
    """A pickle that calls one function, in an archive of torch's."""
    return Hostile(
        f"calls-{module}.{function}", "T-01", (f"{module}.{function}", could or "could"),
        lambda canary: saved(pickle(name(module, function) + b"(" + arguments(canary) + b"tR")),
    )  # fmt: skip


PAYLOADS = (
    _payload("os", "system", shell, "any command"),
    _payload("posix", "system", shell, "any command"),
    _payload("os", "popen", shell, "any command"),
    _payload("os", "execlp", lambda c: text("touch") * 2 + text(c), "any command"),
    _payload("subprocess", "Popen", lambda c: b"](" + text("touch") + text(c) + b"e", "any command"),
    _payload("subprocess", "check_output", lambda c: b"](" + text("touch") + text(c) + b"e", "any command"),
    _payload("pty", "spawn", lambda c: b"](" + text("touch") + text(c) + b"e", "any command"),
    _payload("builtins", "eval", script, "any Python code"),
    _payload("builtins", "exec", script, "any Python code"),
    _payload("builtins", "compile", lambda c: script(c) + text("x") + text("exec"), "any Python code"),
    _payload("builtins", "__import__", lambda c: text("antigravity"), "any Python code"),
    _payload("builtins", "getattr", lambda c: name("posixpath", "os") + text("system"), "any function"),
    _payload("builtins", "open", lambda c: text(c) + text("w"), "files"),
    _payload("runpy", "_run_code", lambda c: script(c) + b"}", "any Python code"),
    _payload("importlib", "import_module", lambda c: text("this"), "any Python code"),
    _payload("pickle", "loads", lambda c: text(pickle(run(c), protocol=0).decode("latin-1")), "unpickle"),
    _payload("torch", "load", text, "unpickle"),
    _payload("torch.hub", "load", text, "any Python code"),
    _payload("torch.storage", "_load_from_bytes", text, "unpickle"),
    _payload("torch.utils._config_module", "load_config", text, "unpickle"),
    _payload("torch.jit.unsupported_tensor_ops", "execWrapper", script, "any Python code"),
    _payload("socket", "create_connection", lambda c: tuple_of(text("127.0.0.1"), number(9)), "other machines"),
    _payload("urllib.request", "urlopen", lambda c: text("http://127.0.0.1:9/"), "other machines"),
    _payload("webbrowser", "open", lambda c: text(f"file://{c}")),
    _payload("shutil", "copyfile", lambda c: text("/etc/hostname") + text(c), "files"),
    _payload("io", "FileIO", lambda c: text(c) + text("w"), "files"),
    _payload("operator", "attrgetter", lambda c: text("system"), "any function"),
    _payload("functools", "partial", lambda c: name("os", "system") + shell(c), "any function"),
    _payload("ctypes", "CDLL", text),
    _payload("code", "InteractiveInterpreter", lambda c: b""),
    _payload("bdb", "Bdb", lambda c: b""),
    _payload("timeit", "timeit", script),
    _payload("cProfile", "run", script),
    _payload("numpy.testing._private.utils", "runstring", lambda c: script(c) + b"}"),
    _payload("pip", "main", lambda c: b"]" + text("install") + b"a"),
    _payload("asyncio.unix_events", "_UnixSubprocessTransport._start", shell),
    _payload("multiprocessing.util", "spawnv_passfds", shell),
)


def _pickled(title: str, words: str, make: Callable[[str], bytes], **more: object) -> Hostile:
    """A whole `data.pkl`, in an archive of torch's."""
    return Hostile(title, "T-01", (words,), lambda canary: saved(make(canary)), **more)  # type: ignore[arg-type]


def _old_call(canary: str) -> bytes:
    return f"cos\nsystem\n(S'touch {canary}'\ntR.".encode()


def _in_memo(canary: str) -> bytes:
    """The two names come out of the memo, where they lie apart from each other and from the call."""
    names = b"X\2\0\0\0osq\0" + b"X\6\0\0\0systemq\1" + b"00"
    return pickle(names + b"h\0h\1\x93" + tuple_of(shell(canary)) + b"R", protocol=4)


OPERATIONS = (
    _pickled("protocol-0", "os.system", _old_call),
    _pickled("protocol-1", "os.system", lambda c: name("os", "system") + tuple_of(shell(c)) + b"R."),
    _pickled("protocol-3", "os.system", lambda c: pickle(run(c), protocol=3)),
    _pickled("protocol-4", "os.system", lambda c: pickle(
        b"\x95\xff\0\0\0\0\0\0\0\x8c\2os\x8c\6system\x93" + tuple_of(shell(c)) + b"R", protocol=4)),
    _pickled("protocol-5", "os.system", lambda c: pickle(
        b"\x8c\2os\x94\x8c\6system\x94\x93" + tuple_of(shell(c)) + b"R", protocol=5)),
    _pickled("inst", "os.system", lambda c: b"(" + shell(c) + b"ios\nsystem\n."),
    _pickled("obj", "os.system", lambda c: b"(" + name("os", "system") + shell(c) + b"o."),
    _pickled("newobj", "os.system", lambda c: pickle(name("os", "system") + tuple_of(shell(c)) + b"\x81")),
    _pickled("newobj-ex", "os.system", lambda c: pickle(
        name("os", "system") + tuple_of(shell(c)) + b"}\x92", protocol=4)),
    _pickled("stack-global-from-memo", "os.system", _in_memo),
    _pickled("stack-global-of-no-string", "STACK_GLOBAL", lambda c: pickle(b"K\1\x8c\6system\x93", protocol=4)),
    _pickled("stack-global-dotted", "torch.serialization.os.system", lambda c: pickle(
        b"\x8c\5torch\x8c\x17serialization.os.system\x93" + tuple_of(shell(c)) + b"R", protocol=4)),
    _pickled("ext1", "EXT", lambda c: pickle(b"\x82\1")),
    _pickled("ext2", "EXT", lambda c: pickle(b"\x83\1\1")),
    _pickled("ext4", "EXT", lambda c: pickle(b"\x84\1\1\1\0")),
    _pickled("python-2-name", "builtins.eval", lambda c: pickle(call("__builtin__", "eval", script(c)))),
    _pickled("python-2-module", "subprocess.getoutput", lambda c: pickle(call("commands", "getoutput", shell(c)))),
    _pickled("escaped-name", "escape", lambda c: pickle(call("torch._util\\x73", "_rebuild_tensor_v2", shell(c)))),
    _pickled("terminal-escape-in-name", "\N{REPLACEMENT CHARACTER}[31m", lambda c: pickle(
        call("os\x1b[31m", "system", shell(c))), code=True),
    _pickled("build-on-class", "os.system", lambda c: pickle(
        name("torch.nn.parameter", "Parameter") + dict_of({"__reduce__": name("os", "system")}) + b"b")),
    _pickled("in-metadata", "os.system", lambda c: pickle(
        call("collections", "OrderedDict") + dict_of({"_metadata": run(c)}) + b"b")),
    _pickled("beside-weights", "os.system", lambda c: pickle(dict_of({"w": tensor(), "z": run(c)}))),
    _pickled("as-key", "os.system", lambda c: pickle(b"}" + run(c) + b"K\1s")),
    _pickled("in-hooks", "os.system", lambda c: pickle(tensor()[:-1] + run(c) + b"R")),
    _pickled("as-persistent-id", "os.system", lambda c: pickle(run(c) + b"Q")),
    _pickled("persistent-text", "PERSID", lambda c: b"Psome text\n."),
    _pickled("persistent-module", "persistent", lambda c: pickle(
        tuple_of(text("module"), name("collections", "OrderedDict"), b"N", b"N") + b"Q")),
    _pickled("after-its-end", "after the end", lambda c: pickle(b"}") + pickle(run(c))),
    _pickled("calls-a-string", "as if it were a function", lambda c: pickle(shell(c) + b")R")),
    _pickled("unheard-of-global", "innocent_tools.tidy", lambda c: pickle(
        call("innocent_tools", "tidy", shell(c))), code=True),
    _pickled("module-of-a-program", "__main__.Net", lambda c: pickle(
        name("__main__", "Net") + b")\x81" + dict_of({"_parameters": b"}", "_modules": b"}"}) + b"b"), code=True),
)  # fmt: skip

CONTAINERS = (
    *(
        Hostile(f"bare-protocol-{protocol}", "T-01", ("os.system", "any command"), make, suffix=suffix)
        for protocol, suffix, make in (
            (0, ".pt", _old_call),
            (1, ".bin", lambda c: name("os", "system") + tuple_of(shell(c)) + b"R."),
            (2, ".safetensors", lambda c: pickle(run(c))),
            (3, ".onnx", lambda c: pickle(run(c), protocol=3)),
            (4, ".pth", _in_memo),
            (5, ".ckpt", lambda c: pickle(b"\x8c\2os\x8c\6system\x93" + tuple_of(shell(c)) + b"R", protocol=5)),
        )
    ),
    Hostile("legacy-object", "T-01", ("os.system",), lambda c: forge.legacy(body=pickle(run(c)))),
    Hostile("legacy-first", "T-01", ("os.system",), lambda c: forge.legacy(first=pickle(run(c)))),
    Hostile("legacy-system", "T-01", ("os.system",), lambda c: forge.legacy(system=pickle(run(c)))),
    Hostile("legacy-keys", "T-01", ("os.system",), lambda c: forge.legacy(keys=run(c))),
    Hostile("legacy-storage-longer", "T-01", ("cut short",), lambda c: forge.legacy(
        body=pickle(dict_of({"w": tensor(storage(count=10**9, last=b"N"), size=(10**9,))})),
        keys=b"](" + text("0") + b"e", after=struct.pack("<q", 10**9))),
    Hostile("legacy-part-beyond", "T-01", ("not within it",), lambda c: forge.legacy(body=pickle(dict_of({
        "w": tensor(storage(last=tuple_of(text("part"), number(2), number(3))))})))),
    Hostile("legacy-other-storages", "T-01", ("other storages",), lambda c: forge.legacy(
        body=pickle(dict_of({"w": tensor(storage(last=b"N"))})))),
    Hostile("tar-pickle", "T-01", ("before torch 0.2",), lambda c: forge.old(pickle=pickle(run(c))), suffix=".tar"),
    Hostile("tar-of-anything", "T-05", ("tar archive",), lambda c: forge.tar(**{"../../evil": b"x"})),
    Hostile("nested-zip", "T-01", ("zip archive with a model",), lambda c: zipped(
        Member("inner.pth", saved(pickle(run(c)))))),
    Hostile("two-pickles", "T-01", ("data.pkl",), lambda c: good(Member("m/other/data.pkl", pickle(run(c))))),
    Hostile("two-names-but-for-case", "T-01", ("two members",), lambda c: good(Member("m/DATA.pkl", pickle(run(c))))),
    Hostile("same-name-twice", "T-05", ("two members",), lambda c: good(Member("m/data.pkl", pickle(run(c))))),
    Hostile("wrong-crc", "T-01", ("checksum (CRC)",), lambda c: saved(pickle(run(c)), crc=1)),
    Hostile("flag-encrypted", "T-01", ("encrypted",), lambda c: saved(pickle(run(c)), flags=1)),
    Hostile("flag-patched", "T-01", ("flags",), lambda c: saved(pickle(run(c)), flags=0x20)),
    Hostile("other-name-in-header", "T-01", ("another in its header",), lambda c: saved(
        pickle(b"}"), header_name="m/data.pk!")),
    Hostile("outside-its-folder", "T-01", ("outside its folder",), lambda c: good(Member("other/x", b"x"))),
    Hostile("before-the-archive", "T-01", ("hides", "bytes"), lambda c: zipped(
        Member("m/data.pkl", pickle(b"}")), before=b"PK" + pickle(run(c)))),
    Hostile("with-a-comment", "T-01", ("cut short",), lambda c: zipped(
        Member("m/data.pkl", pickle(b"}")), comment=b"#!")),
)  # fmt: skip


def _lie(title: str, words: str, body: bytes, **more: object) -> Hostile:
    return Hostile(title, "T-01", (words,), lambda canary: saved(pickle(body), **more))  # type: ignore[arg-type]


_WHOLE = tensor(storage(count=2**18), size=(2**18,))

LIES = (
    _lie("setitem-on-list", "CVE-2026-24747", b"]" + b"K\0K\1s"),
    _lie("setitems-on-tensor", "CVE-2026-24747", tensor() + b"(K\0K\1u"),
    _lie("append-to-dict", "CVE-2026-24747", b"}K\1a"),
    _lie("appends-to-tuple", "CVE-2026-24747", b")(K\1e"),
    _lie("storage-longer-than-its-member", "4,000,000,000", dict_of({
        "w": tensor(storage(count=10**9), size=(10**9,))})),
    _lie("storage-shorter-than-its-member", "12 bytes", dict_of({"w": tensor(storage(count=3), size=(3,))})),
    _lie("storage-missing", "lacks the storage", dict_of({"w": tensor(storage("9"))})),
    _lie("storage-negative", "describes a storage", dict_of({"w": tensor(storage(count=-4))})),
    _lie("storage-of-two-kinds", "two ways", dict_of({"w": tensor(), "v": tensor(storage(kind="IntStorage"))})),
    _lie("offset-beyond", "over the end", dict_of({"w": tensor(offset=1)})),
    _lie("stride-beyond", "over the end", dict_of({"w": tensor(stride=(2,))})),
    _lie("size-negative", "_rebuild_tensor_v2", dict_of({"w": tensor(size=(-1,))})),
    _lie("size-overflow", "over the end", dict_of({"w": tensor(size=(2**32, 2**32), stride=(2**32, 1))})),
    _lie("expanded-without-end", "grow", dict_of({"w": tensor(size=(2**40,), stride=(0,))})),
    _lie("one-storage-many-times", "share storages", dict_of({str(index): _WHOLE for index in range(200)}),
        weights=b"\0" * 2**20),
    _lie("allocates-bytearray", "builtins.bytearray", call("builtins", "bytearray", number(10**12))),
    _lie("allocates-tensor", "torch.Tensor", call("torch", "Tensor", number(10**12))),
    _lie("allocates-storage", "torch.storage.UntypedStorage", call("torch.storage", "UntypedStorage", number(10**12))),
    _lie("numpy-object", "numpy.dtype", call("numpy", "dtype", text("O8"))),
    _lie("numpy-dtype-with-fields", "BUILD", call("numpy", "dtype", text("f8"), b"\x89", b"\x88")
        + tuple_of(b"K\3", text("<"), b"N", text("a"), b"}", number(-1), number(-1), b"K\0") + b"b"),
    _lie("sparse", "sparse", call("torch._utils", "_rebuild_sparse_tensor", b"N", b"N")),
    _lie("many-operations", "operations", b"(" + b"K\0" * 700_000 + b"l"),
    _lie("deep-tuple-as-key", "as a key", b"})" + b"\x85" * 300_000 + b"K\1s"),
    _lie("deep-lists", "operations", b"]" * 350_000 + b"a" * 349_999),
    _lie("doubling", "as a key", b"})q\0" + b"h\0\x86q\0" * 60 + b"K\1s"),
    _lie("huge-number", "describes a storage", dict_of({"w": tensor(storage(count=0).replace(
        number(0) + b"t", b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"t"))})),
    _lie("string-longer-than-file", "cut short", b"\x8d" + struct.pack("<Q", 2**62)),
    _lie("no-stop", "cut short", b"}" + b"}" * 10 + b"N" + b"(" * 3 + b"X\xff\xff\xff\xff"),
    _lie("memo-that-is-not-there", "damaged", b"h\7"),
    _lie("half-a-character", "damaged", dict_of({"w": tensor()})[:-1] + b"X\3\0\0\0\xed\xa0\x80K\1u"),
)  # fmt: skip

_BOMB = b"\0" * 50_000_000
_NAMES = {
    "parent": "m/../../evil", "absolute": "/tmp/evil", "drive": "m/C:/evil", "backslash": "m\\..\\evil",
    "null": "m/data\0.pkl", "newline": "m/da\nta", "dot": "m/./x", "empty": "m//x", "long": "m/" + "x" * 500,
}  # fmt: skip

ARCHIVES = (
    Hostile("deflate-bomb", "T-04", ("compression", "50,000,000"), lambda c: saved(_BOMB, method=8)),
    Hostile("deflate-bomb-40-gb", "T-04", ("compression", "4,294,967,290"), lambda c: saved(
        b"\0" * 1000, method=8, size=2**32 - 6)),
    Hostile("bomb-in-mar", "T-04", ("bomb",), lambda c: zipped(
        Member("MAR-INF/MANIFEST.json", b'{"model": {}}'), Member("weights.pth", _BOMB, method=8)), suffix=".mar"),
    Hostile("bomb-of-a-manifest", "T-04", ("50,000,000",), lambda c: zipped(
        Member("MAR-INF/MANIFEST.json", _BOMB, method=8)), suffix=".mar"),
    Hostile("declares-more-than-the-file", "T-04", ("more than the file has",), lambda c: saved(
        pickle(b"}"), packed=10**9, size=10**9)),
    Hostile("overlapping-members", "T-04", ("overlap",), lambda c: good(
        Member("m/data/1", b"\0" * 16, header_at=0, header_name="m/data.pkl"))),
    Hostile("too-many-members", "T-04", ("members",), lambda c: zipped(
        *(Member(f"m/data/{index}", b"") for index in range(66_000)), count=65_000)),
    Hostile("declares-many-members", "T-04", ("directory",), lambda c: zipped(
        Member("m/data.pkl", b"}."), count=60_000)),
    Hostile("zip64-that-is-not-there", "T-04", ("64-bit",), lambda c: zipped(
        Member("m/data.pkl", b"}."), count=0xFFFF)),
    Hostile("zip64-of-exabytes", "T-04", ("more than the file has",), lambda c: saved(
        pickle(b"}"), packed=2**32 - 1, size=2**32 - 1, extra=struct.pack("<HHQQ", 1, 16, 2**60, 2**60))),
    Hostile("symbolic-link", "T-05", ("link",), lambda c: good(Member("m/x", b"/etc", attributes=0o120777 << 16))),
    Hostile("device", "T-05", ("device",), lambda c: good(Member("m/x", b"", attributes=0o060666 << 16))),
    *(
        Hostile(f"name-{title}", "T-05", ("name that leads elsewhere",), lambda c, n=bad: good(Member(n, b"x")))  # type: ignore[misc]
        for title, bad in _NAMES.items()
    ),
)  # fmt: skip


def _header(title: str, words: str, header: object, data: bytes = b"\0" * 16, **more: object) -> Hostile:
    return Hostile(
        f"safetensors-{title}", "T-25", (words,),
        lambda canary: forge.safetensors(header, data, **more), suffix=".safetensors",  # type: ignore[arg-type]
    )  # fmt: skip


_ONE = {"w": forge.described()}

HEADERS = (
    _header("endless-header", "header of", _ONE, length=2**63),
    _header("header-of-100-mb", "header of", _ONE, length=100_000_000),
    _header("header-beyond-the-file", "cut short", _ONE, length=1000),
    _header("no-json", "JSON", b"{w:1}"),
    _header("deep-json", "shape", b'{"w":{"dtype":"F32","data_offsets":[],"shape":%b}}' % (b"[" * 900 + b"]" * 900)),
    _header("deeper-json", "more parts", b'{"w":' + b'{"a":' * 200_000 + b"1" + b"}" * 200_001),
    _header("million-brackets", "more parts", b'{"w":' + b"[" * 2_000_000 + b"}"),
    _header("key-twice", "twice", b'{"w":%b,"w":%b}' % ((b'{"dtype":"U8","shape":[16],"data_offsets":[0,16]}',) * 2)),
    _header("overlap", "overlap", {"w": forge.described(), "v": forge.described(shape=[2], data_offsets=[8, 16])}),
    _header("gap", "gap", {"w": forge.described(shape=[3], data_offsets=[4, 16])}),
    _header("bytes-after-the-end", "after its last", _ONE, b"\0" * 20),
    _header("ends-early", "cut short", _ONE, b"\0" * 12),
    _header("unknown-dtype", "dtype", {"w": forge.described(dtype="OBJECT")}),
    _header("shape-of-more", "shape and dtype", {"w": forge.described(shape=[2**40])}),
    _header("shape-that-overflows", "shape and dtype", {"w": forge.described(shape=[2**62, 4])}),
    _header("shape-of-fractions", "whole numbers", {"w": forge.described(shape=[4.0])}),
    _header("offsets-negative", "whole numbers", {"w": forge.described(data_offsets=[-16, 0])}),
    _header("offsets-backwards", "shape and dtype", {"w": forge.described(data_offsets=[16, 0])}),
    _header("metadata-of-numbers", "metadata", {"__metadata__": {"a": 1}, **_ONE}),
    _header("more-than-it-may", "other things", {"w": forge.described(code="import os")}),
    _header("tensors-without-number", "32,768", {
        str(index): forge.described(shape=[0], data_offsets=[0, 0]) for index in range(66_000)}),
)  # fmt: skip

_ELSEWHERE = forge.protobuf((1, b"location"), (2, b"../../etc/passwd"))
_EXTERNAL = forge.protobuf((5, forge.protobuf((8, b"w"), (13, _ELSEWHERE))))

OTHERS = (
    Hostile("torchscript", "T-02", ("TorchScript",), lambda c: zipped(
        Member("m/data.pkl", pickle(run(c))), Member("m/constants.pkl", pickle(b")")),
        Member("m/code/__torch__.py", b"x")), code=True, suffix=".pt"),
    Hostile("pt2", "T-02", ("torch.export",), lambda c: zipped(
        Member("m/archive_format", b"pt2"), Member("m/data/sample_inputs/model.pt", good())), code=True, suffix=".pt2"),
    Hostile("mar", "T-02", ("TorchServe",), lambda c: zipped(
        Member("MAR-INF/MANIFEST.json", b'{"model": {"modelName": "evil", "handler": "evil.py"}}'),
        Member("evil.py", b"import os")), code=True, suffix=".mar"),
    Hostile("torchscript-and-data", "T-02", ("TorchScript",), lambda c: good(
        Member("m/constants.pkl", pickle(run(c)))), code=True),
    Hostile("onnx-leaves-its-folder", "T-05", ("outside its own folder",), lambda c: forge.onnx(_EXTERNAL)),
    Hostile("onnx-of-many-parts", "T-04", ("parts",), lambda c: forge.onnx(b"\x0a\0" * 700_000), suffix=".onnx"),
    Hostile("onnx-longer-than-file", "T-04", ("cut short",), lambda c: forge.onnx(b"x")[:-6] + b"\x3a\xff\xff\xff\x7f"),
)  # fmt: skip

CORPUS = (*PAYLOADS, *OPERATIONS, *CONTAINERS, *LIES, *ARCHIVES, *HEADERS, *OTHERS)
