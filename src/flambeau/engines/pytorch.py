"""Eager PyTorch: the engine that every other one is held against."""

import torch
from safetensors.torch import load_file

from flambeau import architectures
from flambeau.bundle import WEIGHTS, Bundle
from flambeau.errors import DeviceError, EngineError
from flambeau.types import Tensors, TensorSpec


def resolve_device(device: str) -> str:
    """`auto` takes CUDA, then MPS, then the CPU."""
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


def load(bundle: Bundle, *, device: str, threads: int, allow_code: bool) -> "EagerEngine":
    """Construct the architecture and fill it with the bundle's weights."""
    architecture = bundle.manifest.architecture
    if architecture is None:
        raise EngineError(f"bundle {bundle.manifest.name} names no architecture: take --engine onnxruntime")
    # Set from the replica's own thread: OpenMP's thread count belongs to the thread that runs the operators.
    torch.set_num_threads(threads)
    network = architectures.create(architecture, within=bundle.path, allow_code=allow_code)
    architectures.fill(network, load_file(bundle.member(WEIGHTS)), name=architecture.name)
    return EagerEngine(network, bundle.manifest.inputs, bundle.manifest.outputs, device=device)


class EagerEngine:
    """A `torch.nn.Module`, called as it is."""

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

    def run(self, batch: Tensors) -> Tensors:
        with torch.inference_mode():
            tensors = [torch.from_numpy(batch[spec.name]).to(self._device) for spec in self.inputs]
            result = self._network(*tensors)
        return {self.outputs[0].name: result.cpu().numpy()}

    def close(self) -> None:
        del self._network
