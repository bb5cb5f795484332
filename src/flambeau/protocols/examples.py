"""Request bodies that a model answers, for the OpenAPI document: people send them from there as they stand.

They are made of the manifest alone. A model of somebody's own code has none, because nobody knows what it takes.
"""

import base64
import io
import math
import wave
from typing import Any, Final

import numpy as np

from flambeau.answers import png
from flambeau.bundle.storage import AudioConfig, TextConfig
from flambeau.items import FREE
from flambeau.protocols import v2_inference
from flambeau.protocols.v2_datatypes import datatype_of
from flambeau.serving.model import Model
from flambeau.types import TensorSpec

_MOST: Final = 2_048
"""The most numbers of an example: a document with those of a picture would be megabytes long."""

_SIDE = 64  # pixels


def native(model: Model) -> dict[str, Any]:
    """The members that a media type of the document has for JSON: `example`, or none."""
    value = _value(model)
    return {} if value is None else {"example": {"image" if model.kind == "image" else "input": value}}


def v1(model: Model) -> dict[str, Any]:
    """The same for KServe v1, with one instance."""
    value = _value(model)
    if value is None:
        return {}
    return {"example": {"instances": [{"b64": value} if model.kind in ("image", "audio") else value]}}


def v2(model: Model) -> dict[str, Any]:
    """The same for KServe v2: a file or a text where the model takes them, else the network's own inputs."""
    value = _value(model)
    whole = v2_inference.whole_inputs(model)
    if value is None:
        return {}
    if whole:
        return {"example": {"inputs": [{"name": whole[0], "shape": [1], "datatype": "BYTES", "data": [value]}]}}
    rows = {spec.name: spec.plain(1) for spec in v2_inference.raw_inputs(model)}
    tensors = [
        {"name": name, "shape": list(row.shape), "datatype": datatype_of(str(row.dtype)), "data": row.ravel().tolist()}
        for name, row in rows.items()
    ]
    return {"example": {"inputs": tensors}}


def _value(model: Model) -> Any:
    """One item as JSON; `None` if it is not known, or is long."""
    manifest = model.bundle.manifest
    match model.kind:
        case "image":
            return _base64(png.write(np.full((_SIDE, _SIDE), 128, np.uint8)))
        case "audio":
            assert isinstance(manifest.pipeline, AudioConfig)
            return _base64(_tone(manifest.pipeline, manifest.inputs[0]))
        case "text":
            assert isinstance(manifest.pipeline, TextConfig)
            return manifest.pipeline.example
        case "tensor":
            if sum(math.prod(spec.usual) for spec in manifest.inputs) > _MOST:
                return None
            rows = {spec.name: spec.plain(1)[0].tolist() for spec in manifest.inputs}
            return rows if len(rows) > 1 else next(iter(rows.values()))
    return None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _tone(config: AudioConfig, spec: TensorSpec) -> bytes:
    """A WAV file of 8 bits: a quiet tone of a twentieth of a second or less, which is filled up with silence."""
    length = spec.shape[-1]
    most = config.rate // 20
    if length != FREE:
        most = min(most, length if config.mel is None else max(length - 1, 1) * config.mel.hop)
    times = np.arange(most) / config.rate
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(1)
        sound.setframerate(config.rate)
        sound.writeframes((128 + 13 * np.sin(2 * np.pi * 440 * times)).astype(np.uint8).tobytes())
    return file.getvalue()
