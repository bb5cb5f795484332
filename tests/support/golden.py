"""Folders of golden samples, and bundles of a network that doubles, for the suites about samples."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flambeau.builder import golden_samples
from flambeau.bundle import storage
from flambeau.bundle.storage import Bundle, CodeReference, Manifest, PythonConfig, Source, TensorConfig
from flambeau.pipelines.base import open_pipeline
from flambeau.types import Tensors, TensorSpec

INPUT, OUTPUT = TensorSpec("x", "float32", (2,)), TensorSpec("y", "float32", (2,))
NUMBERS = open_pipeline(TensorConfig(), labels=None, inputs=[INPUT], outputs=[OUTPUT])


def double(batch: Tensors) -> Tensors:
    return {"y": batch["x"] * 2}


def golden_folder(folder: Path, files: Mapping[str, object]) -> Path:
    """A folder of samples: JSON for what is not bytes."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def collected(folder: Path, files: Mapping[str, object], **options: Any) -> list[golden_samples.Collected]:
    """Collect the samples of a doubling network into the bundle at `folder`."""
    given = golden_samples.gather(golden_folder(folder.with_name("given"), files))
    folder.mkdir()
    return golden_samples.collect(given, folder, **{"pipeline": NUMBERS, "compute": double, **options})


def manifest(**fields: Any) -> Manifest:
    source = Source(kind="checkpoint", name="net.pth")
    known = {"format": 1, "name": "net", "flambeau": "0", "source": source, "pipeline": storage.TensorConfig()}
    return Manifest(**{**known, "engine": "eager", **fields})


def python_bundle(folder: Path, source: str, files: Mapping[str, object]) -> Bundle:
    """The bundle of the class `Model` in `source`, with its samples."""
    given = golden_samples.gather(golden_folder(folder.with_name("given"), files))
    folder.mkdir()
    (folder / "model.py").write_text(source)
    golden_samples.keep(given, folder)
    storage.write_manifest(
        folder, manifest(pipeline=PythonConfig(CodeReference("Model", file="model.py")), engine="python")
    )
    return storage.read(folder)
