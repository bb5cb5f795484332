"""What a file is, told from its contents without running, importing or unpickling anything in it.

`examine` makes the report that everything else goes by; `choose` says where in it the weights lie. Neither imports
torch. What a pickle of weights may name is `allowed`'s to say. Of other names, those in `dangers` are refused whatever
is permitted, and the rest is code, for which `--allow-code` asks.
"""

from flambeau.formats.allowed import BESIDE, permitted_globals
from flambeau.formats.examination import examine, files_beside
from flambeau.formats.report import Entry, Format, Global, Report, TensorInfo, Verdict
from flambeau.formats.weights import choose

__all__ = [
    "BESIDE",
    "Entry",
    "Format",
    "Global",
    "Report",
    "TensorInfo",
    "Verdict",
    "choose",
    "examine",
    "files_beside",
    "permitted_globals",
]
