"""Imports what a build of a network imports on its way; for the process that `warm` forks from."""

import sys

import onnxruntime  # noqa: F401
import onnxscript  # noqa: F401
import torch._dynamo
import torch.onnx._internal.exporter._core  # noqa: F401

import flambeau.builder.steps  # noqa: F401
from flambeau.architectures import torchvision_compat

torchvision_compat.declare_missing()

import torchvision  # noqa: E402, F401  # which needs what was declared

PATH = (*sys.path,)
