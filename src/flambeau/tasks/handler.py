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
_OURS = frozenset({
    "content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "trailer", "te", "server", "date",
    "set-cookie", "x-request-id", "x-content-type-options", "server-timing",
})  # fmt: skip
"""Headers that are not a handler's to set: they frame the response, or speak for the server."""


def can_be_sent(name: str, value: str) -> bool:
    """Whether a header is one that a handler may set, and can stand in a response at all."""
    if not (name.isascii() and name.replace("-", "").replace("_", "").isalnum() and len(name) <= 100):
        return False
    lowered = name.lower()
    if lowered in _OURS or lowered.startswith("access-control-"):
        return False
    return value.isascii() and value.isprintable() and len(value) <= 1000


class Handled(Answer, frozen=True):
    """What a handler answered to one request. `headers` are those that it set beside the media type."""

    data: bytes
    media_type: Annotated[str, msgspec.Meta(max_length=200)]
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] = 200
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("Content-Type", self.media_type), *self.headers):
            if not can_be_sent(name, value):
                raise ValueError("a handler's header cannot stand in a response")

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
