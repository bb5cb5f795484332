"""A model's task and activation in sentences for people: for the page and the OpenAPI document."""

from flambeau.answers.activation import Activation
from flambeau.serving.model import Model

_FUNCTIONS = {"softmax": "Softmax", "sigmoid": "Sigmoid", "l2": "A division by its length"}


def task_name(model: Model) -> str:
    """The task's name for people."""
    return model.does.title


def about(model: Model) -> str:
    """The task and the activation, as two sentences; for a model over numbers or in Python, the task alone."""
    if model.kind not in ("image", "text", "audio"):
        return f"{task_name(model)}."
    return f"{task_name(model)}. {activation_of(model.bundle.manifest.activated_by)}"


def activation_of(activation: Activation) -> str:
    """Which activation is applied, by the network or by Flambeau, and how that is known."""
    known = _KNOWN[activation.known]
    name = _FUNCTIONS.get(activation.function)
    if name is None:
        return f"No activation is applied ({known}): the network's numbers are the answer."
    if activation.function == "l2":
        return f"Each vector is divided by its length ({known})."
    if activation.logarithm:
        return (
            f"The network gives the logarithm of a {activation.function} ({known}); Flambeau applies the exponential."
        )
    if activation.by == "network":
        return f"{name} is applied by the network ({known}); Flambeau applies nothing."
    if activation.known == "assumed":
        return f"{name} is applied by Flambeau. This is assumed: nothing in the file says what the numbers mean."
    return f"{name} is applied by Flambeau ({known})."


_KNOWN = {
    "said": "chosen at build",
    "graph": "its last operation shows it",
    "architecture": "a known architecture",
    "assumed": "assumed",
}
