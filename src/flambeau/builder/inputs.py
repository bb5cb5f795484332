"""Infer the input of a network outside the registries: images or numbers, and their shape.

The first layer decides where it is unambiguous; otherwise the usual image sizes are tried; otherwise the user is asked.
Reads no files.

Examples: a network that begins with `Linear(20, 8)` takes rows of shape (20,). One that begins with a convolution of 3
channels takes square images, of the first usual size (224 before 28, 32, ...) that it turns into rows of numbers.
"""

import contextlib
from dataclasses import replace

import torch
from msgspec import structs
from torch import nn

from flambeau.architectures import single_output
from flambeau.builder import dense, lookups, signature_words, trials
from flambeau.builder.axis_words import asked_for
from flambeau.builder.shapes import InputForm, as_images, of_shape, shape_of
from flambeau.errors import SourceError
from flambeau.identify import unsupported
from flambeau.items import FREE
from flambeau.settings.source import SourceOptions
from flambeau.types import TensorSpec

_USUAL_SIZES = (224, 28, 32, 48, 64, 84, 96, 112, 128, 150, 160, 180, 192, 227, 240, 256, 299, 300, 320, 384, 448, 512)
"""Common sides of square training images in pixels, the most common first: from MNIST's to the large transformers'."""


def infer(network: nn.Module, name: str, options: SourceOptions) -> InputForm:
    """The network's input. Raises `SourceError` that asks for `--input-shape` where it cannot be inferred."""
    needed = signature_words.arguments(network, name)
    asked = options.input_shape
    if isinstance(asked, dict) or len(needed) > 1:
        taken = _several(needed, name, options, optional=signature_words.optional(network))
    elif asked is not None and any(isinstance(size, str) for size in asked):
        taken = InputForm(asked_for((TensorSpec("input", "float32", shape_of(asked)),), options))
    else:
        taken = _inferred(network, name, options)
    if taken.image is None:
        taken = _with_dtypes(network, taken, name, options)
        if len(taken.inputs) > 1:
            taken = replace(taken, inputs=lookups.with_masks(network, taken.inputs, name=name))
        taken = replace(taken, inputs=lookups.with_tables(network, taken.inputs))
        tried, told = trials.computable(network, taken.inputs)
        taken = replace(taken, inputs=tried, note="; ".join(each for each in (taken.note, told) if each))
    if left := signature_words.optional(network):
        told = f"forward() of {name} is called without {' and '.join(left)}, for it has defaults"
        taken = replace(taken, note=f"{taken.note}; {told}" if taken.note else told)
    if all(spec.dtype == "float32" for spec in taken.inputs):
        signature_words.require_decimals(network, name, *(spec.usual for spec in taken.inputs))
    return taken


def _with_dtypes(network: nn.Module, taken: InputForm, name: str, options: SourceOptions) -> InputForm:
    """The inputs with the dtype that the user says, or that the network needs."""
    if options.input_dtype is None and len(taken.inputs) > 1:
        specs = lookups.dtypes(network, taken.inputs, name=name)
        whole = [spec.name for spec in specs if spec.dtype != "float32"]
        takes = f"{whole[0]} takes" if len(whole) == 1 else f"{' and '.join(whole)} take"
        note = f"{takes} whole numbers, for {name} computes no others there" if whole else taken.note
        return replace(taken, inputs=specs, note=note)
    dtype = options.input_dtype or _usual_dtype(network, taken)
    return replace(taken, inputs=tuple(structs.replace(spec, dtype=dtype) for spec in taken.inputs))


def _usual_dtype(network: nn.Module, taken: InputForm) -> str:
    """int64 for the only input of a network that begins with a table of vectors and computes no decimal numbers."""
    begins = len(taken.inputs) == 1 and _first_layer(network)[0].startswith("Embedding")
    return "int64" if begins and signature_words.of(network, taken.inputs[0].usual) is None else "float32"


def _several(needed: list[str], name: str, options: SourceOptions, *, optional: list[str]) -> InputForm:
    """Several inputs, in the order in which `forward` takes them; it does without the `optional` ones.

    Raises `SourceError` unless each has its shape.
    """
    asked = options.input_shape
    if not isinstance(asked, dict):
        raise signature_words.shapes_wanted(name, needed)
    if options.pipeline == "image":
        raise SourceError(f"--pipeline image, but {name} takes inputs by their names: leave it out")
    needed = needed or list(asked)
    if more := [each for each in optional if each in asked]:
        raise SourceError(
            f"--input-shape names {more[0]}, which {name} does without where it is not given: to have it as an input, "
            f"give a class whose forward() needs it, without a default; else name {', '.join(needed)} alone"
        )
    if asked.keys() != set(needed):
        raise SourceError(
            f"--input-shape names {', '.join(asked)}, but {name} takes {', '.join(needed)}: name exactly those"
        )
    specs = [TensorSpec(each, "float32", shape_of(asked[each])) for each in needed]
    return InputForm(asked_for(specs, options))


def _inferred(network: nn.Module, name: str, options: SourceOptions) -> InputForm:
    layer, shape = _first_layer(network)
    channels = shape[1] if layer.startswith("Conv2d") and len(shape) == 4 else None
    if options.input_shape is not None:
        asked = shape_of(tuple(options.input_shape))
        if channels is None and options.pipeline is None:  # three sizes alone do not make an image
            return InputForm((TensorSpec("input", "float32", asked),))
        return of_shape(asked, name, options)
    if options.pipeline == "audio" and layer == "Conv2d" and options.log_mel is None:
        raise SourceError(
            f"{name} begins with {layer}, so it takes a spectrogram and no waveform: say how that is made with "
            f"--log-mel, such as --log-mel n_fft=400,hop=160,mels=64, and its shape, --input-shape {shape[1]},64,frames"
        )
    if options.pipeline == "audio" and layer != "Linear":
        return InputForm((TensorSpec("input", "float32", (1, FREE) if layer == "Conv1d" else (FREE,)),))
    if channels in (1, 3) and options.pipeline != "tensor":
        return _by_trying(network, channels, name, options)
    if layer == "Linear" and options.pipeline != "image":
        return InputForm((TensorSpec("input", "float32", (shape[1],)),))
    if layer.startswith("Embedding"):
        return InputForm(
            (TensorSpec("input", options.input_dtype or "int64", (FREE,)),),
            note=f"{name} begins with a table of {shape[0]:,} vectors ({layer}), so it takes rows of whole numbers "
            f"({options.input_dtype or 'int64'}), here of any length: --input-shape says another",
        )
    raise SourceError(
        f"the input of {name} cannot be inferred from its first layer ({layer}): "
        f"say the shape of one item with --input-shape, such as --input-shape {_example(layer, shape)}"
    )


def _example(layer: str, shape: tuple[int, ...]) -> str:
    """A plausible input shape for a network with this first layer."""
    if layer.startswith("Conv") and len(shape) > 2:
        sides = {"Conv1d": ("100",), "Conv2d": ("32", "32")}.get(layer, ("16", "32", "32"))
        return ",".join((str(shape[1]), *sides))
    if layer in ("LSTM", "GRU", "RNN"):
        return f"10,{shape[-1]}"
    return str(shape[-1]) if shape else "4"


def _by_trying(network: nn.Module, channels: int, name: str, options: SourceOptions) -> InputForm:
    """Images, with the side that `--crop` gives, else the first usual one that the network can compute."""
    sides = (options.crop,) if options.crop else _USUAL_SIZES
    fitting = next((side for side in sides if _answers_rows(network, (channels, side, side))), None)
    if fitting is None:
        computed = next(
            (side for side in sides if signature_words.of(network, (channels, side, side)) is not None), None
        )
        tried = f"{options.crop} pixels" if options.crop else "any usual size"
        begins = f"{name} begins with a convolution of {channels} channels"
        if computed is None:
            raise SourceError(
                f"{begins}, but cannot compute images of {tried}: name the shape with --input-shape {channels},H,W"
            )
        shape = (channels, computed, computed)
        if question := dense.ask(network, shape, name):
            raise SourceError(question)
        raise SourceError(
            f"{begins}, but does not turn images of {tried} into rows of numbers: serve it over numbers with "
            f"--input-shape {','.join(map(str, shape))} --pipeline tensor, or {unsupported.AROUND}"
        )
    taken = as_images((channels, fitting, fitting), name, options)
    if options.crop:
        return taken
    note = f"{name} takes images of {channels} channels; {fitting} × {fitting} pixels are assumed: --crop changes that"
    return InputForm(taken.inputs, image=taken.image, note=note)


def _answers_rows(network: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether at least one output of the network is rows of numbers for such images.

    One image is tried, then two. A network that needs two passes here; probing refuses it with its reason.
    """
    for rows in (1, 2):
        with torch.inference_mode(), contextlib.suppress(Exception):  # raising is the answer
            found = single_output.parts(network(torch.zeros(rows, *shape))).values()
            return any(each.dim() < 2 or (each.dim() == 2 and len(each) == rows) for each in found)
    return False


def _first_layer(network: nn.Module) -> tuple[str, tuple[int, ...]]:
    """The type of the first layer with weights, and the shape of its first weight."""
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            return getattr(module, "original_name", type(module).__name__), tuple(parameter.shape)
    return "no layer with weights", ()
