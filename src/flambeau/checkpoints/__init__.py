"""Identifies a file by its contents, without running, importing or unpickling anything in it.

`examine` makes the report that everything else relies on; `choose` finds the weights in it. Neither imports torch.
`allowlist` defines what a pickle of weights may name. Other names in its table of dangers are always refused; the rest
count as code, which needs `--allow-code`.
"""

from flambeau.checkpoints.allowlist import BESIDE, permitted_globals
from flambeau.checkpoints.report import Format, Global, Report, Safety, TensorInfo, TensorMapping
from flambeau.checkpoints.scan import examine, files_beside
from flambeau.checkpoints.weights import choose

__all__ = [
    "BESIDE",
    "Format",
    "Global",
    "Report",
    "Safety",
    "TensorInfo",
    "TensorMapping",
    "choose",
    "examine",
    "files_beside",
    "permitted_globals",
]
