"""Regression: the network's numbers about an image, taken at face value."""

from collections.abc import Sequence
from typing import Any

from flambeau.answers import Answer, Asked, packed_array
from flambeau.answers.activation import applied
from flambeau.answers.schemas import NUMBER, Schema, nested, record
from flambeau.items import Item, Tensors, TensorSpec
from flambeau.tasks.base import NetworkFacts, Postprocess, Task, in_words


class Regression(Answer, frozen=True):
    """The network's own numbers. `shape`: that of its output, without the row. `vector`: the numbers, as float64."""

    KIND = "a number"

    shape: tuple[int, ...]
    vector: bytes

    def __post_init__(self) -> None:
        packed_array.check(self.vector, packed_array.DOUBLE, self.shape)

    @property
    def output(self) -> Any:
        """A number for a network with one output, else lists nested as the output is."""
        array = packed_array.unpacked(self.vector, packed_array.DOUBLE)
        return array.item() if array.size == 1 else array.reshape(self.shape).tolist()

    @property
    def nonfinite(self) -> int:
        return packed_array.count_nonfinite(packed_array.unpacked(self.vector, packed_array.DOUBLE))

    @property
    def size(self) -> int:
        return len(self.vector)

    def tensors(self) -> Tensors:
        return {"output": packed_array.unpacked(self.vector, packed_array.DOUBLE).reshape(1, *self.shape)}

    def body(self, asked: Asked) -> dict[str, Any]:
        return {"output": self.output}


class RegressionTask(Task):
    """The network's numbers, after its activation if it has one."""

    name = "regression"
    title = "Regression"
    told = "The number that the network gives, or nested lists of its numbers."
    answer = Regression

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        activation, output = network.activation, network.outputs[0].name
        plain = activation.function == "none" and not activation.logarithm

        def answer(outputs: Tensors, item: Item) -> Regression:
            row = outputs[output][0]
            found = row if plain else applied(row, activation)
            return Regression(tuple(row.shape), packed_array.packed(found, packed_array.DOUBLE))

        return answer

    def arrays(self, network: NetworkFacts) -> tuple[TensorSpec, ...]:
        return (TensorSpec("output", "float64", network.outputs[0].shape),)

    def schemas(self, network: NetworkFacts) -> tuple[Schema, ...]:
        shape = network.outputs[0].shape
        return (record({"output": nested(shape if packed_array.elements(shape) != 1 else (), NUMBER)}),)

    def lead(self, outputs: Sequence[TensorSpec]) -> str:
        count, one = in_words(outputs)
        return f"Show it a picture, and it answers {'a number' if one else f'{count} numbers'}."


TASK = RegressionTask()
