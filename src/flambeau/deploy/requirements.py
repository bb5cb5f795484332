"""Which packages an image needs to serve a bundle, at the versions installed here, and what of them it does not.

The requirements of Flambeau and of the bundle's engine are followed from one installed package to the next. It asks no
index and knows no hashes.
"""

import importlib.metadata
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path, PurePath

from packaging.requirements import InvalidRequirement, Requirement

from flambeau.bundle.storage import ONNX, WEIGHTS, AudioConfig, HandlerConfig, Manifest, TextConfig
from flambeau.errors import SetupError, SourceError
from flambeau.settings.service import EngineChoice
from flambeau.sources import packages

OWN = "flambeau"

_LINUX = {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "extra": ""}

NOT_FOLLOWED = {
    (OWN, "packaging"): "only flambeau package uses it",
    ("cffi", "pycparser"): "only its compiler of declarations uses it",
    ("tokenizers", "huggingface-hub"): "only what fetches tokenizers uses it, and here they are files",
    ("onnxruntime", "flatbuffers"): "only its converter to the ORT format uses it",
    ("onnxruntime", "packaging"): "only its tools for transformers use it",
    ("onnxruntime", "protobuf"): "only its tools for quantisation use it",
    ("rich", "markdown-it-py"): "only its rendering of Markdown uses it",
    ("rich", "pygments"): "only its colouring of source code uses it",
}
"""Requirements that serving never imports, by (package, requirement), with the reason."""

LEFT_OUT = {
    "onnxruntime": ("onnxruntime/transformers", "onnxruntime/tools", "onnxruntime/quantization", "onnxruntime/datasets",
                    "onnxruntime/capi/libonnxruntime.so*"),
    "numpy": ("numpy/f2py", "numpy/*/tests", "numpy/tests", "numpy/_core/include", "numpy/_core/lib"),
}  # fmt: skip
"""Parts of packages that serving never loads, as patterns below site-packages.

ONNX Runtime's Python module is linked statically: libonnxruntime.so is a second copy, for programs in C.
"""

LEFT_OUT_SUFFIXES = (".pyi", ".pyx", ".pxd", ".a")
"""Sources and stubs of every package."""

_ENGINES = {"onnxruntime": (), "onnxruntime-int8": (), "python": (), "openvino": ("openvino",),
            "eager": ("torch", "torchvision"), "compile": ("torch", "torchvision")}  # fmt: skip
"""The packages of an engine beyond Flambeau's own requirements."""


_PIPELINES: dict[type, tuple[str, ...]] = {TextConfig: ("tokenizers",), AudioConfig: ("soundfile",)}
"""The packages of what a model takes."""


@dataclass(frozen=True)
class Package:
    """A package at the version that is installed here. `name` is normalised, as in PEP 503."""

    name: str
    version: str
    summary: str
    licence: str | None
    requires: tuple[str, ...]
    bytes: int
    """Its files in the image, without what is left out and without compiled Python."""

    @property
    def pin(self) -> str:
        """The line of a requirements file."""
        return f"{self.name}=={self.version}"


def python_version() -> str:
    """The minor version of Python that the image gets: the one that the packages are installed for here."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def engine_of(manifest: Manifest, wanted: EngineChoice) -> str:
    """The engine that the image is for. Raises `SourceError` if the bundle cannot run with the wanted one."""
    if wanted == "auto" or manifest.engine == "python":
        return manifest.engine
    if wanted in ("onnxruntime", "openvino") and ONNX not in manifest.members:
        raise SourceError(f"the bundle {manifest.name} has no ONNX graph: leave --engine {wanted} out")
    if wanted in ("eager", "compile") and WEIGHTS not in manifest.members:
        raise SourceError(f"the bundle {manifest.name} has no weights for PyTorch: leave --engine {wanted} out")
    if wanted == "onnxruntime-int8" and manifest.int8 is None:
        raise SourceError(f"the bundle {manifest.name} has no quantised graph: build it with flambeau build --int8")
    return wanted


_LIBRARIES = {
    "timm": "timm", "segmentation_models_pytorch": "segmentation-models-pytorch", "transformers": "transformers",
}  # fmt: skip
"""What PyTorch's engines need to make a network of this registry."""


def needed(manifest: Manifest, engine: str, more: Iterable[str]) -> tuple[Package, ...]:
    """What an image needs to serve the bundle with `engine`, and `more` packages with theirs; sorted, without Flambeau.

    Raises `SetupError` for a package that is not installed here: its version would be a guess.
    """
    roots = [OWN, *_ENGINES[engine], *_PIPELINES.get(type(manifest.pipeline), ()), *more]
    if engine in ("eager", "compile") and manifest.architecture and manifest.architecture.registry in _LIBRARIES:
        roots.append(_LIBRARIES[manifest.architecture.registry])
    if isinstance(manifest.pipeline, HandlerConfig) and manifest.pipeline.requirements:
        # its requirements are in the image, where they are compared with what is there before the model is served
        roots += ["packaging", *packages.named(manifest.pipeline.requirements)]
    found: dict[str, Package] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(_parsed(each), "the image") for each in roots]
    while waiting:
        wanted, by = waiting.pop()
        name, extras = normalised(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen or (name in found and not extras):
            continue
        seen.add((name, extras))
        distribution = installed(name, by)
        if not wanted.specifier.contains(distribution.version, prereleases=True):
            raise SetupError(f"{by} needs {wanted}, and {name} {distribution.version} is installed here")
        followed = [
            each
            for each in _requirements(distribution, wanted.extras)
            if (name, normalised(each.name)) not in NOT_FOLLOWED
        ]
        requires = {normalised(each.name) for each in followed} | {*(found[name].requires if name in found else ())}
        found[name] = _package(name, distribution, tuple(sorted(requires)))
        waiting += [(each, name) for each in followed]
    return tuple(found[name] for name in sorted(found) if name != OWN)


def installed(name: str, by: str) -> Distribution:
    """An installed package. Raises `SetupError`."""
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise SetupError(
            f"{name}, which {by} needs, is not installed here, so there is no version of it that is known to work: "
            f"pip install {name}"
        ) from None


def _parsed(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement:
        raise SetupError(f"--with {text} is not the name of a package: write it as pip takes it") from None


def normalised(name: str) -> str:
    """A package's name as indexes write it (PEP 503)."""
    return re.sub("[-_.]+", "-", name).lower()


def is_left_out(package: str, file: PurePath) -> bool:
    """Whether the image goes without that file of a package; `file` is relative to site-packages."""
    if file.suffix in LEFT_OUT_SUFFIXES or ".." in file.parts:  # scripts lie elsewhere
        return True
    patterns = LEFT_OUT.get(package, ())
    return any(each.match(pattern) for pattern in patterns for each in (file, *file.parents))


def _requirements(distribution: Distribution, extras: Iterable[str]) -> list[Requirement]:
    environment = {**_LINUX, "platform_machine": platform.machine()}
    given = [Requirement(each) for each in distribution.requires or ()]
    return [
        each
        for each in given
        if each.marker is None or any(each.marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras))
    ]


def _package(name: str, distribution: Distribution, requires: tuple[str, ...]) -> Package:
    told = distribution.metadata
    licence = told["License-Expression"] or told["License"]
    files = [each for each in distribution.files or () if each.suffix != ".pyc" and not is_left_out(name, each)]
    paths = [Path(str(distribution.locate_file(each))) for each in files]
    return Package(
        name=name, version=distribution.version, summary=told["Summary"] or "", requires=requires,
        licence=licence if licence and "\n" not in licence else None,
        bytes=sum(path.stat().st_size for path in paths if path.is_file()),
    )  # fmt: skip
