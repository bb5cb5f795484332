"""EfficientNet-Lite 0 to 4: EfficientNet without squeeze-and-excitation, with ReLU6 and an unscaled stem and head.

Source of the numbers: the EfficientNet-Lite configuration in TensorFlow's TPU models (`efficientnet_lite_builder.py`).
The module names follow `efficientnet_lite_pytorch`, so that its published weights fill this network strictly.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional


class _Scale(NamedTuple):
    width: float
    depth: float
    size: int  # pixels of the square input
    dropout: float


_SCALES = {
    "efficientnet_lite0": _Scale(1.0, 1.0, 224, 0.2),
    "efficientnet_lite1": _Scale(1.0, 1.1, 240, 0.2),
    "efficientnet_lite2": _Scale(1.1, 1.2, 260, 0.3),
    "efficientnet_lite3": _Scale(1.2, 1.4, 280, 0.3),
    "efficientnet_lite4": _Scale(1.4, 1.8, 300, 0.3),
}


class _StageSpec(NamedTuple):
    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


_STAGES = (
    _StageSpec(1, 3, 1, 1, 16),
    _StageSpec(2, 3, 2, 6, 24),
    _StageSpec(2, 5, 2, 6, 40),
    _StageSpec(3, 3, 2, 6, 80),
    _StageSpec(3, 5, 1, 6, 112),
    _StageSpec(4, 5, 2, 6, 192),
    _StageSpec(1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280


def names() -> list[str]:
    """The names of the family's members."""
    return list(_SCALES)


def constructor(name: str) -> Callable[..., nn.Module]:
    """The constructor for that member, which takes `num_classes`."""
    return partial(EfficientNetLite, _SCALES[name])


def size_of(name: str) -> int:
    """The side of that member's square input, in pixels."""
    return _SCALES[name].size


class EfficientNetLite(nn.Module):
    """Images (N, 3, size, size), float32 and normalised, to logits (N, num_classes)."""

    def __init__(self, scale: _Scale, *, num_classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = _SameConv2d(3, _STEM_CHANNELS, 3, stride=2)
        self._bn0 = _batch_norm(_STEM_CHANNELS)
        blocks: list[nn.Module] = []
        channels = _STEM_CHANNELS
        for index, stage in enumerate(_STAGES):
            scaled = index not in (0, len(_STAGES) - 1)  # Lite keeps the depth of its first and last stage
            out = _round_channels(stage.channels, scale.width)
            for repeat in range(math.ceil(stage.repeats * scale.depth) if scaled else stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                blocks.append(_InvertedResidual(channels, out, kernel=stage.kernel, stride=stride, expand=stage.expand))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SameConv2d(channels, _HEAD_CHANNELS, 1)
        self._bn1 = _batch_norm(_HEAD_CHANNELS)
        self._dropout = nn.Dropout(scale.dropout)
        self._fc = nn.Linear(_HEAD_CHANNELS, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = functional.relu6(self._bn0(self._conv_stem(images)))
        for block in self._blocks:
            features = block(features)
        features = functional.relu6(self._bn1(self._conv_head(features)))
        pooled = functional.adaptive_avg_pool2d(features, 1).flatten(1)
        logits: torch.Tensor = self._fc(self._dropout(pooled))
        return logits


class _InvertedResidual(nn.Module):
    """Inverted residual: expand 1x1, depthwise kxk, project 1x1; added to its input where the shapes allow."""

    def __init__(self, channels: int, out: int, *, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = channels * expand
        self._expands = expand != 1
        if self._expands:
            self._expand_conv = _SameConv2d(channels, inner, 1)
            self._bn0 = _batch_norm(inner)
        self._depthwise_conv = _SameConv2d(inner, inner, kernel, stride=stride, groups=inner)
        self._bn1 = _batch_norm(inner)
        self._project_conv = _SameConv2d(inner, out, 1)
        self._bn2 = _batch_norm(out)
        self._adds = stride == 1 and channels == out

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner: torch.Tensor = features
        if self._expands:
            inner = functional.relu6(self._bn0(self._expand_conv(inner)))
        inner = functional.relu6(self._bn1(self._depthwise_conv(inner)))
        inner = self._bn2(self._project_conv(inner))
        return torch.add(inner, features) if self._adds else inner


class _SameConv2d(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow's SAME: the odd pixel goes to the right and the bottom."""

    def __init__(self, channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        height, width = features.shape[-2:]
        top, bottom = self._padding(height)
        left, right = self._padding(width)
        if top + bottom + left + right:
            features = functional.pad(features, (left, right, top, bottom))
        return super().forward(features)

    def _padding(self, size: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _round_channels(channels: int, width: float, *, divisor: int = 8) -> int:
    """Scale and round to the nearest multiple of `divisor`, or the next one up rather than lose more than a tenth
    (MobileNet's rule)."""
    if width == 1.0:
        return channels
    scaled = channels * width
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded
