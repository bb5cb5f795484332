"""OpenVINO on the CPU, over the same ONNX graph that ONNX Runtime reads. Knows nothing of torch."""

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
    """Let `import openvino` find no telemetry package: it reports every import to a server of Google's otherwise."""
    present = sys.modules.get(_REPORTER)
    sys.modules[_REPORTER] = None  # type: ignore[assignment]  # how Python is told that a module cannot be imported
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
    """The CPU and nothing else, so that `auto` is the CPU too."""
    if device in ("auto", "cpu"):
        return "cpu"
    raise DeviceError(f"openvino computes on the CPU here, not on {device!r}: take --device cpu, or another --engine")


def load(bundle: Bundle, options: LoadOptions) -> "OpenVinoEngine":
    """Compile the bundle's ONNX graph for this processor. The graph is data: `allow_code` is not needed."""
    if ONNX not in bundle.manifest.members:
        reason = bundle.manifest.export_error or "it was built without"
        raise EngineError(f"bundle {bundle.manifest.name} has no ONNX graph ({reason}): take --engine eager")
    return OpenVinoEngine(bundle, threads=options.threads)


def _properties(threads: int) -> dict[str, Any]:
    """One request at a time over `threads` threads, in float32.

    Without the precision named, OpenVINO takes bfloat16 where the processor has it, and no longer agrees. It would
    also pin its threads to cores, and every worker process to the same ones.
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
            )  # some foreign graphs have it built in
            self._request = core.compile_model(graph, "CPU", _properties(threads)).create_infer_request()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise EngineError(
                f"openvino cannot load bundle {bundle.manifest.name}: {reason}: take --engine onnxruntime"
            ) from error
        give_memory_back()  # the graph as it was read

    def run(self, batch: Tensors) -> Tensors:
        if not self._row_by_row:
            return self._compute(batch)
        rows = len(next(iter(batch.values())))
        parts = [self._compute({name: array[i : i + 1] for name, array in batch.items()}) for i in range(rows)]
        return {spec.name: np.concatenate([part[spec.name] for part in parts]) for spec in self.outputs}

    def _compute(self, batch: Tensors) -> Tensors:
        given = {name: np.ascontiguousarray(array) for name, array in batch.items()}  # shared, so it must lie in order
        self._request.infer(given, share_inputs=True)
        # Copied: the request writes its next answer where this one lies.
        return {spec.name: self._request.get_tensor(spec.name).data.copy() for spec in self.outputs}

    def close(self) -> None:
        del self._request
