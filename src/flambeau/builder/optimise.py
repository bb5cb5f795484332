"""Optimise the graph beforehand for the machine that builds: workers there map it and share one copy of its weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from flambeau.answers.agreement import Compare
from flambeau.builder import checking
from flambeau.bundle.storage import ONNX, OPTIMISED_ONNX, Optimised, graph_bytes
from flambeau.engines import base
from flambeau.engines.onnxruntime import write_optimised
from flambeau.system.process import give_memory_back
from flambeau.types import Tensors

_ALIGNMENT = 64
_AT_ONCE = 1 << 24
_TOO_SMALL = 1_000_000
"""Bytes of graph and weights. Below that there is little to share, and loading takes a millisecond."""


def worth_it(folder: Path) -> bool:
    """Whether the bundle's graph is large enough to keep an optimised one as well."""
    return graph_bytes(folder) >= _TOO_SMALL


def optimise(
    folder: Path,
    checked: Sequence[tuple[Tensors, Tensors]],
    *,
    compare: Compare,
    one_row: bool = False,
    tell: Callable[[str], None],
) -> Optimised | None:
    """Write the optimised graph into the bundle at `folder`, and return where it may run.

    `checked` are (inputs, expected outputs). Where the optimised graph cannot be made or does not reproduce them, it is
    deleted and the result is `None`: then the plain graph serves, and every worker optimises it.
    """
    where = base.optimised_for_here()
    if where is None:
        return None
    target = folder / OPTIMISED_ONNX
    try:
        write_optimised(folder / ONNX, target)
        align(target)
        found = checking.check(target, checked, compare=compare, one_row=one_row, as_written=True)
        reason = "" if found.holds else f"its answers are others: {found}"
    except Exception as error:  # whatever failed, the plain graph can serve
        reason = f"{type(error).__name__}: {str(error).strip()}"
    give_memory_back()
    if not reason:
        return where
    tell(f"the graph cannot be optimised beforehand ({reason}): every worker does it when it starts")
    for file in folder.glob(f"{OPTIMISED_ONNX}*"):
        file.unlink()
    return None


# Alignment. ONNX Runtime 1.31 writes weights without padding, but reads those packed for matrix products with
# instructions that fault at unaligned addresses: after a table of 49 x 49 positions, as in a Swin transformer, every
# process that computes with the file dies of signal 11. So the file is rewritten.


def align(graph: Path) -> None:
    """Move all weights beside the graph to multiples of 64 bytes. Raises `ValueError` for an unknown format."""
    import onnx

    model = onnx.load(graph, load_external_data=False)
    places = [
        entry
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset" or entry.key.startswith("prepacked")
    ]
    if not any(begin % _ALIGNMENT for entry in places for begin in _begins(entry.value)):
        return
    data = graph.with_name(f"{graph.name}.data")
    moved = data.with_name(f"{data.name}.moved")
    with data.open("rb") as source, moved.open("wb") as target:
        for tensor in model.graph.initializer:
            told = {entry.key: entry for entry in tensor.external_data}
            if "offset" not in told:
                continue
            length = int(told["length"].value)
            told["offset"].value = str(_copied(source, target, int(told["offset"].value), length))
            for key, entry in told.items():
                if key.startswith("prepacked"):
                    entry.value = _copied_packs(source, target, entry.value)
    moved.replace(data)
    graph.write_bytes(model.SerializeToString())


def _begins(value: str) -> list[int]:
    """The offsets in an entry: a number, or a kernel's key and its packs as `key|offset;length;checksum|...`."""
    packs = value.split("|")[1:]
    return [int(pack.split(";")[0]) for pack in packs] if packs else [int(value)]


def _copied_packs(source: BinaryIO, target: BinaryIO, value: str) -> str:
    kernel, *packs = value.split("|")
    moved = []
    for pack in packs:
        begin, length, *rest = pack.split(";")
        moved.append(";".join([str(_copied(source, target, int(begin), int(length))), length, *rest]))
    return "|".join([kernel, *moved])


def _copied(source: BinaryIO, target: BinaryIO, begin: int, length: int) -> int:
    """Copy `length` bytes to the next multiple of 64 in `target`, and return that offset."""
    place = -(-target.tell() // _ALIGNMENT) * _ALIGNMENT
    target.seek(place)
    source.seek(begin)
    while length:
        piece = source.read(min(length, _AT_ONCE))
        if not piece:
            raise ValueError("the weights beside the graph are cut short")
        length -= target.write(piece)
    return place
