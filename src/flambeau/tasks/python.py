"""Whatever a Python model returns. Its own code makes the answer, so there is nothing to be made of outputs here."""

from collections.abc import Sequence

from flambeau.answers import Value
from flambeau.answers.schemas import Schema, record
from flambeau.items import TensorSpec
from flambeau.tasks.base import NetworkFacts, Task


class PythonTask(Task):
    """What the model's own code answers."""

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
