"""ONNX Runtime, the default engine, its sessions, and graphs that it has optimised beforehand. Imports no torch.

ONNX Runtime optimises a graph while loading it: it fuses operators, and lays out weights for this processor's
instructions. Written once and mapped from then on, an optimised graph loads in a tenth of the time, and its weights are
in memory once, however many sessions and processes compute with them.
"""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as onnxruntime

from flambeau.bundle.storage import INT8_ONNX, ONNX, OPTIMISED_ONNX, Bundle
from flambeau.engines import base
from flambeau.engines.base import LoadOptions
from flambeau.errors import BundleError, DeviceError, EngineError
from flambeau.system.process import give_memory_back, report_to_nobody
from flambeau.types import Tensors

# Telemetry off. Only the build's quantiser imports `onnxruntime` elsewhere, in a process of our own.
report_to_nobody()  # onnxruntime reads the variable while it is loaded


_SILENT = 4  # errors are raised; ONNX Runtime would also write them to standard error
_LEAST_BYTES_BESIDE = "1024"  # smaller constants stay in the graph


def open_session(
    graph: Path, *, threads: int = 0, alone: bool = False, optimised: bool = False, device: str = "cpu"
) -> onnxruntime.InferenceSession:
    """A session on the graph, with `threads` threads (0: one per core). Raises what ONNX Runtime raises.

    `alone`: nothing else computes while it runs. `optimised`: load the graph as it is, as for one that
    `write_optimised` wrote.
    """
    _let_forked_children_exit()
    options = _options(threads)
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if alone else "0")
    # Spinning threads are ready for the next operator at once, but keep the core from other work.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Allocate weights outside the arena of intermediate results, which grows by doubling.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    if optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    kind, _, index = device.partition(":")
    if kind == "cuda":
        providers: list[Any] = [("CUDAExecutionProvider", {"device_id": index})]
    else:
        providers = ["CPUExecutionProvider"]
        if _shares_arena():
            options.add_session_config_entry("session.use_env_allocators", "1")
    return onnxruntime.InferenceSession(graph, options, providers=providers)


def write_optimised(graph: Path, target: Path) -> None:
    """Write the graph optimised for this processor, and its weights beside it as `target`.data.

    Weights that matrix products read in another layout are also written in that layout (prepacked). Raises what ONNX
    Runtime raises.
    """
    # In two steps. In one step, weights are in memory as read, as constant-folded, and as written: 600 MiB for 230 MiB
    # of weights. The file between the steps is mapped and takes no memory: 380 MiB.
    folded = target.with_name(f"{target.name}.folded")
    try:
        _rewrite(graph, folded, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC, prepack=False)
        give_memory_back()
        _rewrite(folded, target, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, prepack=True)
    finally:
        for file in (folded, _weights_of(folded)):
            file.unlink(missing_ok=True)


def _rewrite(graph: Path, target: Path, level: onnxruntime.GraphOptimizationLevel, *, prepack: bool) -> None:
    options = _options(threads=1)
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(target)
    beside = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{beside}_file_name", _weights_of(target).name)
    options.add_session_config_entry(f"{beside}_min_size_in_bytes", _LEAST_BYTES_BESIDE)
    options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1" if prepack else "0")
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _weights_of(graph: Path) -> Path:
    return graph.with_name(f"{graph.name}.data")


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    # Memory patterns plan the memory for each shape: no faster, and a third more memory over batches of every size.
    options.enable_mem_pattern = False
    return options


@cache
def _shares_arena() -> bool:
    """Give all sessions of this process one arena for intermediate results: a worker's sessions do not run at once.

    False where another package has registered an allocator.
    """
    where = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    try:
        onnxruntime.create_and_register_allocator(where, None)
    except Exception:  # another package in this process has registered its own
        return False
    return True


@cache
def _let_forked_children_exit() -> None:
    """Keep a child forked from this process (gunicorn --preload) from hanging when it exits.

    ONNX Runtime's exit handlers destroy a condition variable that one of its threads waits on. A fork copies the
    waiting state but not the thread, so the child would wait for ever. In the child, `_exit` runs before all others.
    """
    libc = ctypes.CDLL(None)
    if hasattr(os, "register_at_fork") and hasattr(libc, "on_exit"):  # glibc
        os.register_at_fork(after_in_child=lambda: libc.on_exit(libc._exit, None))


# The engine.


def resolve_device(device: str) -> str:
    """`auto` takes CUDA if ONNX Runtime has its CUDA provider, else the CPU. There is no `mps`: that needs PyTorch.

    Raises `DeviceError`.
    """
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


def load(bundle: Bundle, options: LoadOptions) -> "OnnxEngine":
    """Open a session on the bundle's graph: the optimised one on the machine it was made for, else the plain one.

    The graph is data, so `allow_code` is not needed.
    """
    if ONNX not in bundle.manifest.members:
        reason = bundle.manifest.export_error or "it was built without"
        raise EngineError(f"bundle {bundle.manifest.name} has no ONNX graph ({reason}): take --engine eager")
    mapped = options.device == "cpu" and base.may_run_optimised(bundle.manifest, version=onnxruntime.__version__)
    return OnnxEngine(bundle, OPTIMISED_ONNX if mapped else ONNX, options)


def load_int8(bundle: Bundle, options: LoadOptions) -> "OnnxEngine":
    """Open a session on the bundle's quantised graph. Raises `EngineError` if it was built without one."""
    if INT8_ONNX not in bundle.manifest.members:
        raise EngineError(
            f"bundle {bundle.manifest.name} has no quantised graph: "
            "build it with --int8 and a folder of images, or take --engine onnxruntime"
        )
    return OnnxEngine(bundle, INT8_ONNX, options)


class OnnxEngine:
    """One ONNX Runtime session."""

    def __init__(self, bundle: Bundle, member: str, options: LoadOptions) -> None:
        self.inputs = bundle.manifest.inputs
        self.outputs = bundle.manifest.outputs
        try:
            self._session = open_session(
                bundle.member(member),
                threads=options.threads,
                alone=options.alone,
                optimised=member == OPTIMISED_ONNX,
                device=options.device,
            )
        except BundleError:
            raise
        except Exception as error:
            raise EngineError(f"onnxruntime cannot load bundle {bundle.manifest.name}: {error}") from error
        give_memory_back()  # the graph as read, and the memory for optimising it: a quarter of the total
        self._output_names = [spec.name for spec in self.outputs]
        self._row_by_row = any(
            each.shape[:1] == [1] for each in self._session.get_inputs()
        )  # some graphs have a batch size of one built in

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
