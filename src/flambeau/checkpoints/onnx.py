"""ONNX: a protobuf message, read field by field without any library. The weights themselves are never read.

It must see everything that the libraries for building and serving see. So a message in several parts is merged, as in
protobuf, and tensors are searched wherever they may be: in attributes, subgraphs, functions and training graphs.
"""

import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from flambeau.checkpoints import first_operation, last_operation
from flambeau.checkpoints.report import DOWNLOAD_AGAIN, ScanBudget, ScanError, plain

_MOST_FIELDS = 600_000
_LONGEST_TEXT = 1024
_FIRST_NODES = 500  # in which an image is scaled, if it is
_MOST_SHOWN = 16
_MOST_LEVELS = 30  # nested graphs; protobuf allows a hundred nested messages, and a graph takes three
_WINDOW = 4096

_BEGINNING = re.compile(rb"\x08[\x01-\x40](\x12.[ -~]{0,127})?[\x1a\x22\x28\x32\x3a\x42]", re.DOTALL)
_OWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training")
_ELEMENTS = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip

# Field numbers of the messages in onnx.proto.
_PRODUCER, _VERSION, _GRAPH, _OPSETS, _TRAINING, _FUNCTIONS = 2, 3, 7, 8, 20, 25  # ModelProto
_NODES, _INITIALIZERS, _SPARSE_INITIALIZERS, _INPUTS, _OUTPUTS = 1, 5, 15, 11, 12  # GraphProto
_NODES_OF_A_FUNCTION, _ATTRIBUTES_OF_A_FUNCTION = 7, 11  # FunctionProto
_OPERATOR, _ATTRIBUTES, _DOMAIN = 4, 5, 7  # NodeProto
_TENSORS_OF_AN_ATTRIBUTE, _GRAPHS_OF_AN_ATTRIBUTE, _SPARSE_OF_AN_ATTRIBUTE = (5, 10), (6, 11), (22, 23)
_NAME, _EXTERNAL = 8, 13  # TensorProto

Span = tuple[int, int]
"""The begin and end of a field's contents in the file."""
ProtoMessage = dict[int, list[int | Span]]
"""The fields of a message by number: integers as they are, and the spans of strings and messages."""


def looks_like_onnx(head: bytes) -> bool:
    """Whether a file begins as a ModelProto does: a small ir_version, and then a producer's name or the graph."""
    return _BEGINNING.match(head) is not None


@dataclass(frozen=True, slots=True)
class GraphSummary:
    """What a file declares: `facts` for people, and the files with external weights, relative to its folder."""

    facts: dict[str, str]
    external: tuple[str, ...]


def read(file: BinaryIO, size: int, *, folder: Path) -> GraphSummary:
    """Producer, opsets, inputs, outputs and the files in `folder` with external weights.

    Raises `ScanError` for a message that is damaged, has no graph, or keeps weights where they may not be.
    """
    reader = _MessageReader(file)
    model = reader.message((0, size))
    if not reader.spans(model, _GRAPH) or not reader.spans(model, _OPSETS):
        raise ScanError("begins as an ONNX model and holds no graph", DOWNLOAD_AGAIN)
    opsets = [reader.message(span) for span in reader.spans(model, _OPSETS)]  # domain 1, version 2
    named = {reader.text(opset, 1): next(iter(opset[2]), 0) for opset in opsets}
    search = _Search(reader)
    graph = reader.message(*reader.spans(model, _GRAPH))
    weights = search.graph(graph, level=0)
    search.rest(model)
    for place in search.external:
        _refuse_unless_beside(place, folder)
    inputs = [_value(reader, span) for span in reader.spans(graph, _INPUTS)]
    first = islice(last_operation.nodes_of(reader, graph), _FIRST_NODES)
    given = {name for name, _ in inputs if name not in weights}
    facts = {
        "producer": f"{reader.text(model, _PRODUCER)} {reader.text(model, _VERSION)}".strip(),
        "opset": ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in named.items()),
        "operators of others": ", ".join(list(search.foreign)[:_MOST_SHOWN]),
        # before IR version 4, weights were listed as inputs too
        "inputs": ", ".join([text for name, text in inputs if name not in weights][:_MOST_SHOWN]),
        "outputs": ", ".join([_value(reader, span)[1] for span in reader.spans(graph, _OUTPUTS)][:_MOST_SHOWN]),
        "begins by": "scaling its input" if first_operation.scales(first, given) else "",
        "ends in": last_operation.graph_ends_in(reader, graph),
        "external data": ", ".join(list(search.external)[:_MOST_SHOWN]),
    }
    return GraphSummary({name: plain(text) for name, text in facts.items() if text}, tuple(search.external))


def _refuse_unless_beside(place: str, folder: Path) -> None:
    """Raise `ScanError` unless external weights are in a regular file below the graph's folder, with no link in the
    path."""
    parts = PurePosixPath(place).parts
    if not place or PurePosixPath(place).is_absolute() or ".." in parts or "\\" in place or "\0" in place:
        raise ScanError(f"keeps weights in {plain(repr(place))}, outside its own folder")
    try:
        at = folder
        for part in parts:
            at = at / part
            mode = os.lstat(at).st_mode
            if stat.S_ISLNK(mode):
                raise ScanError(
                    f"keeps weights in {plain(repr(place))}, which is a symbolic link",
                    "put the file itself in its place",
                )
        if not stat.S_ISREG(mode):
            raise ScanError(f"keeps weights in {plain(repr(place))}, which is not a file")
    except OSError as error:
        raise ScanError(
            f"keeps weights in {plain(repr(place))}, and that cannot be opened ({error.strerror})",
            "put that file beside it, under the name that it had when the model was exported",
        ) from None


class _Search:
    """Searches graphs, and everything nested in them, for external files and foreign operators.

    `external` are the files with external weights, `foreign` the operators that ONNX does not define, as DOMAIN::NAME:
    both in order of appearance.
    """

    def __init__(self, reader: "_MessageReader") -> None:
        self.external: dict[str, None] = {}
        self.foreign: dict[str, None] = {}
        self._walk = reader

    def graph(self, graph: ProtoMessage, *, level: int) -> set[str]:
        """Search a GraphProto. Returns the names of its weights."""
        if level > _MOST_LEVELS:
            raise ScanError(f"nests its graphs more than {_MOST_LEVELS} levels deep")
        reader = self._walk
        names = set()
        for tensor in map(reader.message, reader.spans(graph, _INITIALIZERS)):
            self._tensor(tensor)
            names.add(reader.text(tensor, _NAME))
        for sparse in map(reader.message, reader.spans(graph, _SPARSE_INITIALIZERS)):
            names.add(self._sparse(sparse))
        for node in map(reader.message, reader.spans(graph, _NODES)):
            self._node(node, level=level)
        return names

    def rest(self, model: ProtoMessage) -> None:
        """Search the rest of a ModelProto: its functions, and the two graphs of each training."""
        reader = self._walk
        for function in map(reader.message, reader.spans(model, _FUNCTIONS)):
            for node in map(reader.message, reader.spans(function, _NODES_OF_A_FUNCTION)):
                self._node(node, level=0)
            for attribute in map(reader.message, reader.spans(function, _ATTRIBUTES_OF_A_FUNCTION)):
                self._attribute(attribute, level=0)
        for training in map(reader.message, reader.spans(model, _TRAINING)):
            for number in (1, 2):
                if spans := reader.spans(training, number):
                    self.graph(reader.message(*spans), level=0)

    def _node(self, node: ProtoMessage, *, level: int) -> None:
        domain = self._walk.text(node, _DOMAIN)
        if domain not in _OWN_DOMAINS:
            self.foreign[f"{domain}::{self._walk.text(node, _OPERATOR)}"] = None
        for attribute in map(self._walk.message, self._walk.spans(node, _ATTRIBUTES)):
            self._attribute(attribute, level=level)

    def _attribute(self, attribute: ProtoMessage, *, level: int) -> None:
        reader = self._walk
        for number in _TENSORS_OF_AN_ATTRIBUTE:
            for tensor in map(reader.message, reader.spans(attribute, number)):
                self._tensor(tensor)
        for number in _SPARSE_OF_AN_ATTRIBUTE:
            for sparse in map(reader.message, reader.spans(attribute, number)):
                self._sparse(sparse)
        for number in _GRAPHS_OF_AN_ATTRIBUTE:
            for graph in map(reader.message, reader.spans(attribute, number)):
                self.graph(graph, level=level + 1)

    def _sparse(self, sparse: ProtoMessage) -> str:
        """Search a SparseTensorProto, which is two tensors. Returns the first one's name, which is its own."""
        parts = [self._walk.message(span) for number in (1, 2) for span in self._walk.spans(sparse, number)]
        for tensor in parts:
            self._tensor(tensor)
        return self._walk.text(parts[0], _NAME) if parts else ""

    def _tensor(self, tensor: ProtoMessage) -> None:
        for pair in map(self._walk.message, self._walk.spans(tensor, _EXTERNAL)):
            if self._walk.text(pair, 1) == "location":
                self.external[self._walk.text(pair, 2)] = None


def _value(reader: "_MessageReader", span: Span) -> tuple[str, str]:
    """A ValueInfoProto's name, and how it is displayed. Its type is nested as type.tensor_type.shape.dim."""
    value = reader.message(span)
    name = reader.text(value, 1)
    kind = reader.inner(reader.inner(value, 2), 1)
    element = kind[1][-1] if kind[1] else 0
    sizes = []
    for dimension in map(reader.message, reader.spans(reader.inner(kind, 2), 1)):
        sizes.append(reader.text(dimension, 2) or str(next(iter(dimension[1]), "?")))
    dtype = _ELEMENTS.get(element, "?") if isinstance(element, int) else "?"
    return name, f"{name} {dtype}[{', '.join(sizes)}]"


class _MessageReader:
    """Reads a file's messages, with a limit on the total number of fields."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = _MOST_FIELDS
        self._budget = ScanBudget()
        self._window, self._begin = b"", 0

    def message(self, *spans: Span) -> ProtoMessage:
        """The fields of the message at `spans`, merged. Raises `ScanError` for a damaged one."""
        found: ProtoMessage = defaultdict(list)
        for span in spans:
            for number, value in self._fields(*span):
                found[number].append(value)
        return found

    def spans(self, message: ProtoMessage, number: int) -> list[Span]:
        """The spans of a repeated message."""
        return [value for value in message.get(number, ()) if isinstance(value, tuple)]

    def inner(self, message: ProtoMessage, number: int) -> ProtoMessage:
        """A message within a message; empty if it is absent."""
        return self.message(*self.spans(message, number))

    def text(self, message: ProtoMessage, number: int) -> str:
        """A string in a message; empty if it is absent. Raises `ScanError` for one that is longer than any name."""
        for span in self.spans(message, number)[-1:]:
            return self._text(*span)
        return ""

    def texts(self, message: ProtoMessage, number: int) -> list[str]:
        """All strings of a field. Raises as `text` does."""
        return [self._text(*span) for span in self.spans(message, number)]

    def _text(self, start: int, end: int) -> str:
        if end - start > _LONGEST_TEXT:
            raise ScanError(f"holds a name of {end - start:,} characters, longer than any of an ONNX model")
        self._budget.charge(end - start)
        self._file.seek(start)
        return self._file.read(end - start).decode("utf-8", "replace")

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int | Span]]:
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise ScanError(f"has more than {_MOST_FIELDS:,} parts, too many for an ONNX model")
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
                    raise ScanError("is a damaged ONNX model", DOWNLOAD_AGAIN)
        if position != end:
            raise ScanError("is an ONNX model that is cut short", DOWNLOAD_AGAIN)

    def _varint(self, position: int) -> tuple[int, int]:
        """The integer at `position`, seven bits per byte, and where it ends."""
        at = position - self._begin
        if not 0 <= at <= len(self._window) - 10:
            self._file.seek(position)
            self._window, self._begin, at = self._file.read(_WINDOW), position, 0
        value = 0
        for place, byte in enumerate(self._window[at : at + 10]):
            value |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                return value, position + place + 1
        raise ScanError("is an ONNX model that is cut short", DOWNLOAD_AGAIN)
