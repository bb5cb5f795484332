"""Small files that cost much to look into: each repeats one operation whose price its argument sets (A4).

Every case is a few megabytes and was made against one place in `flambeau.checkpoints`; `hostile` has the files that
attack by what they say, these attack by what they take.
"""

import struct
from collections.abc import Callable, Iterable

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

_MODULUS = 2**61 - 1
"""What Python takes whole numbers modulo for their hash: all its multiples have the hash 0."""
_LONG = 4_000_000
_OFTEN = 140_000


def _kept(data: bytes, place: int) -> bytes:
    """`data`, whose value is kept in the memo as `place` and taken off the stack."""
    return data + b"r" + struct.pack("<I", place) + b"0"


def _again(function: bytes, argument: bytes, *, times: int = _OFTEN) -> bytes:
    """Call `function` with the one `argument`, over and over, and keep all that comes of it."""
    return _kept(function, 1) + _kept(argument + b"\x85", 2) + b"](" + b"h\1h\2R" * times + b"e"


def _big_dict(count: int = 20_000) -> bytes:
    return dict_of({str(index): b"N" for index in range(count)})


def _list_of(parts: Iterable[bytes]) -> bytes:
    return b"](" + b"".join(parts) + b"e"


def _module(parameters: bytes = b"}", modules: bytes = b"}", **more: bytes) -> bytes:
    state = {"_parameters": parameters, "_modules": modules, "_buffers": b"}", **more}
    return name("__main__", "Net") + b")\x81" + dict_of(state) + b"b"


def _empty(index: int = 0) -> bytes:
    """A tensor without elements, whose size bounds nothing."""
    return tensor(offset=0, size=(0, index), stride=(1, 1))


def _long_keys() -> bytes:
    """Two equal keys of four megabytes, compared at each turn."""
    return _kept(text("k" * _LONG), 1) + _kept(text("k" * _LONG), 2) + b"}(" + b"h\1Nh\2N" * (_OFTEN // 2) + b"u"


def _averaged() -> bytes:
    """A thousand sets of weights that all call themselves averaged, of no two the same."""

    def one(number: int) -> bytes:
        return dict_of({"model_ema": dict_of({f"layer.{number}.{index}": b"h\3" for index in range(120)})})

    return _kept(_empty(), 3) + dict_of({f"n{number}": one(number) for number in range(900)})


def _shared_classes() -> bytes:
    names = _kept(_list_of([*(text(f"n{index}") for index in range(90_000)), b"K\1"]), 1)
    return names + dict_of({str(index): dict_of({"classes": b"h\1", "a": b"N"}) for index in range(30_000)})


def _shared_modules() -> bytes:
    """Modules that share their children, each of which has all the others below it."""
    leaf = _kept(dict_of({"w" * 900: _empty()}), 1)
    chain = _kept(dict_of({f"c{index}": _module(b"h\1") for index in range(9_000)}), 2)
    return leaf + chain + dict_of({f"m{index}": _module(modules=b"h\2") for index in range(9_000)})


def _long_modules() -> bytes:
    """One parameter with a long name, in many modules."""
    shared = _kept(dict_of({"w" * _LONG: _empty()}), 1)
    return shared + _module(modules=dict_of({f"c{index}": _module(b"h\1") for index in range(10_000)}))


def _hidden() -> bytes:
    names = [f"w{index}" for index in range(60_000)]
    shared = _kept(_empty(), 1)
    hidden = call("builtins", "set", _list_of(map(text, (f"x{name}" for name in names))))
    return shared + _module(dict_of(dict.fromkeys(names, b"h\1")), _non_persistent_buffers_set=hidden)


def _old_pickles() -> bytes:
    """Pickles as before 1.6, each with as many operations as one may have."""
    idle = b"(" + b"K\0" * 590_000 + b"1"
    system = pickle(b"(" + b"K\0" * 400_000 + b"1" + dict_of({"little_endian": b"\x88"}))
    return forge.legacy(body=pickle(idle + b"}"), system=system, keys=idle + b"]")


def _header(told: bytes) -> bytes:
    return struct.pack("<Q", len(told)) + told


def _extra_fields() -> bytes:
    """Members whose directory entries are made of empty extra fields, with the sizes after them."""
    extra = struct.pack("<HH", 0x9999, 0) * 16_000 + struct.pack("<HHQQ", 1, 16, 0, 0)
    return zipped(*(Member(f"m/{index}", b"", packed=2**32 - 1, size=2**32 - 1, extra=extra) for index in range(200)))


def _places() -> bytes:
    """An ONNX graph whose every weight lies in another file."""

    def weight(index: int) -> bytes:
        place = forge.protobuf((1, b"location"), (2, b"w%d" % index))
        return forge.protobuf((8, b"n%d" % index), (13, place))

    return forge.onnx(forge.protobuf(*((5, weight(index)) for index in range(42_000))))


def _tensors(count: int, named: Callable[[int], str] = "layer{}.weight".format) -> bytes:
    header = {named(index): forge.described(shape=[0, index % 900], data_offsets=[0, 0]) for index in range(count)}
    return forge.safetensors(header)


def _weights(body: bytes) -> bytes:
    return saved(pickle(body))


CASES: dict[str, Callable[[], bytes]] = {
    "ordered-dict": lambda: _weights(_again(name("collections", "OrderedDict"), _big_dict())),
    "counter": lambda: _weights(_again(name("collections", "Counter"), _big_dict())),
    "pairs": lambda: _weights(_again(
        name("collections", "OrderedDict"), _list_of(tuple_of(number(n), b"N") for n in range(20_000)))),
    "encode": lambda: _weights(
        _kept(name("_codecs", "encode"), 1) + _kept(tuple_of(text("x" * _LONG), text("latin1")), 2)
        + b"](" + b"h\1h\2R" * _OFTEN + b"e"),
    "size": lambda: _weights(_again(name("torch", "Size"), tuple_of(*[b"K\1"] * 250_000), times=80_000)),
    "set": lambda: _weights(_again(name("builtins", "set"), _list_of([b"K\1"] * 200_000), times=80_000)),
    "many-arguments": lambda: _weights(
        _kept(name("pathlib", "PosixPath"), 1) + _kept(tuple_of(*[b"X\0\0\0\0"] * 200_000), 2)
        + b"](" + b"h\1h\2R" * 80_000 + b"e"),
    "build": lambda: _weights(
        _kept(_big_dict(), 1) + call("collections", "OrderedDict") + b"h\1b" * 250_000),
    "numbers-as-keys": lambda: _weights(
        b"}(" + b"".join(number(_MODULUS * index) + b"N" for index in range(1, 120_000)) + b"u"),
    "tuples-as-keys": lambda: _weights(
        b"}(" + b"".join(number(_MODULUS * index) + b"\x85N" for index in range(1, 90_000)) + b"u"),
    "one-long-tuple-as-key": lambda: _weights(
        _kept(tuple_of(*[b"K\1"] * 250_000), 1) + b"}(" + b"h\1N" * 100_000 + b"u"),
    "long-texts-as-keys": lambda: _weights(_long_keys()),
    "long-number-as-key": lambda: _weights(
        _kept(b"\x8b" + struct.pack("<i", _LONG) + b"\x7f" * _LONG, 1) + b"}(" + b"h\1N" * 200_000 + b"u"),
    "places-in-the-memo": lambda: _weights(
        b"N" + b"".join(b"p%d\n" % (_MODULUS * index) for index in range(1, 150_000))),
    "long-global": lambda: saved(pickle(
        _kept(text("m" * _LONG), 1) + _kept(text("n" * 99), 2) + b"](" + b"h\1h\2\x93" * _OFTEN + b"e", protocol=4)),
    "global-of-dots": lambda: _weights(name("a" + ".a" * (_LONG // 2), "b")),
    "globals-of-dots": lambda: _weights(
        b"](" + b"".join(name("a" + ".a" * 240, f"b{index}") for index in range(60_000)) + b"e"),
    "tensors-of-64-dimensions": lambda: _weights(
        _kept(name("torch._utils", "_rebuild_tensor"), 1)
        + _kept(tuple_of(storage(), number(0), tuple_of(*[number(2**61)] * 64), tuple_of(*[number(2**61)] * 64)), 2)
        + b"](" + b"h\1h\2R" * 190_000 + b"e"),
    "long-key-of-a-storage": lambda: _weights(
        _kept(tuple_of(text("storage"), name("torch", "FloatStorage"), text("k" * _LONG), text("cpu"), number(4)), 1)
        + b"](" + b"h\1Q" * 190_000 + b"e"),
    "averaged-weights": lambda: _weights(_averaged()),
    "averaged-prefixes": lambda: _weights(dict_of({
        "model_ema": dict_of({"ema." * 900_000: tensor()}), "model": dict_of({"ema." * 900_000 + "b": tensor()})})),
    "classes-of-many": lambda: _weights(_shared_classes()),
    "class-numbers": lambda: _weights(dict_of({
        "w": tensor(), "class_to_idx": dict_of({f"c{n}": number(_MODULUS * n) for n in range(1, 90_000)})})),
    "modules-that-share": lambda: _weights(_shared_modules()),
    "modules-with-long-names": lambda: _weights(_long_modules()),
    "hidden-buffers": lambda: _weights(_hidden()),
    "old-pickles": _old_pickles,
    "zip-extra-fields": _extra_fields,
    "onnx-places": _places,
    "safetensors-of-32,000": lambda: _tensors(32_000),
    "safetensors-lists": lambda: _header(b'{"a":[' + b"[]," * 5_000_000 + b"[]]}"),
    "safetensors-texts": lambda: _header(b'{"a":[' + b'"bc",' * 3_000_000 + b'""]}'),
    "safetensors-pairs": lambda: _header(b'{"a":{' + b",".join(b'"%d":1' % n for n in range(1_300_000)) + b"}}"),
    "safetensors-nested-names": lambda: _tensors(32_000, lambda index: "module." * 6 + f"{index}.weight"),
    "safetensors-five-nests": lambda: _tensors(
        29_500, lambda index: f"{'abcde'[index % 5]}." + "module." * 6 + f"{index}.weight"),
    "safetensors-long-names": lambda: _tensors(16_000, lambda index: "a." * 150 + f"{index}.weight"),
}  # fmt: skip
