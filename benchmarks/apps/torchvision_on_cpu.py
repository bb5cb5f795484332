"""Lets torchvision be imported beside a torch for processors. Every Python of TorchServe's environment runs it first.

torchvision's wheels of PyPI are built for CUDA, and without that `import torchvision` fails. TorchServe's own handlers
of pictures then never answer: their workers die while they load, and are started again, for ever. The remedy is the one
that Flambeau's workers have, and is loaded only when something imports torchvision.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _WhenImported(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """For torchvision, with its operators declared; `None` for anything else."""
        if name != "torchvision":
            return None
        from flambeau.architectures import torchvision_compat

        sys.meta_path.remove(self)
        torchvision_compat.stand_by()
        return importlib.util.find_spec(name)


sys.meta_path.insert(0, _WhenImported())
