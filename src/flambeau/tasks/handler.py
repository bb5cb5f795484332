"""The answer of a handler: a body, its media type and a status of the handler's own choice."""

import base64
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from flambeau.answers import Answer, Asked
from flambeau.answers.schemas import Schema, record
from flambeau.items import TensorSpec
from flambeau.tasks.base import NetworkFacts, Task

_JSON = "application/json"


class Handled(Answer, frozen=True):
    """What a handler answered to one request. `headers` are those that it set beside the media type."""

    data: bytes
    media_type: Annotated[str, msgspec.Meta(max_length=200)]
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] = 200
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def size(self) -> int:
        return len(self.data)

    def body(self, asked: Asked) -> dict[str, Any]:
        return {"output": self.output}

    @property
    def output(self) -> Any:
        """JSON as it is, text as a string, and anything else in base64."""
        if self.media_type == _JSON:
            return msgspec.Raw(self.data)
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b64encode(self.data).decode("ascii")

    def tensors(self) -> dict[str, Any]:
        """As of a Python model: an array of numbers, where the answer is one."""
        from flambeau.answers.value import Value

        if self.media_type != _JSON:
            raise ValueError("the answer is not an array of numbers")
        return Value(self.data).tensors()

    def returned(self) -> Any:
        if self.media_type == _JSON:
            return msgspec.json.decode(self.data)
        return self.data


class HandlerTask(Task):
    """The answer of an archive's own handler, or of an inference script."""

    name = "handler"
    title = "A handler in Python"
    told = "Whatever the handler of the model's archive answers."
    answer = Handled
    takes = "python"

    def schemas(self, network: NetworkFacts) -> tuple[Schema, ...]:
        return (record({"output": {}}),)

    def lead(self, outputs: Sequence[TensorSpec]) -> str:
        return "Give it a value as JSON, or a file, and see what it makes of it."


TASK = HandlerTask()
