"""Golden samples: inputs that a bundle carries, with the answers to them that a replica must reproduce.

    samples/FILE         the inputs, byte for byte as they were given
    samples.json         the parts of each answer that can be read: {"chelsea.png": {"class_name": "Egyptian_cat"}}
    samples.safetensors  what eager PyTorch gave for them: "chelsea.png/output", a row for each row of the input

This module reads them and holds answers against them. It opens no model, and does not know how one is run.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import UNSET
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flambeau import agreement
from flambeau.bundle import SAMPLE_FILES, SAMPLE_OUTPUTS, SAMPLES, Bundle
from flambeau.errors import BundleError, EngineError, RequestError
from flambeau.types import Answer, Classification, Item, Options, Outcome, Payload, Tensors, Value

_TOGETHER = 8  # samples in one batch: as many as a service takes together unless it is told otherwise
_ZERO = 1e-6  # numbers that lie nearer than this are apart by rounding alone


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The parts of an answer that are insisted on.

    The first four are of a classification: its best class, and the least probability of that. `output` is the JSON
    value of any other answer; left out, it is `UNSET`, for null is a value too.
    """

    class_index: int | None = None
    class_id: str | None = None
    class_name: str | None = None
    min_probability: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    output: Any = UNSET


@dataclass(frozen=True, slots=True)
class Sample:
    """One input and the answer it must get. `outputs` are the rows of the network's outputs; a function has none."""

    name: str
    payload: Payload
    expected: Expected
    outputs: Tensors


@dataclass(frozen=True, slots=True)
class Traced:
    """What became of one item, and its rows of the network's outputs on the way there."""

    outcome: Outcome
    outputs: Tensors


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    input: msgspec.Raw
    output: Any = UNSET


def parse(name: str, data: bytes) -> tuple[Payload, Any]:
    """A sample's file as the payload a request would carry, and the `output` it states, else `UNSET`.

    A `.json` file is `{"input": ...}`, or that with an `output`; any other is an input as it is. Raises `ValueError`.
    """
    if PurePath(name).suffix.lower() != ".json":
        return Payload("file", data), UNSET
    try:
        document = msgspec.json.decode(data.decode("utf-8-sig"), type=_Document)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return Payload("json", bytes(document.input)), document.output


def read(opened: Bundle) -> tuple[Sample, ...]:
    """The samples of a bundle, none if it was built without. Raises `BundleError`."""
    if SAMPLES not in opened.manifest.members:
        return ()
    try:
        table = msgspec.json.decode(opened.member(SAMPLES).read_bytes(), type=dict[str, Expected])
        figures = SAMPLE_OUTPUTS in opened.manifest.members and not opened.quantised  # int8 has others
        tensors = load_file(opened.member(SAMPLE_OUTPUTS)) if figures else {}
        files = {name: opened.member(str(Path(SAMPLE_FILES, name))).read_bytes() for name in table}
        return tuple(
            Sample(
                name=name,
                payload=parse(name, files[name])[0],
                expected=expected,
                outputs={key.removeprefix(f"{name}/"): rows for key, rows in tensors.items() if _is_of(key, name)},
            )
            for name, expected in table.items()
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise BundleError(f"the samples of bundle {opened.path} cannot be read: {error}") from error


def output_key(name: str, output: str) -> str:
    """The tensor in `samples.safetensors` that holds one output of one sample."""
    return f"{name}/{output}"


def _is_of(key: str, name: str) -> bool:
    return key.startswith(output_key(name, ""))


def reproduce(
    samples: Sequence[Sample], run: Callable[[Sequence[Item]], Sequence[Traced]], *, model: str, remedy: str
) -> None:
    """Run every sample alone and among others, for batching must not change an answer.

    Raises `EngineError` with a sentence about the first sample that is answered in another way.
    """
    alone = [([sample], "") for sample in samples]
    together = [(batch, " in a batch") for batch in _batches(samples)]
    for batch, how in (*alone, *together):
        found = run([Item(sample.payload, Options()) for sample in batch])
        for sample, traced in zip(batch, found, strict=True):
            if isinstance(traced.outcome.result, RequestError):
                raise _unanswered(sample, traced.outcome.result, model)
            if why := _deviation(sample, traced.outcome.result, traced.outputs):
                raise EngineError(
                    f"on this machine {model} does not reproduce the answer to its sample {sample.name}{how}: "
                    f"{why}: {remedy}"
                )


def _batches(samples: Sequence[Sample]) -> list[list[Sample]]:
    """All samples in batches. One that would be alone again is joined by itself."""
    parts = [list(samples[start : start + _TOGETHER]) for start in range(0, len(samples), _TOGETHER)]
    return [part if len(part) > 1 else part * 2 for part in parts]


def _unanswered(sample: Sample, error: RequestError, model: str) -> EngineError:
    remedies = {"image_too_large": "raise --max-image-pixels, or build the bundle with a smaller sample"}
    remedy = remedies.get(error.code, "build the bundle again, or without this sample")
    return EngineError(f"{model} cannot answer its sample {sample.name}: {error.message}: {remedy}")


def _deviation(sample: Sample, answer: Answer, outputs: Tensors) -> str | None:
    """In what an answer differs from the sample's, or `None`. What can be read comes first, the figures after it."""
    apart = _outputs_apart(sample.outputs, outputs, classes=isinstance(answer, Classification))
    return "; ".join(why for why in (mismatch(sample.expected, answer), apart) if why) or None


def _outputs_apart(expected: Tensors, found: Tensors, *, classes: bool) -> str | None:
    for name, rows in expected.items():
        if name not in found or found[name].shape != rows.shape:
            shape = list(found[name].shape) if name in found else "missing"
            return f"{name} is {shape} where {list(rows.shape)} is expected"
        if not np.isfinite(found[name]).all():
            return f"{name} holds numbers that are not finite"
        measured = agreement.measure(rows, found[name], classes=classes)
        if not measured.holds:
            top = "" if measured.same_top_class else ", with another top class"
            return f"{name} is {measured.difference:.1e} apart (tolerance {measured.tolerance:.0e}){top}"
    return None


def mismatch(expected: Expected, answer: Answer) -> str | None:
    """The first thing that is insisted on and not so: "class_id is 'a' where 'b' is expected". `None` if all is so."""
    if isinstance(answer, Classification):
        if expected.output is not UNSET:
            return "the answer is a class, and has no output to compare"
        best = answer.top[0]
        for name, found in (
            ("class_index", best.index), ("class_id", best.label.id), ("class_name", best.label.name),
        ):  # fmt: skip
            if getattr(expected, name) not in (None, found):
                return f"{name} is {found!r} where {getattr(expected, name)!r} is expected"
        least = expected.min_probability
        if least is not None and not best.probability >= least:  # NaN is not enough either
            return f"the probability of {best.label.name} is {best.probability:.3f} where {least:g} is the least"
        return None
    assert isinstance(answer, Value)  # a sample is never a value of this process
    if insisted := names_class(expected):
        return f"the answer is no class, and has no {insisted}"
    return None if expected.output is UNSET else _differs(expected.output, msgspec.json.decode(answer.json), "output")


def names_class(expected: Expected) -> str | None:
    """The first field that only a classification can meet, or `None`."""
    fields = ("class_index", "class_id", "class_name", "min_probability")
    return next((field for field in fields if getattr(expected, field) is not None), None)


def _differs(expected: Any, found: Any, where: str) -> str | None:
    """The first place where two JSON values differ, or `None`."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if odd := sorted(expected.keys() ^ found.keys()):
            return f"{where} {'has' if odd[0] in found else 'lacks'} {odd[0]!r}"
        pairs = [(expected[key], found[key], f"{where}[{key!r}]") for key in expected]
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return f"{where} has {len(found)} elements where {len(expected)} are expected"
        pairs = [(*pair, f"{where}[{index}]") for index, pair in enumerate(zip(expected, found, strict=True))]
    elif _same(expected, found):
        return None
    else:
        return f"{where} is {_shown(found)} where {_shown(expected)} is expected"
    return next(filter(None, itertools.starmap(_differs, pairs)), None)


def _same(expected: Any, found: Any) -> bool:
    """Numbers within the tolerance; whole numbers, which are counts and names, and all else equal."""
    if {type(expected), type(found)} in ({float}, {float, int}):  # not bool, which is an int to isinstance
        with contextlib.suppress(OverflowError):  # a whole number past every float: equal to none
            return math.isclose(expected, found, rel_tol=agreement.TOLERANCE, abs_tol=_ZERO)
    return type(expected) is type(found) and bool(expected == found)


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:60]}…"
