"""Golden samples at build time: a folder of inputs, answered by the network itself and kept in the bundle.

The user's expectations are checked here, once. The bundle keeps the network's outputs, or of large ones what tells as
much (`Task.kept`), and `flambeau.bundle.golden_samples` checks every replica against those. This module does not import
torch: the network is passed in as a function.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET
from safetensors.numpy import save_file

from flambeau.answers import Expected
from flambeau.bundle.golden_samples import output_key, parse
from flambeau.bundle.storage import SAMPLE_FILES, SAMPLE_OUTPUTS, SAMPLES
from flambeau.errors import InvalidInput, SourceError
from flambeau.pipelines.base import Pipeline
from flambeau.system.machine import MIB
from flambeau.tasks import expectation
from flambeau.types import Answer, Item, Options, Payload, Tensors, Value

EXPECTED = "expected.json"
"""The file of expected answers, beside the samples: {"chelsea.png": {"class_name": "Egyptian_cat"}}."""

MOST = 64
"""The most samples in a bundle: every replica answers all of them before it is ready."""

MOST_BYTES = 64 * MIB

_NAME = re.compile(r"\w[\w .,()+@=-]{0,99}(?<![ .])")  # a file name that every system accepts


@dataclass(frozen=True, slots=True)
class GivenSample:
    """A sample as the user gave it. `data` is the file's contents, `payload` what a request with it would carry."""

    name: str
    data: bytes
    payload: Payload
    expected: Expected


@dataclass(frozen=True, slots=True)
class Collected:
    """The rows of samples of one shape, and the network's outputs for them: more probes to check an export with."""

    inputs: Tensors
    outputs: Tensors


def gather(folder: Path) -> tuple[GivenSample, ...]:
    """Read the samples in a folder, ordered by name. Raises `SourceError` that names the sample at fault.

    Files whose names begin with a dot are skipped: they are the system's.
    """
    try:
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise SourceError(f"--samples {folder} cannot be read ({error.strerror}): name a folder of samples") from error
    expected = _read_expected(folder / EXPECTED) if folder / EXPECTED in files else {}
    files = [file for file in files if file.name != EXPECTED]
    _refuse_unfit(folder, files)
    if unknown := expected.keys() - {file.name for file in files}:
        raise SourceError(f"{EXPECTED} names {min(unknown)}, but --samples {folder} holds no such file")
    return tuple(_read(file, expected.get(file.name, {})) for file in files)


def _refuse_unfit(folder: Path, files: Sequence[Path]) -> None:
    if not files:
        raise SourceError(
            f'--samples {folder} holds no samples: put images there, or files like row.json, {{"input": …}}'
        )
    if len(files) > MOST:
        raise SourceError(
            f"--samples {folder} holds {len(files)} files, and the most is {MOST}: take a few that matter"
        )
    for file in files:
        if not file.is_file():
            raise SourceError(f"{file.name} in --samples {folder} is not a file: put the samples themselves there")
        if not _NAME.fullmatch(file.name):
            raise SourceError(f"sample {file.name!r} has a name that not every system takes: rename it like cat-1.jpg")
    if (size := sum(file.stat().st_size for file in files)) > MOST_BYTES:
        found = f"{size / MIB:.0f} MiB"
        raise SourceError(f"--samples {folder} holds {found}, and the most is {MOST_BYTES // MIB} MiB: take fewer")


def _read_expected(file: Path) -> dict[str, Expected]:
    name = EXPECTED
    try:
        entries = msgspec.json.decode(file.read_text("utf-8-sig"), type=dict[str, msgspec.Raw])
        table = {}
        for key, entry in entries.items():
            name = f"{EXPECTED}, under {key},"
            table[key] = expectation(entry)
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(
            f'{name} is not a table like {{"cat.png": {{"class_name": "tabby", "min_probability": 0.5}}}}: {error}'
        ) from error
    return table


def _read(file: Path, expected: Expected) -> GivenSample:
    try:
        data = file.read_bytes()
        payload, output = parse(file.name, data)
    except OSError as error:
        raise SourceError(f"sample {file.name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise SourceError(f'sample {file.name} is not a JSON text like {{"input": [1, 2]}}: {error}') from error
    if output is not UNSET and "output" in expected:
        raise SourceError(f"the output of sample {file.name} is given in it and in {EXPECTED}: leave one out")
    if output is not UNSET:
        expected = {**expected, "output": output}
    return GivenSample(file.name, data, payload, expected)


def collect(
    given: Sequence[GivenSample],
    folder: Path,
    *,
    pipeline: Pipeline,
    compute: Callable[[Tensors], Tensors],
    kept: Callable[[Tensors], Tensors] = lambda outputs: outputs,
) -> list[Collected]:
    """Answer each sample alone, keep them with their outputs in the bundle at `folder`, and return them by shape.

    `compute` is the network itself, not its export; `kept` is what the bundle keeps of its outputs. Raises
    `SourceError` that names a sample that cannot be preprocessed or answered, or whose answer is not what the user
    expects.
    """
    inputs = {each.name: _prepared(each, pipeline) for each in given}
    outputs = {each.name: compute(inputs[each.name]) for each in given}
    answers = {each.name: _accepted(each, outputs[each.name], pipeline) for each in given}
    _write(given, folder, {name: answer.readable() for name, answer in answers.items()})
    rows = {
        output_key(sample, name): np.ascontiguousarray(array)
        for sample, tensors in outputs.items()
        for name, array in kept(tensors).items()
    }
    save_file(rows, folder / SAMPLE_OUTPUTS)
    alike: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for name, tensors in inputs.items():
        arrays = (*tensors.values(), *outputs[name].values())  # a detector's answers to alike pictures differ in length
        alike.setdefault(tuple(array.shape[1:] for array in arrays), []).append(name)
    return [
        Collected(_joined([inputs[name] for name in names]), _joined([outputs[name] for name in names]))
        for names in alike.values()
    ]


def keep(given: Sequence[GivenSample], folder: Path) -> None:
    """Keep a Python model's samples in the bundle at `folder`, with the outputs that the user states.

    A build does not run a Python model, so it cannot compute them. Raises `SourceError` for a sample without an output.
    """
    for each in given:
        if odd := [part for part in each.expected if part not in Value.PARTS]:
            raise SourceError(f"{EXPECTED} wants {odd[0]} of {each.name}: of a Python model, state the whole output")
        if "output" not in each.expected:
            raise SourceError(
                f"sample {each.name} has no output, and a Python model is not run when it is built: "
                f'state it in {EXPECTED}, or in the file as {{"input": …, "output": …}}'
            )
    _write(given, folder, {each.name: each.expected for each in given})


def _prepared(given: GivenSample, pipeline: Pipeline) -> Tensors:
    try:
        return pipeline.preprocess(given.payload)
    except InvalidInput as error:
        raise SourceError(f"sample {given.name} is not a valid input for this model: {error.message}") from error


def _accepted(given: GivenSample, outputs: Tensors, pipeline: Pipeline) -> Answer:
    """The network's answer. Raises `SourceError` unless it is finite and what the user expects."""
    for name, rows in outputs.items():
        if not np.isfinite(rows).all():
            raise SourceError(f"the network answers sample {given.name} with numbers that are not finite, in {name}")
    answer = pipeline.postprocess(outputs, Item(given.payload, Options()))
    if why := answer.differs(given.expected):
        raise SourceError(
            f"sample {given.name} is not answered as expected: {why}: "
            "correct the expectation, or the weights, labels or preparation that the source is built with"
        )
    return answer


def _write(given: Sequence[GivenSample], folder: Path, expected: dict[str, Expected]) -> None:
    (folder / SAMPLE_FILES).mkdir()
    for each in given:
        (folder / SAMPLE_FILES / each.name).write_bytes(each.data)
    (folder / SAMPLES).write_bytes(msgspec.json.format(msgspec.json.encode(expected), indent=2) + b"\n")


def _joined(parts: Any) -> Tensors:
    first, *others = parts
    return {name: np.concatenate([rows, *(other[name] for other in others)]) for name, rows in first.items()}
