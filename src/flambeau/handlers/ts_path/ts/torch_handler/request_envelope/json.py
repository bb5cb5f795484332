"""The envelope `json`: `{"instances": [...]}` to `{"predictions": [...]}`, one for each instance."""

import base64
import binascii
import json
from typing import Any

from ...utils.util import PredictionException
from .base import BaseEnvelope, content

_BYTES = "b64"


def table(row: Any) -> dict[str, Any]:
    """The JSON object that a request brought. Raises `PredictionException`."""
    found = content(row) or row
    if isinstance(found, bytes | bytearray | str):
        try:
            found = json.loads(found)
        except (ValueError, RecursionError):
            raise PredictionException("the body is not JSON", 400) from None
    if not isinstance(found, dict):
        raise PredictionException("the body is no JSON object", 400)
    return found


def instances(row: Any) -> list[Any]:
    """The member `instances` of a request's JSON object. Raises `PredictionException`."""
    found = table(row).get("instances")
    if not isinstance(found, list) or not found:
        raise PredictionException('the body has no "instances": a list of at least one', 400)
    return found


class JSONEnvelope(BaseEnvelope):
    """`{"b64": "..."}` in an instance, or in a member of one, becomes bytes."""

    _lengths: tuple[int, ...] = ()

    def parse_input(self, data: list[Any]) -> list[Any]:
        rows = [instances(row) for row in data]
        self._lengths = tuple(map(len, rows))
        return [_opened(each) for row in rows for each in row]

    def format_output(self, data: list[Any]) -> list[Any]:
        if len(data) != sum(self._lengths):
            raise ValueError(f"the handler gave {len(data)} answers to {sum(self._lengths)} instances")
        left = iter(data)
        return [{"predictions": [next(left) for _ in range(length)]} for length in self._lengths]


def _opened(instance: Any) -> Any:
    if not isinstance(instance, dict):
        return instance
    if list(instance) == [_BYTES]:
        return _decoded(instance[_BYTES])
    return {
        name: _decoded(value[_BYTES]) if isinstance(value, dict) and list(value) == [_BYTES] else value
        for name, value in instance.items()
    }


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, AttributeError, ValueError):
        raise PredictionException(f'"{_BYTES}" is not in base64', 400) from None
