"""ONNX Runtime: the default engine. Knows nothing of torch."""

import ctypes
import os
from functools import cache

import numpy as np
import onnxruntime

from flambeau.bundle import INT8_ONNX, ONNX, Bundle
from flambeau.errors import DeviceError, EngineError
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


def load(bundle: Bundle, *, device: str, threads: int, max_batch: int, allow_code: bool) -> "OnnxEngine":
    """Open a session on the bundle's ONNX graph. The graph is data: `allow_code` is not needed."""
    if ONNX not in bundle.manifest.members:
        reason = bundle.manifest.export_error or "it was built without"
        raise EngineError(f"bundle {bundle.manifest.name} has no ONNX graph ({reason}): take --engine eager")
    return OnnxEngine(bundle, ONNX, device=device, threads=threads)


def load_int8(bundle: Bundle, *, device: str, threads: int, max_batch: int, allow_code: bool) -> "OnnxEngine":
    """Open a session on the bundle's quantised graph, where it was built with one."""
    if INT8_ONNX not in bundle.manifest.members:
        raise EngineError(
            f"bundle {bundle.manifest.name} has no quantised graph: "
            "build it with --int8 and a folder of images, or take --engine onnxruntime"
        )
    return OnnxEngine(bundle, INT8_ONNX, device=device, threads=threads)


@cache
def _let_forked_children_exit() -> None:
    """Keep a child that is forked from this process (gunicorn --preload) from hanging when it exits.

    ONNX Runtime's exit handlers destroy a condition variable on which one of its threads waits, and a fork copies the
    waiting but not the thread: the child would wait for ever. There `_exit` goes in front of all exit handlers.
    """
    libc = ctypes.CDLL(None)
    if hasattr(os, "register_at_fork") and hasattr(libc, "on_exit"):  # glibc
        os.register_at_fork(after_in_child=lambda: libc.on_exit(libc._exit, None))


class OnnxEngine:
    """One ONNX Runtime session."""

    def __init__(self, bundle: Bundle, member: str, *, device: str, threads: int) -> None:
        _let_forked_children_exit()
        self.inputs = bundle.manifest.inputs
        self.outputs = bundle.manifest.outputs
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads take the cores from other replicas: measured faster alone, slower side by side.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Weights apart from what is computed: the arena that both share otherwise grows by doubling.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        options.log_severity_level = 3
        kind, _, index = device.partition(":")
        providers = [("CUDAExecutionProvider", {"device_id": index})] if kind == "cuda" else ["CPUExecutionProvider"]
        try:
            self._session = onnxruntime.InferenceSession(bundle.member(member), options, providers=providers)
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
