"""Imports what commands and the build of a network import on their way; for the process that `warm` forks from."""

import sys

import onnxruntime  # noqa: F401
import onnxscript  # noqa: F401
import torch._dynamo
import torch.onnx._internal.exporter._core  # noqa: F401

import flambeau.__main__
import flambeau.builder.steps
import flambeau.checkpoints
import flambeau.cli.predict
import flambeau.cli.serve
import flambeau.cli.source
import flambeau.http.server  # noqa: F401
from flambeau.architectures import torchvision_compat

torchvision_compat.declare_missing()

import torchvision  # noqa: E402, F401  # which needs what was declared

PATH = (*sys.path,)
