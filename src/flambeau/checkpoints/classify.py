"""Turn what a pickle describes, and the globals it names, into a report with a verdict."""

from itertools import islice
from typing import Any

import msgspec

from flambeau.checkpoints import allowlist, prepared, stated, weights
from flambeau.checkpoints.pickle_stack import Foreign, Tensor
from flambeau.checkpoints.pickle_vm import Pickled
from flambeau.checkpoints.report import UNTRUSTED, Format, Global, Report, ScanError, TensorMapping, plain

_MOST_GLOBALS = 1000
_QUANTISED = ("torch.qint8", "torch.quint8", "torch.qint32", "torch._utils._rebuild_qtensor")
_FLOATS = "save those, or dequantize the file's as in docs/sources.md#quantised-weights"


def of_pickle(found: Pickled, form: Format, size: int) -> Report:
    """The report on one of torch's files. Raises `ScanError` where its contents would outgrow it."""
    known = _globals(found)
    if refused := _refusal(found):
        return Report(form, "refused", size, reason=refused.reason, remedy=refused.remedy, globals=known)
    entries = weights.entries(found.value, found.budget, size=size)
    classes = weights.classes(found.value, found.budget)
    facts = {} if entries else {"holds": _kind(found.value)}
    made_with = stated.arguments(found.value, found.budget) if entries else {}
    constants = prepared.constants(found.value, found.budget) if entries and isinstance(found.value, dict) else {}
    report = Report(
        form, "data", size, globals=known, entries=entries, classes=classes, stated=made_with, prepares=constants,
        facts=facts,
    )  # fmt: skip
    chosen, at = _chosen(report, found.value)
    if not entries and not found.foreign:
        refused = _without_weights(found.value)
        return Report(form, "refused", size, refused.reason, refused.remedy, known, facts=facts)
    if reason := _why_code(found, at):
        remedy = _conversion(chosen, at)
        return msgspec.structs.replace(report, verdict="code", reason=reason, remedy=remedy)
    return report


def of_other_pickle(found: Pickled, size: int) -> Report:
    """The report on a pickle that torch did not write: always refused, whatever it names."""
    naming = f" that names {plain(found.foreign[0])}" if found.foreign else ""
    refused = _refusal(found) or ScanError(
        f"is a pickle of plain Python{naming}, not of torch.save",
        "save the weights of a PyTorch network with torch.save(model.state_dict(), PATH)",
    )
    return Report("unknown", "refused", size, refused.reason, refused.remedy, _globals(found))


def _refusal(found: Pickled) -> ScanError | None:
    for name in found.foreign:
        if could := allowlist.danger(name):
            return ScanError(f"names {plain(name)}, which could {could} as soon as it is loaded", UNTRUSTED)
    if any(name in _QUANTISED for name in found.foreign):
        return ScanError(
            "holds quantised weights, and those of the network before it was quantised are served", _FLOATS
        )
    return found.fault or (None if found.foreign else found.oddity)


def _chosen(report: Report, value: Any) -> tuple[TensorMapping | None, Any]:
    """The entry that `choose` would choose for the weights, if any, and its value."""
    if not report.entries:
        return None, value
    entry, _ = weights.choose(report, None)
    for key in entry.where:
        value = (value.items if isinstance(value, Foreign) else value)[key]
    return entry, value


_SAVE_WEIGHTS = "save torch.save(model.state_dict(), 'NEW') where the model was made, and give that"


def _without_weights(value: Any) -> ScanError:
    """The refusal of a torch file that is safe to read but holds no named tensors."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, Tensor) for item in islice(value, 64)):
        return ScanError(
            f"holds a list of {len(value):,} tensors without names, as torch.save(list(model.parameters()), …) writes "
            "it, and without their names nothing tells which belongs where",
            "in Python, make the model, then: for p, w in zip(model.parameters(), torch.load('PATH')): p.data.copy_(w)"
            f"; and {_SAVE_WEIGHTS}; batch norms' averages are not among the parameters, so a model that has them "
            "needs its state_dict from where it was trained",
        )
    if isinstance(value, dict) and "param_groups" in value:
        return ScanError("holds the state of an optimiser, and no weights of a network", _SAVE_WEIGHTS)
    return ScanError(f"has no weights in it but {_kind(value)}", _SAVE_WEIGHTS)


def _why_code(found: Pickled, at: Any) -> str:
    """Why loading it would run code; empty if it would not."""
    if found.foreign and weights.is_module(at):
        return f"holds a whole module of class {plain(at.name)}, and loading it would run that class's code"
    if found.foreign:
        return f"holds more than weights ({plain(found.foreign[0])}), and loading it would run code of that kind"
    if found.beyond:
        return f"was saved with a pickle protocol that torch reads only by unpickling it in full ({found.beyond})"
    return ""


def _conversion(entry: TensorMapping | None, at: Any) -> str:
    """How to extract the weights of a trusted file: one line of Python, if they were found."""
    if entry is None:
        return "if you trust its author, give --allow-code"
    way = "".join(["torch.load('PATH', weights_only=False)", *(f"[{plain(key)!r}]" for key in entry.where)])
    if weights.is_module(at):
        way += ".state_dict()"
    elif entry.aside:
        way = f"{{k: v for k, v in {way}.items() if torch.is_tensor(v)}}"
    return f"if you trust its author, save its weights alone, torch.save({way}, 'NEW'), or give --allow-code"


def _globals(found: Pickled) -> tuple[Global, ...]:
    listed = sorted(found.globals.items(), key=lambda item: item[1])[:_MOST_GLOBALS]  # forbidden ones first
    return tuple(
        Global(plain(name), harmless, "" if harmless else allowlist.danger(name) or "run code of its own")
        for name, harmless in listed
    )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a single tensor of shape {list(value.info.shape)}"
    if isinstance(value, list | tuple) and value and all(isinstance(each, Tensor) for each in value):
        return f"{len(value)} tensors without names"
    if isinstance(value, dict) and value:
        return f"a dict of {plain(', '.join(str(key) for key in islice(value, 8) if type(key) in (str, int)))}"
    return f"a {plain(value.name)}" if isinstance(value, Foreign) else f"a {type(value).__name__.lower()}"
