"""Finds numbers to try a network with that it computes, where it does not compute the usual ones.

Usual are random numbers, of whole ones 0 and 1, and zeros for a plain row. There are networks that do not compute
those: columns of decimal numbers may be looked up in tables, a mask of HuggingFace's kind takes nothing but 0 and 1,
and a length of 0 has no last step.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from msgspec import structs
from torch import nn

from flambeau.builder import eager, lookups, signature_words
from flambeau.types import TensorSpec

_INPUTS = 6  # inputs of which some are tried with other numbers
_ROWS = 8
_KNOWN: dict[str, tuple[tuple[int, ...], ...]] = {"float32": ((1, 0), (0, 1), (1,)), "int64": ((1, 0), (1,))}


def computable(network: nn.Module, specs: Sequence[TensorSpec]) -> tuple[tuple[TensorSpec, ...], str]:
    """The inputs with what they have to be tried with, and that in words; as they are, and no words, where the network
    computes the usual numbers, or none that are tried."""
    usual = tuple(specs)
    if _computes(network, usual):
        return usual, ""
    if lookups.finite(signature_words.answers(network, _plain(usual))):  # 0 is a place in every table
        looked_up = lookups.with_tables(network, usual, decimals=True)
        if looked_up != usual and _computes(network, looked_up):
            return looked_up, "; ".join(_looked_up(spec) for spec in looked_up if spec not in usual)
    for tried in _with_known(usual):
        if _computes(network, tried):
            told = [f"{spec.name} is tried with {_listed(spec.known)}" for spec in tried if spec not in usual]
            return tried, f"{' and '.join(told)}, for the network does not compute every number"
    return usual, ""


def _with_known(specs: tuple[TensorSpec, ...]) -> Iterator[tuple[TensorSpec, ...]]:
    """The inputs with numbers for one of them, then for two. One input at least keeps random numbers, as whole ones of
    0 and 1 are: of rows that are alike nobody could see whether they depend on each other."""
    free = [place for place, spec in enumerate(specs) if not spec.known]
    if len(specs) > _INPUTS:
        return
    if len(specs) == len(free) == 1 and specs[0].dtype == "int64" and (1, 0) in _known(specs[0]):
        yield (structs.replace(specs[0], known=(1, 0)),)
    for count in range(1, min(len(free), 3)):
        for chosen in itertools.combinations(free, count):
            for known in itertools.product(*(_known(specs[place]) for place in chosen)):
                given = dict(zip(chosen, known, strict=True))
                yield tuple(
                    structs.replace(spec, known=given[place]) if place in given else spec
                    for place, spec in enumerate(specs)
                )


def _known(spec: TensorSpec) -> tuple[tuple[int, ...], ...]:
    """What that input may be tried with: a row of one whole number has no place for a 0 beside a 1."""
    found = _KNOWN.get(spec.dtype, ())
    return found if spec.dtype == "float32" or math.prod(spec.usual) > 1 else found[1:]


def _computes(network: nn.Module, specs: Sequence[TensorSpec]) -> bool:
    """Whether the network answers a plain row, and each of the rows that it will be tried with, with finite numbers."""
    shapes = {spec.name: spec.usual for spec in specs}
    drawn = eager.probe_inputs(specs, shapes, images=False)
    return all(
        lookups.finite(signature_words.answers(network, row))
        for row in (
            _plain(specs),
            *([torch.from_numpy(drawn[spec.name][at : at + 1]) for spec in specs] for at in range(_ROWS)),
        )
    )


def _plain(specs: Sequence[TensorSpec]) -> list[torch.Tensor]:
    return [torch.from_numpy(spec.plain(1)) for spec in specs]


def _looked_up(spec: TensorSpec) -> str:
    if spec.below:
        return f"the numbers of {spec.name} are looked up in a table of {spec.below:,} vectors"
    columns = [f"number {place} ({size:,} places)" for place, size in enumerate(spec.tables, 1) if size]
    return (
        f"of a row of {spec.name}, {' and '.join(columns)} {'is' if len(columns) == 1 else 'are'} looked up in tables"
    )


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(str(each) for each in sorted(numbers))
