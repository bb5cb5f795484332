"""The answer of a Python model. Its own code makes the answer, so this task has no postprocess."""

from collections.abc import Sequence

from flambeau.answers import Value
from flambeau.answers.schemas import Schema, record
from flambeau.items import TensorSpec
from flambeau.tasks.base import NetworkFacts, Task


class PythonTask(Task):
    """The answer of the model's own code."""

    name = "python"
    title = "A model in Python"
    told = "Whatever the model's own code answers."
    answer = Value
    takes = "python"

    def schemas(self, network: NetworkFacts) -> tuple[Schema, ...]:
        return (record({"output": {}}),)

    def lead(self, outputs: Sequence[TensorSpec]) -> str:
        return "Give it a value as JSON, or a file, and see what it makes of it."


TASK = PythonTask()
