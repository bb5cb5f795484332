"""What a build will take weights or a graph for, in words, before it is built: the task, and the activation by whom.

The build looks at the numbers as well, and has the last word. It knows architectures and names of operations only.
"""

import re
from collections.abc import Mapping

from flambeau.detection.finding import Fit

ONE_OUTPUT = (
    "it has one output, of which a softmax would always make 1: say --task regression if it is a number, or "
    "--task multi-label if it is the score of one class (binary, trained with BCEWithLogitsLoss)"
)

_OTHERWISE = (
    "say --task multi-label if each class was trained on its own (BCEWithLogitsLoss), --task regression or --task "
    "embedding if they are no classes"
)
_IMAGES = re.compile(r"[^\[]+\[[^,\]]+, [13], [^,\]]+, [^,\]]+\]")


def of_fit(fit: Fit, *, official: bool) -> str:
    """The task of an architecture with these weights; empty over numbers, and where it has to be asked."""
    if fit.pipeline is None or asks(fit):
        return ""
    if official:
        return "classification: Flambeau applies a softmax, as these weights were trained"
    if fit.features:
        return f"embedding: without its head it makes {fit.classes} features"
    return f"classification, assumed: Flambeau applies a softmax to its {fit.classes} outputs; {_OTHERWISE}"


def asks(fit: Fit) -> bool:
    """Whether the user has to say the task."""
    return fit.pipeline is not None and fit.classes == 1


def of_graph(facts: Mapping[str, str]) -> str:
    """The task of an ONNX graph with these facts of its file; empty over numbers, and for several outputs."""
    ends = facts.get("ends in", "")
    if not ends or ": " in ends or not _IMAGES.fullmatch(facts.get("inputs", "")):
        return ""
    if ends in ("a softmax", "a log-softmax"):
        return f"classification: it ends in {ends}, and Flambeau applies none"
    if ends == "a sigmoid":
        return "multi-label: it ends in a sigmoid, and Flambeau applies none"
    if ends == "a linear layer":
        return f"classification, assumed: Flambeau applies a softmax; {_OTHERWISE}"
    return f"it ends in {ends}, which may be features or classes: say --task embedding or --task classification"
