"""Sessions of ONNX Runtime, and graphs that it has optimised beforehand. Knows no bundle.

An optimised graph is what ONNX Runtime makes of a graph while it loads it: operators fused, weights laid out as this
processor's instructions want them. Written once and mapped from there on, it loads in a tenth of the time, and its
weights are in memory once, however many sessions and processes compute with them.
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

# The package `onnxruntime`, loaded so that it reports to nobody.
#
# Only the quantiser of the build, which is a process of ours, imports it elsewhere.

report_to_nobody()  # it reads its variable while it is loaded


_SILENT = 4  # what goes wrong is raised; ONNX Runtime would write it to standard error as well
_LEAST_BYTES_BESIDE = "1024"  # smaller constants stay in the graph


def open_session(
    graph: Path, *, threads: int = 0, alone: bool = False, optimised: bool = False, device: str = "cpu"
) -> onnxruntime.InferenceSession:
    """A session on the graph, with so many threads (0: one per core). Raises what ONNX Runtime raises.

    `alone`: nothing else computes while it runs. `optimised`: the graph is what `write_optimised` wrote.
    """
    _let_forked_children_exit()
    options = _options(threads)
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if alone else "0")
    # Threads that spin are ready for the next operator at once, but take the core from whoever else has work.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Weights apart from what is computed: the arena that both share otherwise grows by doubling.
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
    """Write the graph as it is optimised for this processor, and its weights beside it as `target`.data.

    The weights stand there as well in the order in which matrix products read them, where that is another. Raises what
    ONNX Runtime raises.
    """
    # In two steps. In one, weights are in memory as they were read, as they were multiplied out, and as they are
    # written: of 230 MiB that took 600. The file between the steps is mapped, and takes none: 380.
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
    # A plan of the memory for each shape: no faster, and for batches of every size a third more memory.
    options.enable_mem_pattern = False
    return options


@cache
def _shares_arena() -> bool:
    """Give all sessions of this process one arena to compute in: those of one worker do not run at the same time."""
    where = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    try:
        onnxruntime.create_and_register_allocator(where, None)
    except Exception:  # another package of this process has registered its own
        return False
    return True


@cache
def _let_forked_children_exit() -> None:
    """Keep a child that is forked from this process (gunicorn --preload) from hanging when it exits.

    ONNX Runtime's exit handlers destroy a condition variable on which one of its threads waits, and a fork copies the
    waiting but not the thread: the child would wait for ever. There `_exit` goes in front of all exit handlers.
    """
    libc = ctypes.CDLL(None)
    if hasattr(os, "register_at_fork") and hasattr(libc, "on_exit"):  # glibc
        os.register_at_fork(after_in_child=lambda: libc.on_exit(libc._exit, None))


# ONNX Runtime: the default engine. Knows nothing of torch.


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


def load(bundle: Bundle, options: LoadOptions) -> "OnnxEngine":
    """Open a session on the bundle's graph: the optimised one, on the machine it was made for.

    The graph is data: `allow_code` is not needed.
    """
    if ONNX not in bundle.manifest.members:
        reason = bundle.manifest.export_error or "it was built without"
        raise EngineError(f"bundle {bundle.manifest.name} has no ONNX graph ({reason}): take --engine eager")
    mapped = options.device == "cpu" and base.may_run_optimised(bundle.manifest)
    return OnnxEngine(bundle, OPTIMISED_ONNX if mapped else ONNX, options)


def load_int8(bundle: Bundle, options: LoadOptions) -> "OnnxEngine":
    """Open a session on the bundle's quantised graph, where it was built with one."""
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
        give_memory_back()  # the graph as it was read, and what optimising it took: a quarter of the whole
        self._output_names = [spec.name for spec in self.outputs]
        self._row_by_row = any(
            each.shape[:1] == [1] for each in self._session.get_inputs()
        )  # some foreign graphs have it built in

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
