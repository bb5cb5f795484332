"""`python -m flambeau.deploy.precompile`, a step of the Dockerfile: compiles the modules that a server imports.

The image is read-only and the official Python images hold no compiled standard library, so every start would compile
some hundred modules again. The files carry no time (PEP 552, unchecked), so the same sources make the same bytes. It
compiles what a server imports and Flambeau itself; modules that are compiled already are left alone.
"""

import importlib
import importlib.util
import os
import py_compile
import subprocess
import sys
from pathlib import Path

from flambeau.system.process import NO_TELEMETRY

_ROOTS = (
    "flambeau.cli.serve", "flambeau.cli.config", "flambeau.cli.health", "flambeau.http.server",
    "flambeau.http.flask_app", "flambeau.http.access", "flambeau.runners.worker_process", "flambeau.runners.replica",
    "flambeau.runners.threads", "flambeau.engines.onnxruntime", "flambeau.engines.pytorch",
    "flambeau.engines.openvino", "flambeau.pipelines.image", "flambeau.pipelines.tensor", "flambeau.serving.opening",
    "uvloop", "PIL.JpegImagePlugin", "PIL.PngImagePlugin",
    "PIL.WebPImagePlugin", "PIL.GifImagePlugin", "PIL.BmpImagePlugin", "encodings.idna", "encodings.latin_1",
    "encodings.ascii", "encodings.utf_8",
)  # fmt: skip
"""The modules that a server imports: itself, or when the first request comes."""

_LIST = "--list"


def main() -> None:
    """Compile. A process of its own finds the modules, so that the compiler runs in the same state every time."""
    if sys.argv[1:] == [_LIST]:
        print("\n".join(sorted(_imported())))
        return
    environment = {**os.environ, **NO_TELEMETRY}  # ONNX Runtime would leave a random number in the home folder
    command = [sys.executable, "-m", "flambeau.deploy.precompile", _LIST]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()
    own = {str(file) for file in Path(__file__).parent.parent.rglob("*.py")}
    for source in sorted({*listed, *own}):
        if not Path(importlib.util.cache_from_source(source)).exists():
            py_compile.compile(source, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)


def _imported() -> set[str]:
    """The source files of every module that the roots import. Passes over an engine that the image lacks."""
    for root in _ROOTS:
        try:
            importlib.import_module(root)
        except ModuleNotFoundError:
            if root.startswith("flambeau.engines."):
                continue
            raise
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return {file for file in files if file and file.endswith(".py") and "precompile" not in file}


if __name__ == "__main__":
    main()
