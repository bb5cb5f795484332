"""OpenVINO on the CPU, over the same ONNX graph that ONNX Runtime reads. Imports no torch."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from flambeau.bundle.storage import ONNX, Bundle
from flambeau.engines.base import LoadOptions
from flambeau.errors import DeviceError, EngineError
from flambeau.system.process import give_memory_back
from flambeau.types import Tensors

_REPORTER = "openvino_telemetry"


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Hide the telemetry package from `import openvino`, which would report every import to a Google server."""
    present = sys.modules.get(_REPORTER)
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # None makes an import of the module fail
    try:
        yield
    finally:
        if present is None:
            del sys.modules[_REPORTER]
        else:
            sys.modules[_REPORTER] = present


with _without_telemetry():
    import openvino


def resolve_device(device: str) -> str:
    """`cpu`, for `auto` too. Raises `DeviceError` for any other device."""
    if device in ("auto", "cpu"):
        return "cpu"
    raise DeviceError(f"openvino computes on the CPU here, not on {device!r}: take --device cpu, or another --engine")


def load(bundle: Bundle, options: LoadOptions) -> "OpenVinoEngine":
    """Compile the bundle's ONNX graph for this processor. The graph is data, so `allow_code` is not needed."""
    if ONNX not in bundle.manifest.members:
        reason = bundle.manifest.export_error or "it was built without"
        raise EngineError(f"bundle {bundle.manifest.name} has no ONNX graph ({reason}): take --engine eager")
    return OpenVinoEngine(bundle, threads=options.threads)


def _properties(threads: int) -> dict[str, Any]:
    """Compile properties: one request at a time with `threads` threads, in float32.

    By default OpenVINO computes in bfloat16 where the processor has it, and then disagrees with PyTorch. It also pins
    its threads to cores, in every worker process to the same ones.
    """
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }


class OpenVinoEngine:
    """One compiled model with one request."""

    def __init__(self, bundle: Bundle, *, threads: int) -> None:
        self.inputs = bundle.manifest.inputs
        self.outputs = bundle.manifest.outputs
        try:
            core = openvino.Core()
            graph = core.read_model(bundle.member(ONNX))
            self._row_by_row = any(
                each.partial_shape[0] == 1 for each in graph.inputs
            )  # some graphs have a batch size of one built in
            self._request = core.compile_model(graph, "CPU", _properties(threads)).create_infer_request()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise EngineError(
                f"openvino cannot load bundle {bundle.manifest.name}: {reason}: take --engine onnxruntime"
            ) from error
        give_memory_back()  # the graph as read

    def run(self, batch: Tensors) -> Tensors:
        if not self._row_by_row:
            return self._compute(batch)
        rows = len(next(iter(batch.values())))
        parts = [self._compute({name: array[i : i + 1] for name, array in batch.items()}) for i in range(rows)]
        return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in self.outputs}

    def _compute(self, batch: Tensors) -> Tensors:
        given = {name: np.ascontiguousarray(array) for name, array in batch.items()}  # shared inputs must be contiguous
        self._request.infer(given, share_inputs=True)
        # Copied, because the request writes its next answer to the same memory.
        return {spec.name: self._request.get_tensor(spec.name).data.copy() for spec in self.outputs}

    def close(self) -> None:
        del self._request
