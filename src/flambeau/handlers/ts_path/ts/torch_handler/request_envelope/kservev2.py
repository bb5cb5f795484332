"""The envelope `kservev2`: KServe's version 2, `{"inputs": [...]}` to `{"outputs": [...]}`, in JSON."""

from typing import Any

import numpy as np

from ...utils.util import PredictionException
from .base import BaseEnvelope
from .json import table

_MEMBERS = ("name", "shape", "datatype", "data")
_DATATYPES = {
    "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    **{f"{kind}{bits}": f"{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_BYTES = "BYTES"


class KServev2Envelope(BaseEnvelope):
    """Handlers get a request's inputs, with `data` in its shape; of bytes the first. Outputs have the inputs' names."""

    _id: Any = None
    _names: tuple[str, ...] = ()

    def parse_input(self, data: list[Any]) -> list[Any]:
        [row] = data  # a request at a time: of more, TorchServe answers the first alone
        body = table(row)
        inputs = body.get("inputs")
        if not isinstance(inputs, list) or not inputs:
            raise PredictionException('the body has no "inputs": a list of at least one', 400)
        self._id = body.get("id") or None
        found = [_shaped(each) for each in inputs]
        self._names = tuple(each["name"] for each in found)
        return found

    def format_output(self, data: list[Any]) -> list[Any]:
        if len(data) > len(self._names):
            raise ValueError(f"the handler gave {len(data)} outputs, which have the names of {len(self._names)} inputs")
        model = self.context.manifest.get("model", {})
        return [{
            "id": self._id or self.context.get_request_id(0),
            "model_name": model.get("modelName"),
            "model_version": model.get("modelVersion"),
            "outputs": [_output(name, each) for name, each in zip(self._names, data, strict=False)],
        }]  # fmt: skip


def _shaped(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict) or not all(name in given for name in _MEMBERS):
        raise PredictionException(f"an input has not all of {', '.join(_MEMBERS)}", 400)
    try:
        if given["datatype"] == _BYTES:
            return {**given, "data": given["data"][0]}
        return {**given, "data": np.array(given["data"]).reshape(tuple(given["shape"])).tolist()}
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise PredictionException(f"the data of {given['name']} is not of its shape: {error}", 400) from None


def _output(name: str, found: Any) -> dict[str, Any]:
    flat = np.array(found).flatten()
    return {
        "name": name, "datatype": _DATATYPES.get(str(flat.dtype), _BYTES), "data": flat.tolist(), "shape": [len(flat)],
    }  # fmt: skip
