"""Which inputs of a network are looked up in tables of vectors, and how many places those tables have.

Nothing in a network says it: it is tried with numbers at the ends of its tables. PyTorch refuses numbers beyond them;
an exported graph would count negative ones from the end, so `flambeau.builder.places` has it fail.
"""

import bisect
import itertools
import math
from collections.abc import Sequence

import torch
from msgspec import structs
from torch import nn

from flambeau.builder import signature_words
from flambeau.errors import SourceError
from flambeau.identify import unsupported
from flambeau.items import FREE
from flambeau.types import TensorSpec

_MOST = 64  # numbers of a row that are tried one by one
_LARGEST = 2**31 - 1  # vectors that no table has, and the most of int32
_INPUTS = 6  # inputs of which every selection is tried
_TRUTHS = 4  # inputs that are tried as true and false, in every selection


def dtypes(network: nn.Module, specs: Sequence[TensorSpec], *, name: str) -> tuple[TensorSpec, ...]:
    """The inputs, of which those are int64 that the network takes as whole numbers only: as few as it can compute.

    It is tried with zeros, then with ones in some places: a mask of zeros may leave out all, and a length of 0 has no
    last step. Raises `SourceError` where it takes true and false only.
    """
    if len(specs) > _INPUTS:
        return tuple(specs)
    zeros: tuple[int, ...] = (0,) * len(specs)
    ones = [(*zeros[:place], 1, *zeros[place + 1 :]) for place in range(len(specs))]
    for fills in ([zeros], [*ones, (1,) * len(specs)]):
        for count in range(len(specs) + 1):
            for chosen in itertools.combinations(range(len(specs)), count):
                tried = [
                    structs.replace(spec, dtype="int64") if place in chosen else spec
                    for place, spec in enumerate(specs)
                ]
                if any(signature_words.computes(network, _filled(tried, fill)) for fill in fills):
                    return tuple(tried)
    for words in itertools.product(("float32", "int64", "bool"), repeat=min(len(specs), _TRUTHS)):
        tried = [structs.replace(spec, dtype=word) for spec, word in zip(specs, words, strict=False)]
        if "bool" in words and signature_words.computes(network, _filled([*tried, *specs[len(tried) :]], zeros)):
            raise _truths_wanted(name, [spec.name for spec in tried if spec.dtype == "bool"])
    return tuple(specs)


def _filled(specs: Sequence[TensorSpec], fill: Sequence[int]) -> list[torch.Tensor]:
    return [torch.full_like(_plain(spec), number) for spec, number in zip(specs, fill, strict=True)]


def _truths_wanted(name: str, masks: Sequence[str]) -> SourceError:
    lines = "; ".join(f"{each} = {each}.bool()" for each in masks)
    return SourceError(
        f"{name} takes {' and '.join(masks)} as true and false, and numbers are sent: let its forward() begin with "
        f"{lines}, or {unsupported.AROUND}"
    )


def with_masks(network: nn.Module, specs: Sequence[TensorSpec], *, name: str) -> tuple[TensorSpec, ...]:
    """The inputs, of which those of decimal numbers that count as true and false only are tried with 0 and 1.

    Raises `SourceError` for one that was true and false in training, or may have been. Example: attention leaves out
    what a mask of true and false says, and adds a mask of numbers to its scores. A client that sends 1 and 0 would get
    an answer, and another one than the network gives.
    """
    generator = torch.Generator().manual_seed(0)
    plain = [_plain(spec) for spec in specs]
    rows = [torch.randn(each.shape, generator=generator) if each.is_floating_point() else each for each in plain]
    found = list(specs)
    for place, spec in enumerate(specs):
        if spec.dtype != "float32":
            continue
        truths = (torch.arange(rows[place].numel()) % 2 == 1).reshape(rows[place].shape)

        def answers(given: torch.Tensor, at: int = place) -> list[torch.Tensor]:
            return signature_words.answers(network, [*rows[:at], given, *rows[at + 1 :]])

        as_truths, as_numbers = answers(truths), answers(truths.float())
        if as_truths and not as_numbers:
            raise _truths_wanted(name, [spec.name])
        if as_truths and finite(as_truths) and not _same(as_truths, as_numbers):
            raise SourceError(
                f"{name} answers otherwise where {spec.name} is true and false than where it is 1 and 0, and numbers "
                f"are sent: let its forward() begin with {spec.name} = {spec.name}.bool() if it was trained with the "
                f"former, or with {spec.name} = {spec.name}.float() if with numbers"
            )
        of_zeros = answers(plain[place])
        if _same(as_numbers, answers(truths * 5.0)) and not _same(as_numbers, of_zeros):
            found[place] = structs.replace(spec, known=(0, 1) if finite(of_zeros) else (1, 0))
    return tuple(found)


def finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether there are tensors, and all of their numbers are finite."""
    return bool(tensors) and all(bool(each.isfinite().all()) for each in tensors)


def _same(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(
        first.shape == second.shape and torch.allclose(first, second, atol=1e-4)
        for first, second in zip(one, other, strict=True)
    )


def with_tables(network: nn.Module, specs: Sequence[TensorSpec], *, decimals: bool = False) -> tuple[TensorSpec, ...]:
    """The inputs with the sizes of the tables that their numbers are places of: of those that take whole numbers, or of
    those that take `decimals`, which the network makes whole itself."""
    return tuple(
        _with_tables(network, specs, place) if (spec.dtype == "float32") == decimals else spec
        for place, spec in enumerate(specs)
    )


def _with_tables(network: nn.Module, specs: Sequence[TensorSpec], place: int) -> TensorSpec:
    spec = specs[place]
    sizes = sorted({len(each) for each in network.parameters() if each.dim() == 2})  # a frozen script has none
    rows = [_plain(each) for each in specs]
    count = math.prod(spec.usual)
    fixed = FREE not in spec.shape

    def computes(number: int, at: slice) -> bool:
        row = torch.zeros(count, dtype=getattr(torch, spec.dtype))
        row[at] = number
        return signature_words.computes(network, [*rows[:place], row.reshape(1, *spec.usual), *rows[place + 1 :]])

    def size_at(at: slice) -> int:
        """The size of the table; 0 where numbers are not looked up, or are changed before."""
        tried = sizes or [bisect.bisect_left(range(_LARGEST), True, key=lambda number: not computes(number, at))]
        found = next((size for size in tried if computes(size - 1, at) and not computes(size, at)), 0)
        return 0 if found and computes(-1, at) else found

    everywhere = slice(None)
    whole = size_at(everywhere)
    if not whole and computes(max(sizes, default=_LARGEST), everywhere):
        return spec  # its numbers are no places
    if fixed:
        step = -(-count // _MOST)
        parts = [slice(at, at + 1) for at in range(0, count, step)]
    else:  # numbers along a free axis are of one kind, and those of the last may be of several
        step = 1 if spec.shape[-1] == FREE else spec.shape[-1]
        parts = [slice(at, None, step) for at in range(step)]
    found = [whole if whole and not computes(whole, part) else size_at(part) for part in parts]
    if len(set(found)) == 1:
        return structs.replace(spec, below=found[0])
    return structs.replace(spec, tables=tuple(found) if fixed and step == 1 else ())


def _plain(spec: TensorSpec) -> torch.Tensor:
    return torch.from_numpy(spec.plain(1))
