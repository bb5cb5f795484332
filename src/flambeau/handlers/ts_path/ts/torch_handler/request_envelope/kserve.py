"""The envelope `kserve`: KServe's version 1, `{"instances": [...]}` to `{"predictions": [...]}`."""

from typing import Any

from .base import BaseEnvelope
from .json import instances


class KServeEnvelope(BaseEnvelope):
    """Handlers get the instances of a request as they are."""

    def parse_input(self, data: list[Any]) -> list[Any]:
        [row] = data  # a request at a time: of more, TorchServe answers the first alone
        return instances(row)

    def format_output(self, data: list[Any]) -> list[Any]:
        explained = self.context is not None and self.context.get_request_header(0, "explain") == "True"
        return [{"explanations" if explained else "predictions": data}]
