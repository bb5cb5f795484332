"""Folders of golden samples, and bundles of a network that doubles, for the suites about samples."""

import json
from pathlib import Path
from typing import Any

from flambeau import bundle
from flambeau.build import samples
from flambeau.bundle import Bundle, CodeReference, Manifest, PythonPipeline, Source
from flambeau.pipelines.tensor import TensorPipeline
from flambeau.types import Tensors, TensorSpec

INPUT, OUTPUT = TensorSpec("x", "float32", (2,)), TensorSpec("y", "float32", (2,))
NUMBERS = TensorPipeline(inputs=[INPUT], outputs=[OUTPUT])


def double(batch: Tensors) -> Tensors:
    return {"y": batch["x"] * 2}


def golden_folder(folder: Path, files: dict[str, object]) -> Path:
    """A folder of samples: JSON for what is not bytes."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def collected(folder: Path, files: dict[str, object], **options: Any) -> samples.Collected:
    """Collect the samples of a doubling network into the bundle at `folder`."""
    given = samples.gather(golden_folder(folder.with_name("given"), files))
    folder.mkdir()
    return samples.collect(given, folder, **{"pipeline": NUMBERS, "compute": double, **options})


def manifest(**fields: Any) -> Manifest:
    source = Source(kind="checkpoint", name="net.pth")
    known = {"format": 1, "name": "net", "flambeau": "0", "source": source, "pipeline": bundle.TensorPipeline()}
    return Manifest(**{**known, "engine": "eager", **fields})


def python_bundle(folder: Path, source: str, files: dict[str, object]) -> Bundle:
    """The bundle of the class `Model` in `source`, with its samples."""
    given = samples.gather(golden_folder(folder.with_name("given"), files))
    folder.mkdir()
    (folder / "model.py").write_text(source)
    samples.keep(given, folder)
    bundle.write_manifest(
        folder, manifest(pipeline=PythonPipeline(CodeReference("Model", file="model.py")), engine="python")
    )
    return bundle.read(folder)
