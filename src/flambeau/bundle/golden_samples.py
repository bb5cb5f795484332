"""Golden samples: inputs that a bundle carries, with the answers that every replica must reproduce.

    samples/FILE         the inputs, byte for byte as they were given
    samples.json         the readable parts of each answer: {"chelsea.png": {"class_name": "Egyptian_cat"}}
    samples.safetensors  the network's outputs at build time: "chelsea.png/output", a row for each row of the input

This module reads them and compares answers with them. It opens no model, and does not know how one is run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import msgspec
from msgspec import UNSET
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flambeau.answers import Expected
from flambeau.bundle.storage import SAMPLE_FILES, SAMPLE_OUTPUTS, SAMPLES, Bundle, HasTask
from flambeau.errors import BundleError, EngineError, RequestError
from flambeau.tasks import expectation
from flambeau.types import Item, Options, Outcome, Payload, Tensors

OutputsApart = Callable[[Tensors, Tensors], str | None]
"""How a network's outputs differ from expected ones, or `None`."""

_TOGETHER = 8  # samples in one batch: a service's default batch size


@dataclass(frozen=True, slots=True)
class Sample:
    """One input and the answer it must get. `outputs` are the network's output rows; empty for a Python model."""

    name: str
    payload: Payload
    expected: Expected
    outputs: Tensors


class Traced(msgspec.Struct, frozen=True):
    """The outcome of one item, and the network's output rows that led to it."""

    outcome: Outcome
    outputs: Tensors


class _SamplesFile(msgspec.Struct, forbid_unknown_fields=True):
    input: msgspec.Raw
    output: Any = UNSET


def parse(name: str, data: bytes) -> tuple[Payload, Any]:
    """A sample file as the payload of a request, and the `output` that it states, or `UNSET`.

    A `.json` file is `{"input": ...}`, optionally with an `output`; any other file is the input itself. Raises
    `ValueError`.
    """
    if PurePath(name).suffix.lower() != ".json":
        return Payload("file", data), UNSET
    try:
        document = msgspec.json.decode(data.decode("utf-8-sig"), type=_SamplesFile)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return Payload("json", bytes(document.input)), document.output


def read(opened: Bundle) -> tuple[Sample, ...]:
    """The samples of a bundle; empty if it was built without. Raises `BundleError`."""
    if SAMPLES not in opened.manifest.members:
        return ()
    try:
        table = msgspec.json.decode(opened.member(SAMPLES).read_bytes(), type=dict[str, msgspec.Raw])
        figures = SAMPLE_OUTPUTS in opened.manifest.members and not opened.quantised  # int8 outputs differ
        tensors = load_file(opened.member(SAMPLE_OUTPUTS)) if figures else {}
        files = {name: opened.member(str(Path(SAMPLE_FILES, name))).read_bytes() for name in table}
        return tuple(
            Sample(
                name=name,
                payload=parse(name, files[name])[0],
                expected=expectation(expected),
                outputs={key.removeprefix(f"{name}/"): rows for key, rows in tensors.items() if _is_of(key, name)},
            )
            for name, expected in table.items()
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise BundleError(f"the samples of bundle {opened.path} cannot be read: {error}") from error


def output_key(name: str, output: str) -> str:
    """The key in `samples.safetensors` of one output of one sample."""
    return f"{name}/{output}"


def _is_of(key: str, name: str) -> bool:
    return key.startswith(output_key(name, ""))


def options(opened: Bundle) -> Options:
    """The options that samples are answered with: the bundle's own threshold, whatever the service's is."""
    pipeline = opened.manifest.pipeline
    return Options(threshold=pipeline.threshold if isinstance(pipeline, HasTask) else None)


def reproduce(
    samples: Sequence[Sample],
    run: Callable[[Sequence[Item]], Sequence[Traced]],
    *,
    model: str,
    remedy: str,
    asked: Options | None = None,
    outputs_apart: OutputsApart = lambda expected, found: None,
) -> None:
    """Run every sample alone and in a batch, because batching must not change an answer. `asked` comes from `options`.
    `outputs_apart` says how outputs differ from those of the build.

    Raises `EngineError` with a sentence about the first sample that gets another answer.
    """
    alone = [([sample], "") for sample in samples]
    together = [(batch, " in a batch") for batch in _batches(samples)]
    for batch, how in (*alone, *together):
        found = run([Item(sample.payload, asked or Options()) for sample in batch])
        for sample, traced in zip(batch, found, strict=True):
            if isinstance(traced.outcome.result, RequestError):
                raise _unanswered(sample, traced.outcome.result, model)
            if why := _deviation(sample, traced, outputs_apart):
                raise EngineError(
                    f"on this machine {model} does not reproduce the answer to its sample {sample.name}{how}: "
                    f"{why}: {remedy}"
                )


def _batches(samples: Sequence[Sample]) -> list[list[Sample]]:
    """All samples in batches of several. A sample left over alone is paired with itself."""
    parts = [list(samples[start : start + _TOGETHER]) for start in range(0, len(samples), _TOGETHER)]
    return [part if len(part) > 1 else part * 2 for part in parts]


def _unanswered(sample: Sample, error: RequestError, model: str) -> EngineError:
    remedies = {"image_too_large": "raise --max-image-pixels, or build the bundle with a smaller sample"}
    remedy = remedies.get(error.code, "build the bundle again, or without this sample")
    return EngineError(f"{model} cannot answer its sample {sample.name}: {error.message}: {remedy}")


def _deviation(sample: Sample, traced: Traced, outputs_apart: OutputsApart) -> str | None:
    """How an answer differs from the sample's, or `None`. The readable parts come first, the outputs after them."""
    assert not isinstance(traced.outcome.result, RequestError)
    apart = outputs_apart(sample.outputs, traced.outputs) if sample.outputs else None
    return "; ".join(why for why in (traced.outcome.result.differs(sample.expected), apart) if why) or None
