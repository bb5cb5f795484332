"""The bundle format: the folder that `flambeau build` writes and `flambeau serve` reads.

    manifest.json        architecture, pipeline, engine, agreement figures, and the sha256 of every member
    model.onnx           the graph, for ONNX Runtime and OpenVINO
    model.optimised.onnx the graph as ONNX Runtime optimised it for one kind of machine; weights in a mapped file beside
    weights.safetensors  the weights, for PyTorch itself
    probes.safetensors   probe inputs with the network's own outputs: eager PyTorch's, or those of the ONNX source
    *.int8.*             the quantised graph and its own probes, if `--int8` was given
    labels.json          the classes, [[id, name], ...]
    tokenizer.json       the tokenizer of a network over texts, in the form of the library tokenizers
    samples*             golden samples: their files, answers and outputs; see `flambeau.bundle.golden_samples`
    code/*.py            the user's code: Python models and own architectures only
    archive/*            all files of a handler's archive: see `HandlerConfig`

This module reads, verifies and writes the format. It loads no model and runs no code.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flambeau.answers.activation import Activation as Activation  # re-exported for users of `Manifest`
from flambeau.answers.agreement import INT8_TOLERANCE, TOLERANCE, Agreement
from flambeau.bundle.measurements import Placements, Quantised, Trials
from flambeau.bundle.pipeline_config import AudioConfig as AudioConfig
from flambeau.bundle.pipeline_config import CodeReference as CodeReference
from flambeau.bundle.pipeline_config import DenseConfig as DenseConfig
from flambeau.bundle.pipeline_config import HandlerConfig as HandlerConfig
from flambeau.bundle.pipeline_config import HasTask as HasTask
from flambeau.bundle.pipeline_config import ImageConfig as ImageConfig
from flambeau.bundle.pipeline_config import MelConfig as MelConfig
from flambeau.bundle.pipeline_config import PictureConfig as PictureConfig
from flambeau.bundle.pipeline_config import PipelineConfig, facts_of, kind_of
from flambeau.bundle.pipeline_config import PythonConfig as PythonConfig
from flambeau.bundle.pipeline_config import TakesImages as TakesImages
from flambeau.bundle.pipeline_config import TensorConfig as TensorConfig
from flambeau.bundle.pipeline_config import TextConfig as TextConfig
from flambeau.errors import BundleError
from flambeau.settings.service import EngineName
from flambeau.system.machine import usable_cores
from flambeau.tasks import TASKS, NetworkFacts, TaskName
from flambeau.types import Label, Tensors, TensorSpec

FORMAT = 1
"""The version of the format. Any other version is refused."""

_LARGEST_MANIFEST = 16 * 2**20

MANIFEST = "manifest.json"
ONNX = "model.onnx"
WEIGHTS = "weights.safetensors"
PROBES = "probes.safetensors"
OPTIMISED_ONNX = "model.optimised.onnx"
INT8_ONNX = "model.int8.onnx"
INT8_PROBES = "probes.int8.safetensors"
LABELS = "labels.json"
TOKENIZER = "tokenizer.json"
SAMPLES = "samples.json"
SAMPLE_OUTPUTS = "samples.safetensors"
SAMPLE_FILES = "samples"
HANDLER_FILES = "archive"


class HeadLayer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One layer of a replaced head. `name` is its place in the `nn.Sequential`, or empty if the head is this layer.

    `sizes` are (inputs, outputs) for a linear layer and (channels,) for a norm; other layers have none.
    """

    name: str
    kind: Literal["linear", "batch_norm", "layer_norm", "identity", "relu", "gelu", "silu", "tanh", "sigmoid"]
    sizes: tuple[int, ...] = ()
    bias: bool = True


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The layers that replace an architecture's own head: the module at `path`, such as `fc`.

    Where layers are numbered, the architecture's own layer stays at every missing number. Example: mobilenet_v3's
    `classifier` is 0 Linear, 1 Hardswish, 2 Dropout, 3 Linear; a head with layers "0" and "3" keeps 1 and 2.
    """

    path: str
    layers: tuple[HeadLayer, ...]


class Architecture(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to construct a network: a name in a registry or the user's code, keyword arguments, and a replaced head."""

    registry: Literal["torchvision", "timm", "flambeau", "segmentation_models_pytorch", "transformers", "code"]
    name: str
    args: dict[str, Any] = {}
    code: CodeReference | None = None
    head: Head | None = None


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the weights came from. `sha256` is that of the file as it was read; no path is kept."""

    kind: str
    name: str
    sha256: str | None = None


class Optimised(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the optimised graph may run: only with this version of `onnxruntime`, on this `processor`."""

    onnxruntime: str
    processor: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The contents of `manifest.json`.

    `task` and `activation` are absent from older bundles: see `what_it_does` and `activated_by`. `one_row` is why the
    network is given one row at a time; absent if it computes batches.
    """

    format: int
    name: str
    flambeau: str
    source: Source
    pipeline: PipelineConfig
    engine: EngineName | Literal["python"]
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    architecture: Architecture | None = None
    task: TaskName | None = None
    activation: Activation | None = None
    one_row: str | None = None
    agreement: Agreement | None = None
    export_error: str | None = None
    optimised: Optimised | None = None
    trials: Trials | None = None
    placements: Placements | None = None
    int8: Quantised | None = None
    tools: dict[str, str] = {}
    members: dict[str, str] = {}

    @property
    def what_it_does(self) -> TaskName:
        """The task. Bundles that do not name it hold classifiers over images, networks over numbers, or own code."""
        if self.task is not None:
            return self.task
        kind = kind_of(self.pipeline)
        return "classification" if kind in ("image", "text", "audio") else kind

    @property
    def facts(self) -> NetworkFacts:
        """What the task knows of the network, without its labels."""
        return facts_of(self.pipeline, inputs=self.inputs, outputs=self.outputs, activation=self.activated_by)

    def compare(self, expected: Tensors, found: Tensors, *, tolerance: float = TOLERANCE) -> Agreement:
        """How well outputs agree with the network's own, by the measure of its task."""
        return TASKS[self.what_it_does].agreement(self.facts, expected, found, tolerance=tolerance)

    @property
    def activated_by(self) -> Activation:
        """The activation. Before bundles named it, every classifier was given a softmax by Flambeau."""
        if self.activation is not None:
            return self.activation
        return Activation("softmax" if self.task is None and kind_of(self.pipeline) == "image" else "none")


def graph_bytes(folder: Path) -> int:
    """The approximate size in bytes of the plain graph in a bundle's folder, with its weights.

    The weights are in the graph, beside it, or in the file that PyTorch reads; a graph may hold a copy of some.
    """
    graph = sum(file.stat().st_size for file in folder.glob(f"{ONNX}*"))
    weights = sum(file.stat().st_size for file in folder.glob(WEIGHTS))
    return max(graph, weights)


class Bundle:
    """An opened bundle: its manifest, and access to its members.

    With `quantised`, an engine must reproduce the answers of the int8 graph instead of the network's own. `verified`
    are the members whose sha256 has been checked; any other is checked when it is first used.
    """

    def __init__(
        self, path: Path, manifest: Manifest, *, quantised: bool = False, verified: Iterable[str] = ()
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.quantised = quantised
        self._labels: tuple[tuple[Label, ...] | None] | None = None
        self._verified = set(verified)

    @property
    def tolerance(self) -> float:
        """How far an engine's outputs may be from the probes', as in `agreement.measure`."""
        return INT8_TOLERANCE if self.quantised else TOLERANCE

    def member(self, name: str) -> Path:
        """The path of a member. Raises `BundleError` when the manifest does not list it, or it was changed.

        A graph's weights are verified with it: they may be beside it as NAME.data, and those of the plain graph in the
        file that PyTorch reads.
        """
        if name not in self.manifest.members:
            raise BundleError(f"bundle {self.path} has no {name}: build it again with flambeau build")
        needed = {name, f"{name}.data", *([WEIGHTS] if name == ONNX else [])}
        for each in needed & self.manifest.members.keys() - self._verified:
            _verify(self.path, each, self.manifest.members[each])
            self._verified.add(each)
        return self.path / name

    def labels(self) -> tuple[Label, ...] | None:
        """The classes in the order of the model's outputs, or `None` for a model without classes. Read once."""
        if self._labels is None:
            self._labels = (self._read_labels(),)
        return self._labels[0]

    def _read_labels(self) -> tuple[Label, ...] | None:
        if LABELS not in self.manifest.members:
            return None
        try:
            pairs = msgspec.json.decode(self.member(LABELS).read_bytes(), type=list[tuple[str, str]])
        except (OSError, msgspec.DecodeError) as error:
            raise BundleError(f"the labels of bundle {self.path} cannot be read: {error}") from error
        shape = self.manifest.outputs[0].shape if self.manifest.outputs else ()
        pipeline = self.manifest.pipeline
        if isinstance(pipeline, PictureConfig | DenseConfig):
            shape = (pipeline.classes,)
        if shape and len(pairs) != shape[-1]:
            raise BundleError(f"bundle {self.path} has {len(pairs)} labels for {shape[-1]} outputs: build it again")
        return tuple(Label(id=identity, name=name) for identity, name in pairs)

    def tokenizer(self) -> bytes:
        """The text of `tokenizer.json`; empty for a model that takes no texts. Raises `BundleError`."""
        if not isinstance(self.manifest.pipeline, TextConfig):
            return b""
        return self.member(TOKENIZER).read_bytes()

    def probes(self) -> dict[str, npt.NDArray[Any]]:
        """The probe tensors by name: `input.NAME` and `output.NAME`, one row per probe; empty if there are none."""
        member = INT8_PROBES if self.quantised else PROBES
        if member not in self.manifest.members:
            return {}
        try:
            found = load_file(self.member(member))
        except (OSError, SafetensorError) as error:
            raise BundleError(f"the probe samples of bundle {self.path} cannot be read: {error}") from error
        if not all(split_probes(found)) or not all(map(len, found.values())):
            raise BundleError(
                f"{member} of bundle {self.path} holds no probe samples: build it again with flambeau build"
            )
        return found


def read(path: Path, *, whole: bool = True) -> Bundle:
    """Open a bundle and verify every member against its sha256. Raises `BundleError`.

    Without `whole`, each member is verified when it is first used: for callers that need few of them.
    """
    try:
        with (path / MANIFEST).open("rb") as file:
            text = file.read(_LARGEST_MANIFEST + 1)
    except OSError as error:
        raise BundleError(f"{path} is not a bundle: its {MANIFEST} cannot be read ({error.strerror})") from error
    if len(text) > _LARGEST_MANIFEST:
        raise BundleError(f"the {MANIFEST} of bundle {path} has more than {_LARGEST_MANIFEST:,} bytes: build it again")
    try:
        found = json.loads(text).get("format")
        if found != FORMAT:
            raise BundleError(f"bundle {path} has format {found!r}; this flambeau reads {FORMAT}: build it again")
        manifest = msgspec.json.decode(text, type=Manifest)
    except (ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"the {MANIFEST} of bundle {path} is damaged: {error}") from error
    if fault := members_fault(path, manifest):
        raise BundleError(f"bundle {path} {fault}: build it again")
    if whole:
        with ThreadPoolExecutor(usable_cores(), "verify") as pool:  # hashing releases the GIL
            for verified in [pool.submit(_verify, path, *each) for each in manifest.members.items()]:
                verified.result()
    return Bundle(path, manifest, verified=manifest.members if whole else ())


def members_fault(path: Path, manifest: Manifest) -> str | None:
    """What is wrong with the manifest's list of members, as a phrase that follows "bundle NAME"; `None` if nothing is.

    Every member must be a file inside the bundle, with no symbolic link in its path. A network must come with probes:
    without anything to compare with, it would be served whatever it answers.
    """
    for code in (getattr(manifest.pipeline, "code", None), manifest.architecture and manifest.architecture.code):
        if code and code.file and code.file not in manifest.members:
            return f"names code that is not a member of it: {code.file}"
    for name in manifest.members:
        parts = Path(name).parts
        if os.path.isabs(name) or ".." in parts:
            return f"lists a member outside itself: {name}"
        if any(path.joinpath(*parts[: end + 1]).is_symlink() for end in range(len(parts))):
            return f"has a symbolic link for its member {name}, where a file belongs"
    if isinstance(manifest.pipeline, HasTask) and (manifest.task is None) != (manifest.activation is None):
        present, missing = ("task", "activation") if manifest.activation is None else ("activation", "task")
        return f"names its {present} and not its {missing}, so the meaning of its outputs is unknown"
    if isinstance(manifest.pipeline, TextConfig) and TOKENIZER not in manifest.members:
        return f"has no {TOKENIZER}, so texts cannot be read"
    if not isinstance(manifest.pipeline, PythonConfig) and PROBES not in manifest.members:
        return f"has no {PROBES}, so its answers cannot be checked"
    return None


def _verify(path: Path, name: str, expected: str) -> None:
    try:
        actual = sha256_of(path / name)
    except OSError as error:
        raise BundleError(f"bundle {path} lacks its member {name} ({error.strerror}): build it again") from error
    if actual != expected:
        raise BundleError(f"{name} of bundle {path} was changed since it was built: build it again")


def source_sha256(path: Path) -> str | None:
    """The sha256 of the file that the bundle at `path` was built from, as the build read it; `None` without a file."""
    return read(path, whole=False).manifest.source.sha256


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, with the sha256 of every file that is in `folder` by now."""
    members = {
        str(file.relative_to(folder)): sha256_of(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file != folder / MANIFEST  # a sample may have that name too
    }
    text = msgspec.json.encode(msgspec.structs.replace(manifest, members=members))
    (folder / MANIFEST).write_bytes(msgspec.json.format(text, indent=2) + b"\n")


def write_labels(folder: Path, labels: tuple[Label, ...]) -> None:
    """Write `labels.json`."""
    (folder / LABELS).write_bytes(msgspec.json.encode([(label.id, label.name) for label in labels]))


def split_probes(
    probes: Mapping[str, npt.NDArray[Any]],
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """The probe tensors as (inputs, expected outputs), without the prefixes of the file."""
    inputs = {name.removeprefix("input."): array for name, array in probes.items() if name.startswith("input.")}
    outputs = {name.removeprefix("output."): array for name, array in probes.items() if name.startswith("output.")}
    return inputs, outputs


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
