"""What a model does and who applies which activation, in sentences for people: the page and the OpenAPI document."""

from flambeau.bundle import Activation
from flambeau.model import Model
from flambeau.types import Task

_TASKS: dict[Task, str] = {
    "classification": "Classification",
    "multi-label": "Multi-label classification",
    "regression": "Regression",
    "embedding": "Embedding",
    "tensor": "A network over numbers",
    "python": "A model in Python",
}

_FUNCTIONS = {"softmax": "Softmax", "sigmoid": "Sigmoid"}


def task_name(model: Model) -> str:
    """The task for people."""
    return _TASKS[model.task]


def about(model: Model) -> str:
    """The task and the activation, as two sentences; of own code only that it is."""
    if model.kind != "image":
        return f"{task_name(model)}."
    return f"{task_name(model)}. {activation_of(model.bundle.manifest.activated_by, model.task)}"


def activation_of(activation: Activation, task: Task) -> str:
    """Which activation is applied, and by whom: "Softmax by Flambeau, which is assumed: ..."."""
    name = _FUNCTIONS.get(activation.function)
    if name is None:
        plain = "The network's numbers are the answer as they are"
        return plain + _WHY[activation.known] + "."
    if activation.by == "network":
        form = ", whose logarithm it gives and Flambeau takes back" if activation.logarithm else ""
        return f"{name} in the network{form}{_WHY[activation.known]}; Flambeau adds none."
    if activation.known == "assumed":
        return f"{name} by Flambeau, which is assumed: nothing in the file says what its numbers mean."
    return f"{name} by Flambeau{_WHY[activation.known]}."


_WHY = {
    "said": ", as was said when it was built",
    "graph": ", as its last operation shows",
    "architecture": ", as of every network of its kind",
    "assumed": "",
}
