"""Find the mappings of tensors in what a pickle describes, and choose the one with the weights to serve."""

from collections.abc import Iterator
from math import prod
from typing import Any

from flambeau.checkpoints.allowlist import ITEM_SIZES
from flambeau.checkpoints.pickle_stack import Foreign, PlainObject, Tensor
from flambeau.checkpoints.report import Report, ScanBudget, ScanError, TensorMapping, refuse_too_many
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
    """The entry that holds the weights, and a note about the choice if there was one.

    `wanted` is `--weights-key`: keys joined by dots. Averaged weights (EMA) come before plain ones, because training
    scripts evaluate those; then known names, then the largest entry. Mappings of tensors come before modules, which
    would have to be unpickled. Raises `SourceError` if nothing fits.

    Example: of `{"model": {...}, "model_ema": {...}, "optimizer": {...}}` with the same keys in both, `model_ema` is
    chosen, and the note says that `--weights-key model` takes the plain weights.
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
    """The keys without the prefixes that all of them share, and without the counter that averaging adds."""
    names = [name for name in entry.tensors if name != "n_averaged"]
    least, most, length = min(names, default=""), max(names, default=""), 0
    # a prefix that the first and the last in sorted order share is shared by all
    while prefix := next((p for p in _PREFIXES if least.startswith(p, length) and most.startswith(p, length)), None):
        length += len(prefix)
    return frozenset(name[length:] for name in names)


def _bytes(entry: TensorMapping) -> int:
    return sum(prod(tensor.shape) * ITEM_SIZES[tensor.dtype] for tensor in entry.tensors.values())


def _way(entry: TensorMapping) -> str:
    """The entry as `--weights-key` names it; "." is the file itself."""
    return ".".join(entry.where) or "."


def _listed(entries: list[TensorMapping]) -> str:
    names = [f"{_way(entry)} ({len(entry.tensors)} tensors)" for entry in entries[:_MOST_LISTED]]
    return ", ".join(names) + (f" and {len(entries) - _MOST_LISTED} more" if len(entries) > _MOST_LISTED else "")


# Finding the mappings of tensors in what a pickle describes, and class names stored beside them.


_DEEPEST = 4
_LONGEST_PREFIX = 1000  # characters of a tensor's name within a module
_OF_A_TENSOR = 200  # units of the budget
_MOST_ENTRIES = 1000
_MOST_CLASSES = 100_000
_FREE_BYTES = 64 * 2**20
_MOST_TIMES = 8

_NOT_WEIGHTS = ("optim", "lr_sched", "scheduler", "scaler", "amp", "rng", "cuda_rng", "callbacks", "loops", "grad")
"""Prefixes of keys under which training keeps its own tensors."""
_OF_OPTIMISERS = {
    "step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg",
    "acc_delta", "sum", "ax", "eta", "mu", "prev", "step_size",
}  # fmt: skip

_CLASS_KEYS = ("classes", "class_names", "labels", "names", "categories", "class_to_idx", "idx_to_class", "id2label")


def _mappings(value: Any, budget: ScanBudget) -> Iterator[tuple[tuple[str, ...], dict[Any, Any], bool]]:
    """Every mapping in the contents: the keys that lead to it, its members, and whether it is a module.

    Outermost first, each once.
    """
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    seen: set[int] = set()
    while waiting:
        following: list[tuple[tuple[str, ...], Any]] = []
        for where, found in waiting:
            if id(found) in seen:
                continue
            seen.add(id(found))
            members = _members(found, budget)
            if members is None:
                continue
            yield where, members, is_module(found)
            if len(where) < _DEEPEST:
                following += [
                    ((*where, key), member)
                    for key, member in members.items()
                    if type(key) is str and isinstance(member, dict | Foreign) and not key.startswith(_NOT_WEIGHTS)
                ]
        waiting = following


def _members(value: Any, budget: ScanBudget) -> dict[Any, Any] | None:
    if isinstance(value, Foreign):
        return _state_dict(value, budget) or value.items
    return value if isinstance(value, dict) else None


def entries(value: Any, budget: ScanBudget, *, size: int) -> tuple[TensorMapping, ...]:
    """The mappings that hold tensors, except an optimiser's. Raises `ScanError` if they outgrow a file of `size`
    bytes."""
    found: list[TensorMapping] = []
    total = 0
    for where, members, module in _mappings(value, budget):
        budget.charge_for(members)
        tensors = {key: item for key, item in members.items() if type(key) is str and isinstance(item, Tensor)}
        if not tensors or tensors.keys() <= _OF_OPTIMISERS:
            continue
        if len(found) == _MOST_ENTRIES:
            break
        budget.charge(_OF_A_TENSOR * len(tensors))
        refuse_too_many(tensors)
        total += sum(tensor.size for tensor in tensors.values())
        aside = tuple(key for key in members if type(key) is str and key not in tensors)
        found.append(TensorMapping(where, {key: tensor.info for key, tensor in tensors.items()}, aside, module))
    if total > _MOST_TIMES * size + _FREE_BYTES:
        raise ScanError(f"has {size:,} bytes and tensors of {total:,}: they share storages, and grow when it is loaded")
    return tuple(found)


def _state_dict(module: Any, budget: ScanBudget) -> dict[str, Any] | None:
    """The tensors of a pickled `torch.nn.Module`, named as `state_dict()` would name them."""
    if not is_module(module):
        return None
    found: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", module)]
    seen: set[int] = set()
    while waiting:
        prefix, at = waiting.pop()
        if id(at) in seen or len(prefix) > _LONGEST_PREFIX:
            continue
        seen.add(id(at))
        transient = at.state.get("_non_persistent_buffers_set")
        members = transient.members if isinstance(transient, PlainObject) else ()
        budget.charge_for(members)
        hidden = {name for name in members if type(name) is str}
        for part in ("_parameters", "_buffers"):
            for name, item in _named(at.state.get(part), prefix, budget):
                if isinstance(item, Tensor) and name not in hidden:
                    found[f"{prefix}{name}"] = item
        children = [(f"{prefix}{name}.", child) for name, child in _named(at.state.get("_modules"), prefix, budget)]
        waiting += [(name, child) for name, child in reversed(children) if is_module(child)]
    return found


def _named(members: Any, prefix: str, budget: ScanBudget) -> list[tuple[str, Any]]:
    """The members with string names, at the budget's cost of adding `prefix` to each."""
    found = _dict(members)
    budget.charge((_OF_A_TENSOR + len(prefix)) * len(found))
    return [(name, item) for name, item in found.items() if type(name) is str and len(name) <= _LONGEST_PREFIX]


def is_module(value: Any) -> bool:
    """Whether it is a pickled `torch.nn.Module`, recognised by its state."""
    return isinstance(value, Foreign) and isinstance(value.state, dict) and "_parameters" in value.state


def _dict(value: Any) -> dict[Any, Any]:
    members = value.items if isinstance(value, Foreign) else value
    return members if isinstance(members, dict) else {}


def classes(value: Any, budget: ScanBudget) -> tuple[str, ...] | None:
    """The class names that a checkpoint keeps beside its weights, in the order of the outputs.

    `None` where as many are there in another order or with other names: nobody can say which are those of the outputs.
    """
    first: tuple[str, ...] | None = None
    for _, members, _ in _mappings(value, budget):
        for key in _CLASS_KEYS:
            budget.charge_for(members.get(key))
            found = _classes(members.get(key))
            first = first or found
            if found and first and found != first and len(found) == len(first):
                return None
    return first


def _classes(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, list | tuple):
        names = list(value)
    elif not isinstance(value, dict) or not value:
        return None
    elif all(type(index) is int and 0 <= index < len(value) for index in value.values()):  # class_to_idx
        names = _dense({index: name for name, index in value.items()}, count=len(value))
    else:  # idx_to_class, whose numbers JSON may have made strings
        names = _dense({_number(index): name for index, name in value.items()}, count=len(value))
    whole = 1 < len(names) <= _MOST_CLASSES and all(type(name) is str and name for name in names)
    return tuple(names) if whole else None


def _dense(names: dict[Any, Any], *, count: int) -> list[Any]:
    """The names ordered by their numbers from 0, `None` for a missing one; empty if a number occurs twice."""
    return [names.get(index) for index in range(count)] if len(names) == count else []


def _number(index: Any) -> Any:
    return int(index) if type(index) is str and index.isdecimal() and len(index) < 8 else index
