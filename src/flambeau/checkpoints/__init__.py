"""What a file is, told from its contents without running, importing or unpickling anything in it.

`examine` makes the report that everything else goes by; `choose` says where in it the weights lie. Neither imports
torch. What a pickle of weights may name is `allowlist`'s to say. Of other names, those in its table of dangers are
refused whatever is permitted, and the rest is code, for which `--allow-code` asks.
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
