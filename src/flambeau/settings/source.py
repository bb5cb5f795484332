"""The options of a source: its architecture, its input, and the meaning of its answers."""

from typing import Any, Literal

import msgspec

from flambeau.tasks import AskedTask

HiddenActivation = Literal["none", "relu", "gelu", "silu", "tanh", "sigmoid"]
"""The activation between the linear layers of a replaced head."""

OutputActivation = Literal["softmax", "sigmoid", "none"]
"""The activation between a network's last layer and the answer."""


InputShape = tuple[int | str, ...]
"""The shape of one row of an input; a word stands for an axis of free length."""


class SourceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the user says about a source. Paths are as the user gave them, relative to the current folder."""

    source: str | None = None
    arch: str | None = None
    arch_args: dict[str, Any] = {}
    weights: str | None = None
    weights_key: str | None = None
    hidden_activation: HiddenActivation | None = None
    labels: str | None = None
    num_classes: int | None = None
    pipeline: Literal["image", "text", "audio", "tensor"] | None = None
    task: AskedTask | None = None
    activation: OutputActivation | None = None
    normalize: bool | None = None
    output_name: str | None = None
    input_shape: InputShape | dict[str, InputShape] | None = None
    input_dtype: Literal["float32", "int64", "int32"] | None = None
    tokenizer: str | None = None
    pooling: Literal["mean", "first"] | None = None
    max_tokens: int | None = None
    truncate: bool | None = None
    sample_rate: int | None = None
    max_seconds: float | None = None
    resize: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    levels: str | None = None
    log_mel: str | None = None
    threshold: float | None = None
    samples: str | None = None
    allow_code: bool = False
    allow_installs: bool = False
