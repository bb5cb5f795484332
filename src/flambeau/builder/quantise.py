"""Quantise a graph to int8 with the user's calibration inputs, and compare the two on these inputs.

The reference is PyTorch, or the graph itself where the source is an ONNX file. Static quantisation: the calibration
inputs fix the range of every activation, so they should look like real requests. Weights are 8-bit per channel. On an
x86 processor without VNNI they use 7 of these bits, because it adds two products in 16 bits and would saturate; that
costs accuracy (measured: 86 % instead of 97 % of top classes kept), and is not done elsewhere. A graph made on one kind
of processor and moved to the other may not reproduce its answers, and is then refused when it is loaded.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from safetensors.numpy import save_file

from flambeau.answers import agreement
from flambeau.bundle import golden_samples
from flambeau.bundle.measurements import Quantised
from flambeau.bundle.storage import INT8_ONNX, INT8_PROBES, ONNX, graph_bytes
from flambeau.errors import InvalidInput, SourceError
from flambeau.pipelines.base import Pipeline
from flambeau.system import machine
from flambeau.types import Tensors

FEWEST = 8
MOST = 1000
POOR = 0.9
"""The share of same top classes below which an int8 graph is called poor."""

_ONE_FILE_LIMIT = 50_000_000  # bytes of weights; more go to files beside the graphs
_PROBES = 8  # calibration inputs kept as probes, which every replica must reproduce


def gather(folder: Path, pipeline: Pipeline) -> list[Tensors]:
    """The calibration inputs in a folder, preprocessed as requests are. Raises `SourceError` for too few or too many,
    or one that cannot be read."""
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    except OSError as error:
        raise SourceError(f"--int8 {folder} cannot be read ({error.strerror}): name a folder of images") from error
    if not FEWEST <= len(files) <= MOST:
        raise SourceError(
            f"--int8 {folder} holds {len(files)} files: calibrating takes {FEWEST} to {MOST}, "
            "a hundred that look like real requests are enough"
        )
    return [_prepared(file, pipeline) for file in files]


def _prepared(file: Path, pipeline: Pipeline) -> Tensors:
    try:
        payload, _ = golden_samples.parse(file.name, file.read_bytes())
        return pipeline.preprocess(payload)
    except InvalidInput as error:
        raise SourceError(f"{file.name} in --int8 is not a valid input for this model: {error.message}") from error
    except (OSError, ValueError) as error:
        raise SourceError(f"{file.name} in --int8 cannot be read: {error}") from error


def quantise(folder: Path, given: list[Tensors], *, compute: Callable[[Tensors], Tensors], classes: bool) -> Quantised:
    """Write the int8 graph into the bundle at `folder`, with its own answers for replicas to reproduce.

    `compute` is the network itself: PyTorch's, or the original graph. Raises `SourceError` for a graph that cannot be
    quantised.
    """
    target = folder / INT8_ONNX
    prepared = folder / "prepared.onnx"
    large = graph_bytes(folder) > _ONE_FILE_LIMIT
    try:
        quant_pre_process(
            folder / ONNX,
            prepared,
            skip_symbolic_shape=True,
            save_as_external_data=True,  # otherwise it looks for weights beside the graph in another folder
            all_tensors_to_one_file=True,
            external_data_location=f"{prepared.name}.data",
        )
        quantize_static(
            prepared,
            target,
            _Reader(given),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=machine.saturates(),
            op_types_to_quantize=_operators(prepared),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )
        session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime and onnx have their own exception types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"--int8: the graph cannot be quantised ({reason}): build it without") from error
    finally:
        for file in folder.glob("prepared.onnx*"):
            file.unlink()
    expected = [compute(rows) for rows in given]
    found = [_run(session, rows, expected[0]) for rows in given]
    _keep(folder, given, found)
    return _measure(_joined(expected), _joined(found), classes=classes)


def _operators(graph: Path) -> list[str]:
    """The operators to quantise: all but BatchNormalization, whose one-axis scales cannot be quantised per channel."""
    model = onnx.load(graph, load_external_data=False)
    return sorted({node.op_type for node in model.graph.node} - {"BatchNormalization"})


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # of an untyped library
    def __init__(self, given: list[Tensors]) -> None:
        self._rows: Iterator[Tensors] = iter(given)

    def get_next(self) -> Tensors | None:
        return next(self._rows, None)


def _run(session: Any, rows: Tensors, like: Tensors) -> Tensors:
    return dict(zip(like, session.run(list(like), rows), strict=True))


def _joined(parts: list[Tensors]) -> Tensors:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _keep(folder: Path, given: list[Tensors], found: list[Tensors]) -> None:
    """Keep a few inputs with the quantised graph's own answers, as probes."""
    few: dict[str, list[np.ndarray]] = {}
    for inputs, outputs in list(zip(given, found, strict=True))[:_PROBES]:
        for kind, tensors in (("input", inputs), ("output", outputs)):
            for name, array in tensors.items():
                few.setdefault(f"{kind}.{name}", []).append(array)
    save_file(
        {name: np.ascontiguousarray(np.concatenate(arrays)) for name, arrays in few.items()}, folder / INT8_PROBES
    )


def _measure(expected: Tensors, found: Tensors, *, classes: bool) -> Quantised:
    """The largest difference of any output; with `classes` there is one output, which ranks them."""
    apart = max(agreement.measure(expected[name], found[name], classes=False).difference for name in expected)
    first, its = next(iter(expected.values())), next(iter(found.values()))
    same = float((first.argmax(axis=1) == its.argmax(axis=1)).mean()) if classes else None
    return Quantised(samples=len(first), top1=same, difference=apart)


def told(found: Quantised, whose: str = "PyTorch's") -> str:
    """A sentence about an int8 graph, a warning where it is poor. `whose` answers it was compared with."""
    apart = f"answers at most {found.difference:.1e} apart"
    if found.top1 is None:
        return f"int8: {apart} from {whose} on {found.samples} calibration inputs: check whether that is near enough"
    share = f"{found.top1:.0%} of {found.samples} calibration images get {whose} top class, {apart}"
    if found.top1 < POOR:
        return f"WARNING: the int8 graph is POOR: only {share}: do not serve it, or calibrate it with other images"
    return f"int8: {share}"
