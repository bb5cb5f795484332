"""The shipped index: what the weights of every known architecture look like, and how its images are prepared.

`scripts/make_index.py` writes it, from the libraries themselves; this module reads it. For each library there are two
files: facts, which an exact match needs, and shapes, which only a search for the nearest misses opens. It imports no
library: one counts as present when it can be found.
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

# Names and shapes of tensors to one number, in which parts of a network can be left out at no cost.
#
# Every tensor has a mark, a 64-bit hash of its name and shape, and a signature is the sum of marks: what lies under a
# path is left out by subtracting its sum. Marks find candidates; that a network is filled exactly is seen when it is.

COUNTER = "num_batches_tracked"
"""What batch norms count for training only; files from before PyTorch 0.4.1 have none. It never matters."""

_DEPTH = 8  # no architecture has its head deeper than half of this, and a hostile name may have any number of parts
_MASK = 2**64 - 1
Shape = tuple[int, ...]


class Signature:
    """The sums of a mapping of tensor names to shapes, for each dotted path in it that a head could have."""

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
        """The signature of everything but what lies under `paths`, none of which may lie under another."""
        return (self._sums[""] - sum(self._sums.get(path, 0) for path in paths)) & _MASK


def _mark(name: str, shape: Shape) -> int:
    digest = hashlib.blake2b(f"{name} {','.join(map(str, shape))}".encode(), digest_size=8)
    return int.from_bytes(digest.digest())


Registry = Literal["torchvision", "flambeau", "timm"]
REGISTRIES: tuple[Registry, ...] = ("torchvision", "flambeau", "timm")
"""In the order of preference: where weights fit several, the first one that has them is taken."""

CLASSES = 0
"""Stands in a shape of the index for the number of classes."""


class LayerPlace(msgspec.Struct, frozen=True, array_like=True):
    """One layer of an architecture's own `nn.Sequential` head. `kind` is the name of its class."""

    name: str
    kind: str
    sizes: Shape = ()


class HeadBlock(msgspec.Struct, frozen=True, array_like=True):
    """The `nn.Sequential` around the last layer. `flat`: it is given vectors, and not feature maps."""

    path: str
    flat: bool
    layers: tuple[LayerPlace, ...]

    @property
    def first(self) -> str:
        """The name of its first layer with weights."""
        return next((layer.name for layer in self.layers if layer.sizes), "")

    @property
    def features(self) -> int:
        """How many numbers that layer takes; 0 where it is neither linear nor a norm."""
        return next((layer.sizes[0] for layer in self.layers if layer.sizes), 0)


class Positions(msgspec.Struct, frozen=True, array_like=True):
    """A table with a row for each patch of the image, and so the one tensor that depends on the image's size.

    Its shape is (1, (size / patch)² + extra, features); `argument` is the constructor's name for the size.
    """

    key: str
    shape: Shape
    patch: int
    extra: int
    argument: str


class Network(msgspec.Struct, frozen=True, array_like=True):
    """What the weights of an architecture, or of several that weights do not tell apart, look like.

    `outputs` are all tensors of the modules that depend on the number of classes, in order. `body` is the signature
    without those, without `aux` (heads that serve training only) and `positions`; `trunk` is the one without the whole
    block instead.
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
        """What no signature has in it, beside the head."""
        return (*self.aux, self.positions.key) if self.positions else self.aux


class OfficialWeights(msgspec.Struct, frozen=True, array_like=True):
    """Official weights: their name, whose they are, and the transform of their recipe, as a number in `pipelines`."""

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
    """Every tensor of a library's networks, but for counters and heads that serve training only.

    `kinds` are sets of (name, shape) that modules have; `paths` are lists of modules, separated by blanks. A network,
    in the order of `Index.networks`, is a number in `paths`, and for each module a number in `kinds`.
    """

    kinds: tuple[tuple[tuple[str, Shape], ...], ...]
    paths: tuple[str, ...]
    networks: tuple[tuple[int, tuple[int, ...]], ...]

    def modules(self, number: int) -> list[tuple[str, int]]:
        """The modules of a network with their kinds, in order."""
        paths, kinds = self.networks[number]
        return list(zip(self.paths[paths].split(" "), kinds, strict=True))

    def of(self, number: int) -> dict[str, Shape]:
        """The tensors of a network, in order; the number of classes stands as `CLASSES`."""
        return {
            f"{path}.{name}" if path else name: shape
            for path, kind in self.modules(number)
            for name, shape in self.kinds[kind]
        }


@cache
def facts(registry: Registry) -> Index:
    """What an exact match needs to know of a library."""
    return msgspec.json.decode(read(f"{registry}.json.gz"), type=Index)


@cache
def shapes(registry: Registry) -> Shapes:
    """What a search for the nearest misses needs to know of a library."""
    return msgspec.json.decode(read(f"{registry}_shapes.json.gz"), type=Shapes)


@cache
def names_of(registry: Registry, number: int) -> tuple[str, ...]:
    """The architectures that a network of the index stands for, the plainest name first."""
    found = (name for name, (network, _) in facts(registry).architectures.items() if network == number)
    return tuple(sorted((name for name in found if not lacks(registry, name)), key=lambda name: (len(name), name)))


def called(registry: Registry, name: str) -> str:
    """The name as `--arch` takes it: torchvision's go before timm's of the same name."""
    taken = registry == "timm" and name in facts("torchvision").architectures
    return f"{registry}/{name}" if taken else name


def read(name: str) -> bytes:
    """A file that is shipped with the index, unpacked."""
    return gzip.decompress(files("flambeau.identify").joinpath("index", name).read_bytes())


@cache
def present(registry: Registry) -> bool:
    """Whether the library is installed. It is not imported."""
    return registry == "flambeau" or importlib.util.find_spec(registry) is not None


@cache
def lacks(registry: Registry, name: str) -> bool:
    """Whether the installed library, being of another version than the index, has no constructor of that name."""
    if registry == "flambeau" or not present(registry):
        return False
    if importlib.metadata.version(registry).partition("+")[0] == facts(registry).version:
        return False
    return name not in _constructors(registry)


@cache
def _constructors(registry: Registry) -> frozenset[str]:
    """The functions that the library's modules of models define, as their text has them."""
    spec = importlib.util.find_spec(registry)
    folders = spec.submodule_search_locations if spec else None
    texts = (file.read_text("utf-8") for folder in folders or () for file in Path(folder, "models").glob("*.py"))
    return frozenset(name for text in texts for name in re.findall(r"^def (\w+)\(", text, re.MULTILINE))
