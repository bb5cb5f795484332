"""Whether a bundle's optimised graph may run here: it is made for one processor and one version of ONNX Runtime.

The front asks too, so this imports neither.
"""

import functools
import importlib.metadata

from flambeau.bundle.storage import Manifest, Optimised
from flambeau.system.machine import processor

_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")


@functools.cache
def here() -> Optimised | None:
    """What a graph that is optimised now and here is good for; `None` where ONNX Runtime's version cannot be told."""
    for name in _DISTRIBUTIONS:
        try:
            return Optimised(onnxruntime=importlib.metadata.version(name), processor=processor())
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def usable(manifest: Manifest) -> bool:
    """Whether the bundle has an optimised graph, and this is the place it was made for."""
    return manifest.optimised is not None and manifest.optimised == here()
