"""Which inputs of a network are looked up in tables of vectors, and how many places those tables have.

Nothing in a network says it: it is tried with numbers at the ends of its tables. PyTorch refuses numbers beyond them;
an exported graph would count negative ones from the end, so `guard` has it fail.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from msgspec import structs
from torch import nn

from flambeau.builder import signature_words
from flambeau.items import FREE
from flambeau.types import TensorSpec

_MOST = 64  # numbers of a row that are tried one by one
_INPUTS = 6  # inputs of which every selection is tried


def dtypes(network: nn.Module, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The inputs, of which those are int64 that the network takes as whole numbers only: as few as it can compute."""
    if len(specs) <= _INPUTS and _has_tables(network):
        for count in range(len(specs) + 1):
            for chosen in itertools.combinations(range(len(specs)), count):
                tried = [
                    structs.replace(spec, dtype="int64") if place in chosen else spec
                    for place, spec in enumerate(specs)
                ]
                if signature_words.computes(network, [_plain(spec) for spec in tried]):
                    return tuple(tried)
    return tuple(specs)


def with_tables(network: nn.Module, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The inputs with the sizes of the tables that their numbers are places of."""
    if not _has_tables(network):
        return tuple(specs)
    return tuple(_with_tables(network, specs, place) for place in range(len(specs)))


def _with_tables(network: nn.Module, specs: Sequence[TensorSpec], place: int) -> TensorSpec:
    spec = specs[place]
    if spec.dtype == "float32":
        return spec
    sizes = sorted({each.num_embeddings for each in network.modules() if isinstance(each, _TABLES)})
    rows = [_plain(each) for each in specs]
    count = math.prod(spec.usual)
    fixed = FREE not in spec.shape

    def computes(number: int, at: slice) -> bool:
        row = torch.zeros(count, dtype=getattr(torch, spec.dtype))
        row[at] = number
        return signature_words.computes(network, [*rows[:place], row.reshape(1, *spec.usual), *rows[place + 1 :]])

    def size_at(at: slice) -> int:
        """The size of the table; 0 where numbers are not looked up, or are changed before."""
        return next((size for size in sizes if computes(size - 1, at) and not computes(size, at)), 0)

    if fixed:
        step = -(-count // _MOST)
        found = [size_at(slice(at, at + 1)) for at in range(0, count, step)]
    else:  # numbers along a free axis are of one kind, and those of the last may be of several
        step = 1 if spec.shape[-1] == FREE else spec.shape[-1]
        found = [size_at(slice(at, None, step)) for at in range(step)]
    if len(set(found)) == 1:
        return structs.replace(spec, below=found[0])
    return structs.replace(spec, tables=tuple(found) if fixed and step == 1 else ())


_TABLES = (nn.Embedding, nn.EmbeddingBag)


def _has_tables(network: nn.Module) -> bool:
    return any(isinstance(each, _TABLES) for each in network.modules())


def _plain(spec: TensorSpec) -> torch.Tensor:
    return torch.zeros(1, *spec.usual, dtype=getattr(torch, spec.dtype))
