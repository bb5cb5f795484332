"""Which of a file's mappings holds the weights to serve."""

from math import prod

from flambeau.checkpoints.allowlist import ITEM_SIZES
from flambeau.checkpoints.report import Report, TensorMapping
from flambeau.errors import SourceError

_PLAIN = (
    "state_dict", "model_state_dict", "model", "net", "network", "weights", "params", "module", "model_state",
    "net_state_dict", "state", "generator", "backbone", "encoder",
)  # fmt: skip
_AVERAGED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema", "params_ema", "ema_model",
    "net_ema", "averaged_model", "shadow_params", "shadow",
)  # fmt: skip
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "ema.")
_MOST_LISTED = 12


def choose(report: Report, wanted: str | None) -> tuple[TensorMapping, str | None]:
    """The entry that holds the weights, and a sentence on the choice where there was one.

    `wanted` is `--weights-key`: keys joined by dots. Averaged weights (EMA) go before plain ones, for they are what
    training scripts evaluate; then known names, then the largest; and mappings of tensors before modules, which would
    have to be unpickled. Raises `SourceError` where nothing fits.
    """
    if not report.entries:
        held = report.facts.get("holds", "nothing that is called a tensor")
        raise SourceError(f"the file has no weights in it but {held}: save torch.save(model.state_dict(), PATH)")
    if wanted is not None:
        return _wanted(report, wanted), None
    entries = list(report.entries)
    if len(entries) == 1:
        return entries[0], None
    entries.sort(key=lambda entry: entry.module)
    named = [entry for entry in entries if _name(entry) in _PLAIN]
    first = min(named, key=lambda entry: (entry.module, _PLAIN.index(_name(entry))), default=None)
    candidates = [entry for name in _AVERAGED for entry in entries if _is_averaged(entry, name)]
    names = {entry.where: _names(entry) for entry in entries} if candidates else {}
    for averaged in candidates:
        alike = [entry for entry in entries if entry is not averaged and names[entry.where] == names[averaged.where]]
        if beside := (first if first in alike else next(iter(alike), None)):
            return averaged, (
                f"the averaged weights (EMA) of {_way(averaged)} are taken; "
                f"--weights-key {_way(beside)} takes the plain ones"
            )
    taken = first or max(entries, key=_bytes)
    others = [entry for entry in entries if entry is not taken and len(entry.tensors) > 1]
    if not others:
        return taken, None
    return taken, f"the weights of {_way(taken)} are taken; --weights-key takes others: {_listed(others)}"


def _wanted(report: Report, wanted: str) -> TensorMapping:
    for entry in report.entries:
        if _way(entry) == wanted:
            return entry
    raise SourceError(f"--weights-key {wanted} names nothing in the file: it holds {_listed(list(report.entries))}")


def _name(entry: TensorMapping) -> str:
    return entry.where[-1].lower() if entry.where and not any(_is_averaged(entry, name) for name in _AVERAGED) else ""


def _is_averaged(entry: TensorMapping, name: str) -> bool:
    return name in (key.lower() for key in entry.where)


def _names(entry: TensorMapping) -> frozenset[str]:
    """The keys without the prefixes that all of them have, and without what averaging adds."""
    names = [name for name in entry.tensors if name != "n_averaged"]
    least, most, length = min(names, default=""), max(names, default=""), 0
    # what the first and the last by order begin with, all do
    while prefix := next((p for p in _PREFIXES if least.startswith(p, length) and most.startswith(p, length)), None):
        length += len(prefix)
    return frozenset(name[length:] for name in names)


def _bytes(entry: TensorMapping) -> int:
    return sum(prod(tensor.shape) * ITEM_SIZES[tensor.dtype] for tensor in entry.tensors.values())


def _way(entry: TensorMapping) -> str:
    """The entry as `--weights-key` names it; a dot is the file itself."""
    return ".".join(entry.where) or "."


def _listed(entries: list[TensorMapping]) -> str:
    names = [f"{_way(entry)} ({len(entry.tensors)} tensors)" for entry in entries[:_MOST_LISTED]]
    return ", ".join(names) + (f" and {len(entries) - _MOST_LISTED} more" if len(entries) > _MOST_LISTED else "")
