"""PyTorch: eager, the reference for every other engine, and compiled for this machine by `torch.compile`."""

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from flambeau import architectures
from flambeau.architectures import single_output
from flambeau.bundle.storage import WEIGHTS, Bundle
from flambeau.engines.base import LoadOptions
from flambeau.errors import DeviceError, EngineError
from flambeau.items import FREE
from flambeau.types import Tensors, TensorSpec

_COMPILING = threading.Lock()
"""torch's compiler keeps state per process, so replicas in threads compile one after the other."""


def resolve_device(device: str) -> str:
    """`auto` takes CUDA, then MPS, then the CPU. Raises `DeviceError` for a device that is not there."""
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdigit())):
        raise DeviceError(f"--device {device} is not a device: take auto, cpu, cuda, cuda:N or mps")
    if kind == "cuda":
        count = torch.cuda.device_count()
        if int(index or 0) >= count:
            found = f"{count} CUDA devices" if count else "no CUDA device"
            raise DeviceError(f"--device {device} is not there: PyTorch {torch.__version__} sees {found} here")
        return f"cuda:{index or 0}"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"--device mps is not there: PyTorch {torch.__version__} sees no Apple GPU here")
    return kind


def load(bundle: Bundle, options: LoadOptions) -> "EagerEngine":
    """Construct the architecture and fill it with the bundle's weights."""
    network = _filled(bundle, options)
    return EagerEngine(network, bundle.manifest.inputs, bundle.manifest.outputs, device=options.device)


def load_compiled(bundle: Bundle, options: LoadOptions) -> "CompiledEngine":
    """The same network, compiled for batches of up to `options.max_batch` rows. The first time takes minutes.

    Raises `EngineError` where there is no C++ compiler, or the network cannot be compiled.
    """
    if any(FREE in spec.shape for spec in bundle.manifest.inputs):
        raise EngineError("the engine compile needs inputs of one shape: take --engine onnxruntime or eager")
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise EngineError(
            f"the engine compile needs a C++ compiler, and there is no {compiler} here: "
            "install one (apt-get install g++), or take --engine onnxruntime"
        )
    network = _filled(bundle, options)
    with _COMPILING, _compiler_cache():
        try:
            return CompiledEngine(
                network,
                bundle.manifest.inputs,
                bundle.manifest.outputs,
                device=options.device,
                max_batch=options.max_batch,
            )
        except Exception as error:  # the compiler's exception types are many and not public
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise EngineError(
                f"torch.compile cannot compile {bundle.manifest.name} ({reason}): take --engine onnxruntime or eager"
            ) from error


def _filled(bundle: Bundle, options: LoadOptions) -> torch.nn.Module:
    architecture = bundle.manifest.architecture
    if architecture is None:
        raise EngineError(f"bundle {bundle.manifest.name} names no architecture: take --engine onnxruntime")
    # Set in the replica's own thread: OpenMP's thread count belongs to the thread that runs the operators.
    torch.set_num_threads(options.threads)
    network = architectures.create(architecture, within=bundle.path, allow_code=options.allow_code)
    architectures.load_weights(network, load_file(bundle.member(WEIGHTS)), name=architecture.name)
    return network


class EagerEngine:
    """A `torch.nn.Module`, called as it is.

    On the CPU, images are channels-last: measured up to a third faster for networks with depthwise convolutions, and
    never slower.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        device: str,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._device = torch.device(device)
        self._network = network.to(self._device).eval()
        self._layout = torch.contiguous_format
        if (
            self._device.type == "cpu"
            and len(inputs) == 1
            and len(inputs[0].shape) == 3
            and FREE not in inputs[0].shape
        ):
            self._try_channels_last()

    def _try_channels_last(self) -> None:
        """Use channels-last images unless the network cannot: `x.view(...)` of such a tensor may raise."""
        sample = np.zeros((2, *self.inputs[0].shape), self.inputs[0].dtype)
        try:
            self._layout = torch.channels_last
            self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its stub lacks this
            self.run({self.inputs[0].name: sample})
        except Exception:  # raising is the answer
            self._layout = torch.contiguous_format
            self._network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # its stub lacks this

    def run(self, batch: Tensors) -> Tensors:
        with torch.inference_mode():
            tensors = [torch.from_numpy(batch[spec.name]).to(self._device) for spec in self.inputs]
            result = self._network(*(tensor.contiguous(memory_format=self._layout) for tensor in tensors))
            return _answers(result, len(tensors[0]), self.outputs)

    def close(self) -> None:
        del self._network


class CompiledEngine:
    """A network compiled by `torch.compile` with its weights frozen in, once for each of a few batch sizes.

    The sizes are powers of two, up to the first that fits `max_batch`. A batch is padded to the next size with copies
    of its last row; one larger than the largest size is split. All sizes are compiled and run in the constructor, so
    that no request has to wait for it. Example: with `max_batch` 6 the sizes are 1, 2, 4, 8; 3 rows are padded to 4,
    and 11 rows run as 8 and 4 (3 padded).
    """

    def __init__(
        self,
        network: torch.nn.Module,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        device: str,
        max_batch: int,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._device = torch.device(device)
        self._sizes = [1 << power for power in range((max_batch - 1).bit_length() + 1)]
        network = network.to(self._device).eval().requires_grad_(False)
        # The recompile limit counts all instances of a class together, and past it PyTorch silently runs eager.
        with torch._dynamo.config.patch(recompile_limit=1024, accumulated_recompile_limit=4096):
            self._network = torch.compile(network, fullgraph=True, dynamic=False, options={"freezing": True})
            for size in self._sizes:
                self._compute([spec.plain(size) for spec in inputs])

    def run(self, batch: Tensors) -> Tensors:
        arrays = [batch[spec.name] for spec in self.inputs]
        rows, most = len(arrays[0]), self._sizes[-1]
        parts = [self._padded([array[start : start + most] for array in arrays]) for start in range(0, rows, most)]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _padded(self, arrays: list[np.ndarray]) -> Tensors:
        rows = len(arrays[0])
        missing = next(size for size in self._sizes if size >= rows) - rows
        if missing:
            arrays = [np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for array in arrays]
        return {name: each[:rows] for name, each in self._compute(arrays).items()}

    def _compute(self, arrays: list[np.ndarray]) -> Tensors:
        with torch.inference_mode():
            result = self._network(*(torch.from_numpy(each).to(self._device) for each in arrays))
            return _answers(result, len(arrays[0]), self.outputs)

    def close(self) -> None:
        del self._network


def _answers(result: Any, rows: int, outputs: tuple[TensorSpec, ...]) -> Tensors:
    """The answers in a network's result, each of shape (rows, *spec.shape)."""
    return {
        spec.name: single_output.shaped(single_output.pick(result, spec.name), rows, spec.shape).cpu().numpy()
        for spec in outputs
    }


@contextlib.contextmanager
def _compiler_cache() -> Iterator[None]:
    """Keep compiled code for the next start in a folder of the user's own, used by one process at a time.

    PyTorch's default is a folder in /tmp whose name anybody could have created before, and its files are executed.
    Processes wait for each other: the first compiles, and the others find the result.
    """
    folder = Path(os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_own_folder())))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: two processes that compile at once only cost time
        yield
        return
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _own_folder() -> Path:
    with contextlib.suppress(OSError, RuntimeError):  # no home folder, or not writable
        folder = Path.home() / ".cache" / "flambeau" / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="flambeau-compiled-"))
