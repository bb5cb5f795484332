"""What an ONNX graph takes and answers, and whether that is served: one tensor of decimal numbers in, rows first.

It goes by what `flambeau.formats` read of the file, and reads nothing. The build says the same when it opens the graph.
"""

import re
from collections.abc import Mapping

import msgspec

from flambeau.detection import sketches

_END = re.compile(r"(.+?) (\w+|\?)\[([^\[\]]*)\](?:, |$)")


class Judged(msgspec.Struct, frozen=True):
    """`needs` is why a graph cannot be served as it is, and what to do; `example` a Python model that serves it."""

    needs: str = ""
    example: str = ""


def judge(facts: Mapping[str, str], file: str) -> Judged:
    """Whether a graph with these `inputs` is served. `file` is its path, for the Python model."""
    inputs = [(found[1], found[2], found[3]) for found in _END.finditer(facts.get("inputs", ""))]
    outputs = [found[1] for found in _END.finditer(facts.get("outputs", ""))]
    if len(inputs) != 1:
        taken = f"{len(inputs)} inputs ({', '.join(name for name, _, _ in inputs)})"
        given = f"{len(outputs)} output{'s' if len(outputs) != 1 else ''} ({', '.join(outputs)})"
        return _around(f"it takes {taken} and answers with {given}, and one tensor in is served", file, inputs)
    [(name, dtype, text)] = inputs
    if dtype != "float32":
        return _around(f"its input {name} is {dtype}, and only float32 is served", file, inputs)
    rows, *sizes = text.split(", ") if text else [""]
    if not rows:
        return _around(f"its input {name} does not say its shape, or has none", file, inputs)
    if rows.isdigit() and rows != "1":
        return _around(f"it takes {rows} rows at a time only", file, inputs)
    free = [size for size in sizes if not size.isdigit()]
    pictures = len(sizes) == 3 and sizes[0] in ("1", "3") and len(free) == 2 and sizes[0] not in free
    if free and not pictures:
        return Judged(f"it takes inputs of free shape [{text}]: say the shape of one item with --input-shape")
    return Judged()


def _around(why: str, file: str, inputs: list[tuple[str, str, str]]) -> Judged:
    known = {"float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"}
    if not inputs or any(dtype not in known for _, dtype, _ in inputs):
        return Judged(f"{why}; {sketches.AROUND}")
    return Judged(f"{why}; {sketches.PRINTED}", sketches.of_graph(file, inputs))
