"""The outputs of a network over numbers, nested as its input was: one output by itself, several by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from flambeau.answers import Value
from flambeau.answers.schemas import NUMBER, Schema, one_or_several, record
from flambeau.answers.value import column_of, encode
from flambeau.items import Item, Tensors, TensorSpec
from flambeau.tasks.base import CellKind, NetworkFacts, Postprocess, Task

MAX_ROWS = 1024
"""The most rows in one item; send more in several requests."""


class TensorTask(Task):
    """Rows for rows, a row for a row, and a number for a number if the network has one input.

    For example, a network that sums an input of shape (2,) answers `[1, 2]` with `[3.0]` and `[[1, 2]]` with
    `[[3.0]]`. One with an input of shape (1,) also answers `2` with `2.0`.
    """

    name = "tensor"
    title = "A network over numbers"
    told = "The output, nested as the input was; if the network has several, each by name."
    answer = Value
    takes = "tensor"

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        names = [spec.name for spec in network.outputs]
        several, first = len(network.inputs) > 1, network.inputs[0]

        def answer(outputs: Tensors, item: Item) -> Value:
            text = bytes(item.payload.data)
            nesting = nesting_of(bytes(inputs_of(text)[first.name]) if several else text)

            def nested(name: str) -> Any:
                rows = outputs[name]
                if nesting > len(first.shape):
                    return rows.tolist()
                row = rows[0]
                return row.item() if nesting == 0 and not several and row.size == 1 else row.tolist()

            if len(names) == 1:
                return encode(nested(names[0]))
            return encode({name: nested(name) for name in names}, "outputs")

        return answer

    def schemas(self, network: NetworkFacts) -> tuple[Schema, ...]:
        bodies = {spec.name: one_or_several(spec.shape, NUMBER, most=MAX_ROWS) for spec in network.outputs}
        if len(bodies) == 1:
            return (record({"output": bodies[network.outputs[0].name]}),)
        return (record({"outputs": record(bodies)}),)

    def columns_of(self, outputs: Sequence[TensorSpec]) -> Mapping[str, CellKind]:
        return self.columns if len(outputs) == 1 else {column_of(spec.name): "any" for spec in outputs}

    def lead(self, outputs: Sequence[TensorSpec]) -> str:
        return "Give it numbers as JSON, and see what it makes of it."

    def line(self, row: Mapping[str, Any]) -> tuple[str, bool]:
        named = {name.removeprefix(column_of("")): row[name] for name in row if name.startswith(column_of(""))}
        return msgspec.json.encode(named or row["output"]).decode(), True


TASK = TensorTask()

_INPUTS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def inputs_of(text: bytes) -> dict[str, msgspec.Raw]:
    """The JSON text of each input, by name, for a network with several. Raises `msgspec.DecodeError`."""
    return _INPUTS.decode(text)


def nesting_of(text: bytes) -> int:
    """How many lists the JSON value `text` opens with: the nesting of its first number, hence of every number."""
    head = text[: len(text) - len(text.lstrip(b"[ \t\r\n"))]
    return head.count(b"[")
