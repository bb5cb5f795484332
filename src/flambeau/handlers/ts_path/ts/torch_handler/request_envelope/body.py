"""The envelope `body`: handlers get what a request brought, without the table around it."""

from typing import Any

from .base import BaseEnvelope, content


class BodyEnvelope(BaseEnvelope):
    """`{"body": x}` becomes `x`; answers stay as they are."""

    def parse_input(self, data: list[Any]) -> list[Any]:
        return [content(row) for row in data]

    def format_output(self, data: list[Any]) -> list[Any]:
        return data
