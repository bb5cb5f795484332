"""The shipped index of known architectures: the names and shapes of their weights, and their image transforms.

`scripts/make_index.py` writes it from the libraries themselves; this module reads it. Each library has two files:
facts, for exact matches, and shapes, opened only to search for the nearest misses or for renamed children. No library
is imported: one counts as present if it can be found.
"""

import gzip
import hashlib
import importlib.metadata
import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import msgspec

from flambeau.bundle.storage import ImageConfig

# Signatures: names and shapes of tensors as one number. Every tensor has a mark, a 64-bit hash of its name and shape,
# and a signature is the sum of marks, so subtracting a path's sum leaves that path out. Signatures find candidates;
# whether the weights really fill a network shows when they are loaded.

COUNTER = "num_batches_tracked"
"""The counter of batch norms, for training only; files from before PyTorch 0.4.1 have none. It never matters."""

_DEPTH = 8  # at least twice the depth of any architecture's head; a hostile name may have any number of parts
_MASK = 2**64 - 1
Shape = tuple[int, ...]


class Signature:
    """The sum of marks for each dotted path, of a mapping from tensor names to shapes, that a head could have."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self._sums: dict[str, int] = defaultdict(int)
        for name, shape in shapes.items():
            if name.endswith(COUNTER):
                continue
            mark = _mark(name, shape)
            self._sums[""] += mark
            path = ""
            for part in name.split(".", _DEPTH)[:_DEPTH]:
                path = f"{path}.{part}" if path else part
                self._sums[path] += mark

    def without(self, paths: Iterable[str]) -> int:
        """The signature of everything except what lies under `paths`. No path may lie under another."""
        return (self._sums[""] - sum(self._sums.get(path, 0) for path in paths)) & _MASK


def _mark(name: str, shape: Shape) -> int:
    digest = hashlib.blake2b(f"{name} {','.join(map(str, shape))}".encode(), digest_size=8)
    return int.from_bytes(digest.digest())


Registry = Literal["torchvision", "flambeau", "timm"]
REGISTRIES: tuple[Registry, ...] = ("torchvision", "flambeau", "timm")
"""The libraries in order of preference: if weights fit several, the first is taken."""

CLASSES = 0
"""Stands for the number of classes in the shapes of the index."""


class LayerPlace(msgspec.Struct, frozen=True, array_like=True):
    """One layer of an architecture's own `nn.Sequential` head. `kind` is the name of its class."""

    name: str
    kind: str
    sizes: Shape = ()


class HeadBlock(msgspec.Struct, frozen=True, array_like=True):
    """The `nn.Sequential` around the last layer. `flat`: its input is vectors, not feature maps."""

    path: str
    flat: bool
    layers: tuple[LayerPlace, ...]

    @property
    def first(self) -> str:
        """The name of its first layer with weights."""
        return next((layer.name for layer in self.layers if layer.sizes), "")

    @property
    def features(self) -> int:
        """The input width of that layer; 0 if it is neither linear nor a norm."""
        return next((layer.sizes[0] for layer in self.layers if layer.sizes), 0)


class Positions(msgspec.Struct, frozen=True, array_like=True):
    """A table with a row for each patch of the image: the only tensor that depends on the image's size.

    Its shape is (1, (size / patch)² + extra, features); `argument` is the constructor's name for the size.
    """

    key: str
    shape: Shape
    patch: int
    extra: int
    argument: str


class Network(msgspec.Struct, frozen=True, array_like=True):
    """The weights of an architecture, or of several whose weights have the same names and shapes.

    `outputs` are all tensors of the modules that depend on the number of classes, in order. `body` is the signature
    without those, without `aux` (heads for training only) and without `positions`; `trunk` leaves out the whole `block`
    instead of `outputs`.
    """

    body: int
    outputs: dict[str, Shape]
    aux: tuple[str, ...] = ()
    positions: Positions | None = None
    block: HeadBlock | None = None
    trunk: int = 0

    @property
    def heads(self) -> tuple[str, ...]:
        """The paths of the modules that depend on the number of classes."""
        return tuple(dict.fromkeys(key.rpartition(".")[0] for key in self.outputs))

    @property
    def apart(self) -> tuple[str, ...]:
        """The paths, besides the head, that no signature includes."""
        return (*self.aux, self.positions.key) if self.positions else self.aux


class OfficialWeights(msgspec.Struct, frozen=True, array_like=True):
    """Official weights: their name, their architecture, and their recipe's transform, as a number in `pipelines`."""

    name: str
    architecture: str
    pipeline: int


class Index(msgspec.Struct, frozen=True):
    """The facts of one library. `architectures` maps names to (number in `networks`, number in `pipelines`)."""

    version: str
    pipelines: tuple[ImageConfig, ...]
    networks: tuple[Network, ...]
    architectures: dict[str, tuple[int, int]]
    weights: dict[str, OfficialWeights]


class Shapes(msgspec.Struct, frozen=True):
    """Every tensor of a library's networks, except counters and heads for training only.

    `kinds` are the sets of (name, shape) that occur in modules; `paths` are lists of modules, separated by blanks. A
    network, in the order of `Index.networks`, is a number in `paths` and, for each module, a number in `kinds`.
    """

    kinds: tuple[tuple[tuple[str, Shape], ...], ...]
    paths: tuple[str, ...]
    networks: tuple[tuple[int, tuple[int, ...]], ...]

    def modules(self, number: int) -> list[tuple[str, int]]:
        """The modules of a network with their kinds, in order."""
        paths, kinds = self.networks[number]
        return list(zip(self.paths[paths].split(" "), kinds, strict=True))

    def of(self, number: int) -> dict[str, Shape]:
        """The tensors of a network, in order; `CLASSES` stands for the number of classes."""
        return {
            f"{path}.{name}" if path else name: shape
            for path, kind in self.modules(number)
            for name, shape in self.kinds[kind]
        }


@cache
def facts(registry: Registry) -> Index:
    """A library's facts, for exact matches."""
    return msgspec.json.decode(read(f"{registry}.json.gz"), type=Index)


@cache
def shapes(registry: Registry) -> Shapes:
    """A library's shapes, for the search for the nearest misses and for renamed children."""
    return msgspec.json.decode(read(f"{registry}_shapes.json.gz"), type=Shapes)


@cache
def names_of(registry: Registry, number: int) -> tuple[str, ...]:
    """The architectures that a network of the index stands for, the shortest name first."""
    found = (name for name, (network, _) in facts(registry).architectures.items() if network == number)
    return tuple(sorted((name for name in found if not lacks(registry, name)), key=lambda name: (len(name), name)))


def called(registry: Registry, name: str) -> str:
    """The name as `--arch` takes it: if torchvision and timm have the same name, timm's gets a prefix."""
    taken = registry == "timm" and name in facts("torchvision").architectures
    return f"{registry}/{name}" if taken else name


def read(name: str) -> bytes:
    """A file of the index, unpacked."""
    return gzip.decompress(files("flambeau.identify").joinpath("index", name).read_bytes())


@cache
def present(registry: Registry) -> bool:
    """Whether the library is installed. It is not imported."""
    return registry == "flambeau" or importlib.util.find_spec(registry) is not None


@cache
def lacks(registry: Registry, name: str) -> bool:
    """Whether the installed library, of another version than the index, has no constructor of this name."""
    if registry == "flambeau" or not present(registry):
        return False
    if importlib.metadata.version(registry).partition("+")[0] == facts(registry).version:
        return False
    return name not in _constructors(registry)


@cache
def _constructors(registry: Registry) -> frozenset[str]:
    """The functions that the library's model files define, read from their source text."""
    spec = importlib.util.find_spec(registry)
    folders = spec.submodule_search_locations if spec else None
    texts = (file.read_text("utf-8") for folder in folders or () for file in Path(folder, "models").glob("*.py"))
    return frozenset(name for text in texts for name in re.findall(r"^def (\w+)\(", text, re.MULTILINE))
