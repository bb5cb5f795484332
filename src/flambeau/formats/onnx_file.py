"""ONNX: a protobuf message, walked field by field without any library. What the weights are is never read."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from flambeau.formats import onnx_ending
from flambeau.formats.refusals import DOWNLOAD_AGAIN, Refusal, plain

_MOST_FIELDS = 300_000
_LONGEST_TEXT = 4096
_MOST_SHOWN = 16

_BEGINNING = re.compile(rb"\x08[\x01-\x40](\x12.[ -~]{0,127})?[\x1a\x22\x28\x32\x3a\x42]", re.DOTALL)
_OWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training")
_ELEMENTS = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip

Span = tuple[int, int]
"""Where the contents of a field lie in the file: begin and end."""
Message = dict[int, list[int | Span]]
"""The fields of a message by their numbers: numbers as they are, and the spans of texts and messages."""


def looks_like_onnx(head: bytes) -> bool:
    """Whether a file begins as a ModelProto does: a small ir_version, and then a producer's name or the graph."""
    return _BEGINNING.match(head) is not None


def read(file: BinaryIO, size: int) -> dict[str, str]:
    """What the model says of itself: producer, opsets, inputs, outputs, files that hold further weights.

    Raises `Refusal` for a message that is damaged, has no graph, or keeps weights outside its folder.
    """
    walk = _Walk(file)
    model = walk.message((0, size))  # ModelProto: ir_version 1, producer 2 and 3, graph 7, opset_import 8
    if not walk.spans(model, 7) or not walk.spans(model, 8):
        raise Refusal("begins as an ONNX model and holds no graph", DOWNLOAD_AGAIN)
    opsets = [walk.message(span) for span in walk.spans(model, 8)]  # domain 1, version 2
    named = {walk.text(opset, 1): next(iter(opset[2]), 0) for opset in opsets}
    inputs, outputs, external = _graph(walk, walk.spans(model, 7)[-1])
    facts = {
        "producer": f"{walk.text(model, 2)} {walk.text(model, 3)}".strip(),
        "opset": ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in named.items()),
        "operators of others": ", ".join(domain for domain in named if domain not in _OWN_DOMAINS),
        "inputs": ", ".join(inputs[:_MOST_SHOWN]),
        "outputs": ", ".join(outputs[:_MOST_SHOWN]),
        "ends in": onnx_ending.told(walk, walk.message(walk.spans(model, 7)[-1])),
        "external data": ", ".join(external[:_MOST_SHOWN]),
    }
    return {name: plain(text) for name, text in facts.items() if text}


def _graph(walk: "_Walk", span: Span) -> tuple[list[str], list[str], list[str]]:
    """The inputs and outputs of a GraphProto as `name dtype[shape]`, and the files that it keeps weights in."""
    graph = walk.message(span)  # initializer 5, input 11, output 12
    weights, external = set(), []
    for tensor in map(walk.message, walk.spans(graph, 5)):  # TensorProto: name 8, external_data 13
        weights.add(walk.text(tensor, 8))
        for pair in map(walk.message, walk.spans(tensor, 13)):
            if walk.text(pair, 1) == "location" and (place := walk.text(pair, 2)) not in external:
                external.append(place)
    for place in external:
        if not place or PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts or "\\" in place:
            raise Refusal(f"keeps weights in {plain(repr(place))}, outside its own folder")
    inputs = [_value(walk, span) for span in walk.spans(graph, 11)]
    outputs = [_value(walk, span) for span in walk.spans(graph, 12)]
    # before IR version 4 every weight was listed as an input too
    return [text for name, text in inputs if name not in weights], [text for _, text in outputs], external


def _value(walk: "_Walk", span: Span) -> tuple[str, str]:
    """A ValueInfoProto: its name, and how it is shown. Its type is nested as type.tensor_type.shape.dim."""
    value = walk.message(span)
    name = walk.text(value, 1)
    kind = walk.inner(walk.inner(value, 2), 1)
    element = next(iter(kind[1]), 0)
    sizes = []
    for dimension in map(walk.message, walk.spans(walk.inner(kind, 2), 1)):
        sizes.append(walk.text(dimension, 2) or str(next(iter(dimension[1]), "?")))
    dtype = _ELEMENTS.get(element, "?") if isinstance(element, int) else "?"
    return name, f"{name} {dtype}[{', '.join(sizes)}]"


class _Walk:
    """Reads messages of a file, with a limit on how many fields it reads in all."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _MOST_FIELDS

    def message(self, span: Span) -> Message:
        """The fields of the message that lies at `span`. Raises `Refusal` for one that is damaged."""
        found: Message = defaultdict(list)
        for number, value in self._fields(*span):
            found[number].append(value)
        return found

    def spans(self, message: Message, number: int) -> list[Span]:
        """The spans of a repeated message."""
        return [value for value in message.get(number, ()) if isinstance(value, tuple)]

    def inner(self, message: Message, number: int) -> Message:
        """A message in a message; empty where it is left out."""
        spans = self.spans(message, number)
        return self.message(spans[-1]) if spans else defaultdict(list)

    def text(self, message: Message, number: int) -> str:
        """A text in a message; empty where it is left out."""
        for start, end in self.spans(message, number)[-1:]:
            self._file.seek(start)
            return self._file.read(min(end - start, _LONGEST_TEXT)).decode("utf-8", "replace")
        return ""

    def texts(self, message: Message, number: int) -> list[str]:
        """Every text of a field."""
        found = []
        for start, end in self.spans(message, number):
            self._file.seek(start)
            found.append(self._file.read(min(end - start, _LONGEST_TEXT)).decode("utf-8", "replace"))
        return found

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int | Span]]:
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise Refusal(f"has more than {_MOST_FIELDS:,} parts, too many for an ONNX model")
            tag, position = self._varint(position)
            match tag & 7:
                case 0:
                    value, position = self._varint(position)
                    yield tag >> 3, value
                case 2:
                    length, position = self._varint(position)
                    yield tag >> 3, (position, position + length)
                    position += length
                case 1 | 5 as kind:
                    position += 8 if kind == 1 else 4
                case _:
                    raise Refusal("is a damaged ONNX model", DOWNLOAD_AGAIN)
        if position != end:
            raise Refusal("is an ONNX model that is cut short", DOWNLOAD_AGAIN)

    def _varint(self, position: int) -> tuple[int, int]:
        """The number at `position`, seven bits a byte, and where it ends."""
        self._file.seek(position)
        value = 0
        for place, byte in enumerate(self._file.read(10)):
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return value, position + place + 1
        raise Refusal("is an ONNX model that is cut short", DOWNLOAD_AGAIN)
