"""ONNX Runtime: the default engine. Knows nothing of torch."""

import numpy as np

from flambeau.bundle import INT8_ONNX, ONNX, OPTIMISED_ONNX, Bundle
from flambeau.engines import optimised
from flambeau.engines.base import Wish
from flambeau.engines.onnx_session import open_session
from flambeau.engines.ort import onnxruntime
from flambeau.errors import BundleError, DeviceError, EngineError
from flambeau.process import give_memory_back
from flambeau.types import Tensors


def resolve_device(device: str) -> str:
    """`cuda` needs an ONNX Runtime built with the CUDA provider; `mps` PyTorch itself."""
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "auto":
        return "cuda:0" if has_cuda else "cpu"
    if device == "cpu":
        return device
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise DeviceError(f"onnxruntime has no device {device!r} here: take --device cpu, or --engine eager")
    if not has_cuda:
        raise DeviceError(
            f"--device {device}: the installed onnxruntime has no CUDA provider: "
            "take --device cpu, --engine eager, or pip install onnxruntime-gpu"
        )
    return f"cuda:{index or 0}"


def load(bundle: Bundle, wish: Wish) -> "OnnxEngine":
    """Open a session on the bundle's graph: the optimised one, on the machine it was made for.

    The graph is data: `allow_code` is not needed.
    """
    if ONNX not in bundle.manifest.members:
        reason = bundle.manifest.export_error or "it was built without"
        raise EngineError(f"bundle {bundle.manifest.name} has no ONNX graph ({reason}): take --engine eager")
    mapped = wish.device == "cpu" and optimised.usable(bundle.manifest)
    return OnnxEngine(bundle, OPTIMISED_ONNX if mapped else ONNX, wish)


def load_int8(bundle: Bundle, wish: Wish) -> "OnnxEngine":
    """Open a session on the bundle's quantised graph, where it was built with one."""
    if INT8_ONNX not in bundle.manifest.members:
        raise EngineError(
            f"bundle {bundle.manifest.name} has no quantised graph: "
            "build it with --int8 and a folder of images, or take --engine onnxruntime"
        )
    return OnnxEngine(bundle, INT8_ONNX, wish)


class OnnxEngine:
    """One ONNX Runtime session."""

    def __init__(self, bundle: Bundle, member: str, wish: Wish) -> None:
        self.inputs = bundle.manifest.inputs
        self.outputs = bundle.manifest.outputs
        try:
            self._session = open_session(
                bundle.member(member),
                threads=wish.threads,
                alone=wish.alone,
                optimised=member == OPTIMISED_ONNX,
                device=wish.device,
            )
        except BundleError:
            raise
        except Exception as error:
            raise EngineError(f"onnxruntime cannot load bundle {bundle.manifest.name}: {error}") from error
        give_memory_back()  # the graph as it was read, and what optimising it took: a quarter of the whole
        self._output_names = [spec.name for spec in self.outputs]
        self._row_by_row = self._session.get_inputs()[0].shape[0] == 1  # some foreign graphs have it built in

    def run(self, batch: Tensors) -> Tensors:
        if not self._row_by_row:
            return self._compute(batch)
        rows = len(next(iter(batch.values())))
        parts = [self._compute({name: array[i : i + 1] for name, array in batch.items()}) for i in range(rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._output_names}

    def _compute(self, batch: Tensors) -> Tensors:
        return dict(zip(self._output_names, self._session.run(self._output_names, batch), strict=True))

    def close(self) -> None:
        del self._session
