"""Whatever a network over numbers gives, nested as its input was."""

from collections.abc import Sequence

from flambeau.answers import Value
from flambeau.answers.schemas import NUMBER, Schema, one_or_several, record
from flambeau.answers.value import encode
from flambeau.items import Item, Tensors, TensorSpec
from flambeau.tasks.base import NetworkFacts, Postprocess, Task

MAX_ROWS = 1024
"""Most rows in one item; more belong into several requests."""


class TensorTask(Task):
    """Rows for rows, a row for a row, a number for a number."""

    name = "tensor"
    title = "A network over numbers"
    told = "The output, nested as the input was."
    answer = Value
    takes = "tensor"

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        dimensions, output = len(network.inputs[0].shape), network.outputs[0].name

        def answer(outputs: Tensors, item: Item) -> Value:
            rows, nesting = outputs[output], nesting_of(bytes(item.payload.data))
            if nesting > dimensions:
                return encode(rows.tolist())
            row = rows[0]
            return encode(row.item() if nesting == 0 and row.size == 1 else row.tolist())

        return answer

    def schemas(self, network: NetworkFacts) -> tuple[Schema, ...]:
        return (record({"output": one_or_several(network.outputs[0].shape, NUMBER, most=MAX_ROWS)}),)

    def lead(self, outputs: Sequence[TensorSpec]) -> str:
        return "Give it numbers as JSON, and see what it makes of it."


TASK = TensorTask()


def nesting_of(text: bytes) -> int:
    """How many lists the JSON value `text` opens with: the nesting of its first element, hence of all of them."""
    head = text[: len(text) - len(text.lstrip(b"[ \t\r\n"))]
    return head.count(b"[")
