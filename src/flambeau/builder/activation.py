"""Decide the task of a network over images, and the activation that turns its outputs into the answer.

The evidence, in order: the user's options; the network's last operation, checked against its outputs for the probes;
a known architecture; the form of the outputs. The decision is always reported. Features are never taken for classes,
and a single output never for a softmax: where a guess could be wrong, the user is asked.

Example: a network that ends in a linear layer of 5 outputs is taken for a classifier, and a softmax is applied. One
that ends in a sigmoid is multi-label, and nothing is applied. One with a single linear output raises `SourceError`,
which asks for `--task regression` or `--task multi-label`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flambeau.answers.activation import Activation
from flambeau.checkpoints.last_operation import Ending
from flambeau.errors import SourceError
from flambeau.settings.source import OutputActivation
from flambeau.tasks import ImageTask, TaskName

_NEAR = 1e-5
"""How far from 1 a row of probabilities may sum: float32 rounds each to 6e-8 of itself."""
_NEAR_BY_GRAPH = 1e-2  # the same where the last operation is a softmax anyway, perhaps in half precision
_UNIT_LENGTH = 1e-4

_Meaning = Literal["probabilities", "logarithms", "sigmoid", "unit vectors", "unknown"]

_OTHERWISE = (
    "say --task multi-label if each class was trained on its own (BCEWithLogitsLoss), and --task regression or "
    "--task embedding if they are not classes"
)
_OTHERWISE_OF_CLASSES = (
    "say --task multi-label if each class was trained on its own (BCEWithLogitsLoss), and --task regression if they "
    "are numbers"
)
_OTHERWISE_OF_KNOWN = (
    "say --task multi-label if each class was trained on its own (BCEWithLogitsLoss), --task regression if they are "
    "numbers, and --task embedding for the features before them"
)


@dataclass(frozen=True)
class ProbedOutput:
    """What is known about a network over images before its task is decided.

    `answers` are its outputs for the probes, shape (rows, outputs); `ending` is its last operation. `official`: the
    weights are published ones, of a classifier; `registered`: the architecture is known, and classifies; `headed`: its
    head is known, and can be left out. `without_head` is the name of the `nn.Identity` that replaced its head. `named`:
    there are as many class names as outputs.
    """

    name: str
    answers: npt.NDArray[Any]
    ending: Ending
    official: bool = False
    registered: bool = False
    headed: bool = False
    without_head: str | None = None
    named: bool = False


@dataclass(frozen=True)
class Decided:
    """A task, its activation, and the note that reports both."""

    task: TaskName
    activation: Activation
    note: str


def decide(
    seen: ProbedOutput, task: ImageTask | None, activation: OutputActivation | None, *, normalize: bool = False
) -> Decided:
    """The task and the activation, from the options `task` and `activation` as far as the user gave them.

    `normalize`: the user wants vectors of length 1. Raises `SourceError` when the options contradict the network, and
    when the user has to decide.
    """
    meaning = _meaning(seen)
    decided = _decide(seen, meaning, task, activation)
    return _normalised(decided, meaning) if normalize else decided


def _decide(
    seen: ProbedOutput, meaning: _Meaning, task: ImageTask | None, activation: OutputActivation | None
) -> Decided:
    if task is None and activation is None:
        return _found(seen, meaning)
    task = task or _implied(seen, meaning, activation)
    with_classes = {"classification": _classification, "multi-label": _multi_label}.get(task)
    if with_classes is not None:
        return with_classes(seen, meaning, activation)
    return _as_it_is(seen, meaning, task, activation)


def _normalised(decided: Decided, meaning: _Meaning) -> Decided:
    """The decision with vectors of length 1. Raises `SourceError` for a task without vectors."""
    if decided.task != "embedding":
        raise SourceError(
            f"--normalize makes vectors of length 1, and the task is {decided.task}: say --task embedding, or leave it "
            "out"
        )
    if meaning == "unit vectors":
        return Decided(
            decided.task, Activation("l2", by="network", known="graph"), f"{decided.note}; of length 1 already"
        )
    return Decided(decided.task, Activation("l2", known="said"), f"{decided.note}, divided by their length")


def over_numbers(ending: Ending, answers: npt.NDArray[Any]) -> Activation:
    """The activation of a network over numbers: only the network's own; Flambeau applies none."""
    meaning = _meaning(ProbedOutput("", answers, ending)) if answers.ndim == 2 else "unknown"
    function: Literal["softmax", "sigmoid", "none"] = "none"
    if meaning == "sigmoid":
        function = "sigmoid"
    elif meaning == "probabilities":
        function = "softmax"
    return Activation(function, by="network", known="assumed" if ending.kind == "unknown" else "graph")


def _meaning(seen: ProbedOutput) -> _Meaning:
    """What the numbers are, by the last operation and by their values: a softmax can be written in many ways."""
    numbers = seen.answers.astype(np.float64)
    several = numbers.shape[1] > 1
    if several and numbers.min() >= 0 and _sums_to_one(numbers, by_graph=seen.ending.kind == "softmax"):
        return "probabilities"
    if several and numbers.max() <= _NEAR and _sums_to_one(np.exp(numbers), by_graph=seen.ending.kind == "log-softmax"):
        return "logarithms"
    if seen.ending.kind == "sigmoid" and _within_one(numbers):
        return "sigmoid"
    if several and bool((np.abs(np.linalg.norm(numbers, axis=1) - 1) < _UNIT_LENGTH).all()):
        return "unit vectors"
    return "unknown"


def _sums_to_one(rows: npt.NDArray[np.float64], *, by_graph: bool) -> bool:
    return bool((np.abs(rows.sum(axis=1) - 1) < (_NEAR_BY_GRAPH if by_graph else _NEAR)).all())


def _within_one(numbers: npt.NDArray[np.float64]) -> bool:
    return bool(numbers.min() >= 0 and numbers.max() <= 1)


def _found(seen: ProbedOutput, meaning: _Meaning) -> Decided:
    """The decision when the user gave neither option."""
    outputs = seen.answers.shape[1]
    if meaning == "sigmoid":
        return _multi_label(seen, meaning, None)
    if outputs == 1:
        raise SourceError(
            f"{seen.name} has one output, of which a softmax would always make 1: say --task regression if it is a "
            "number, or --task multi-label if it is the score of one class (binary, trained with BCEWithLogitsLoss)"
            f"{_probability_hint(seen)}"
        )
    if meaning in ("probabilities", "logarithms") or seen.official:
        return _classification(seen, meaning, None)
    if meaning == "unit vectors":
        note = f"task: embedding, for its vectors of {outputs} numbers have length 1: {_classes_instead()}"
        return Decided("embedding", Activation("none", by="network", known="graph"), note)
    if seen.without_head is not None and not seen.named:
        note = (
            f"task: embedding, for {seen.without_head} in the place of its head does nothing: "
            f"its {outputs} outputs are features: {_classes_instead()}"
        )
        return Decided("embedding", Activation("none", by="network", known="graph"), note)
    if seen.ending.kind in ("softmax", "log-softmax") and not seen.registered:
        raise _softmax_elsewhere(seen)
    if seen.registered or seen.ending.kind == "linear" or (seen.named and seen.ending.kind != "other"):
        return _classification(seen, meaning, None)
    raise SourceError(
        f"{seen.name} ends in {seen.ending.text} with {outputs} outputs, which may be features or classes: say "
        "--task embedding or --task regression if they are not classes, --task classification if one of them is right "
        f"for an image, or --task multi-label if each stands on its own{_probability_hint(seen)}"
    )


def _classes_instead() -> str:
    return "say --task classification if they are classes"


def _probability_hint(seen: ProbedOutput) -> str:
    """An addition to the advice where all numbers are between 0 and 1."""
    return ", with --activation none if they are probabilities already" if _within_one(seen.answers) else ""


def _softmax_elsewhere(seen: ProbedOutput) -> SourceError:
    return SourceError(
        f"{seen.name} ends in {seen.ending.text}, but the numbers for an image do not sum to 1: some of them were left "
        "out, or it runs over another axis than the classes, such as the images of a batch (dim=0): fix it to dim=1, "
        "or say what they are with --task classification --activation none, --task regression or --task embedding"
    )


def _refuse_unsure(seen: ProbedOutput, function: Literal["softmax", "sigmoid"]) -> None:
    """Refuse to apply an activation that the user did not name where the network may have applied one already."""
    sure = seen.registered or seen.official or seen.ending.kind == "linear"
    numbers = seen.answers
    if sure or not (_within_one(numbers) or (seen.ending.kind == "other" and numbers.max() <= 0)):
        return
    where = "between 0 and 1" if _within_one(numbers) else "0 or below"
    logarithms = "" if _within_one(numbers) else ", which has to be the exponential of what it gives now"
    raise SourceError(
        f"{seen.name} ends in {seen.ending.text}, and all its numbers are {where}: say --activation none if they are "
        f"probabilities already{logarithms}, and --activation {function} if they are scores to which that has to be "
        "applied"
    )


def _implied(seen: ProbedOutput, meaning: _Meaning, activation: OutputActivation | None) -> ImageTask:
    """The task, where the user named only the activation."""
    if activation == "softmax":
        return "classification"
    if activation == "sigmoid":
        return "multi-label"
    if meaning in ("probabilities", "logarithms"):
        return "classification"
    if meaning == "sigmoid":
        return "multi-label"
    if meaning == "unit vectors":
        return "embedding"
    raise SourceError(
        f"--activation none does not say what the {seen.answers.shape[1]} outputs of {seen.name} are: add "
        "--task regression or --task embedding, or --task classification if they are probabilities"
    )


def _classification(seen: ProbedOutput, meaning: _Meaning, said: OutputActivation | None) -> Decided:
    outputs = seen.answers.shape[1]
    if outputs == 1 and said != "none":
        raise SourceError(
            f"{seen.name} has one output, and one class leaves nothing to choose: say --task regression if it "
            "is a number, or --task multi-label if it is the score of one class (binary, trained with "
            "BCEWithLogitsLoss)"
        )
    if said in ("softmax", "sigmoid"):
        _refuse_twice(seen, meaning, said)
        return _decided("classification", Activation(said, known="said"), seen, f"Flambeau applies a {said}")
    if meaning == "probabilities":
        return _decided(
            "classification", Activation("softmax", by="network", known="graph"), seen,
            f"its {outputs} outputs are probabilities already ({_why(seen)}), and Flambeau applies nothing",
        )  # fmt: skip
    if meaning == "logarithms" and said is None:
        return _decided(
            "classification", Activation("softmax", by="network", logarithm=True, known="graph"), seen,
            f"its {outputs} outputs are logarithms of probabilities ({_why(seen)}), and Flambeau exponentiates them",
        )  # fmt: skip
    if meaning == "sigmoid":
        return _decided(
            "classification", Activation("sigmoid", by="network", known="graph"), seen,
            f"its {outputs} outputs are probabilities already, each on its own (it ends in a sigmoid)",
        )  # fmt: skip
    if said == "none":
        _refuse_outside(seen)
        return _decided("classification", Activation("none", known="said"), seen, "Flambeau applies nothing")
    if seen.ending.kind in ("softmax", "log-softmax") and not seen.official:
        raise _softmax_elsewhere(seen)
    if seen.official:
        return _decided(
            "classification", Activation("softmax", known="architecture"), seen,
            "Flambeau applies a softmax, as these weights were trained",
        )  # fmt: skip
    _refuse_unsure(seen, "softmax")
    otherwise = _OTHERWISE_OF_CLASSES if seen.registered else _OTHERWISE
    return _decided(
        "classification", Activation("softmax"), seen,
        f"a softmax is assumed: its {outputs} outputs are taken for the scores of classes of which one is right, and "
        f"Flambeau applies a softmax; {_OTHERWISE_OF_KNOWN if seen.headed else otherwise}",
    )  # fmt: skip


def _multi_label(seen: ProbedOutput, meaning: _Meaning, said: OutputActivation | None) -> Decided:
    outputs = seen.answers.shape[1]
    if said == "softmax":
        raise SourceError(
            "--activation softmax shares one probability between all classes, and with --task multi-label each has "
            "its own: say --activation sigmoid, or --task classification"
        )
    if meaning in ("probabilities", "logarithms"):
        raise SourceError(
            f"{seen.name} cannot be --task multi-label: {_why(seen)}, so that its classes share one probability: "
            "say --task classification"
        )
    if said == "sigmoid":
        _refuse_twice(seen, meaning, said)
    if meaning == "sigmoid":
        return _decided(
            "multi-label", Activation("sigmoid", by="network", known="graph"), seen,
            f"{_all_of(outputs)} already, each on its own (it ends in a sigmoid), and Flambeau applies nothing",
        )  # fmt: skip
    if said == "none":
        _refuse_outside(seen)
        return _decided("multi-label", Activation("none", known="said"), seen, "Flambeau applies nothing")
    if said is None:
        _refuse_unsure(seen, "sigmoid")
    return _decided("multi-label", Activation("sigmoid", known="said"), seen, "Flambeau applies a sigmoid")


def _as_it_is(seen: ProbedOutput, meaning: _Meaning, task: ImageTask, said: OutputActivation | None) -> Decided:
    """Any other task: the network's numbers are answered as they are."""
    if said not in (None, "none"):
        raise SourceError(
            f"--task {task} answers with the network's numbers as they are, and --activation {said} would change "
            "them: leave it out"
        )
    own: Literal["softmax", "sigmoid", "none"] = "none"
    if meaning in ("probabilities", "sigmoid"):
        own = "softmax" if meaning == "probabilities" else "sigmoid"
    known: Literal["said", "graph"] = "said" if meaning == "unknown" else "graph"
    activation = Activation(own, by="network", known=known)
    return _decided(task, activation, seen, f"its {seen.answers.shape[1]} outputs are answered as they are")


def _decided(task: ImageTask, activation: Activation, seen: ProbedOutput, how: str) -> Decided:
    return Decided(task, activation, f"task: {task}; {how}")


def _all_of(outputs: int) -> str:
    return "its only output is a probability" if outputs == 1 else f"its {outputs} outputs are probabilities"


def _why(seen: ProbedOutput) -> str:
    """Why the numbers count as probabilities."""
    if seen.ending.kind in ("softmax", "log-softmax"):
        return f"it ends in {seen.ending.text}"
    return "every row of them sums to 1"


def _refuse_twice(seen: ProbedOutput, meaning: _Meaning, said: str) -> None:
    """Refuse to apply an activation where the network has already applied one."""
    if meaning in ("probabilities", "logarithms", "sigmoid"):
        how = "it ends in a sigmoid" if meaning == "sigmoid" else _why(seen)
        raise SourceError(
            f"--activation {said}: the outputs of {seen.name} are probabilities already ({how}), and a {said} would "
            "be applied to them once more: leave --activation out"
        )


def _refuse_outside(seen: ProbedOutput) -> None:
    if not _within_one(seen.answers):
        raise SourceError(
            f"--activation none, but the outputs of {seen.name} are not probabilities: they range from "
            f"{seen.answers.min():.3g} to {seen.answers.max():.3g}: leave --activation out, or say --task regression "
            "or --task embedding"
        )
