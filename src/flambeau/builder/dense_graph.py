"""ONNX graphs that answer for every pixel: classes or a picture, as the user says (`--task`).

A graph with free sides is tried with images of unlike sizes, as a network in PyTorch is. One that was exported for one
height and width is given every image at that size.
"""

import contextlib
from collections.abc import Callable

import numpy as np
import onnx

from flambeau.builder import dense_recipe
from flambeau.builder.dense_recipe import ONE_ROW, SEGMENTS
from flambeau.builder.filled import Filled, Tell
from flambeau.checkpoints.last_operation import Ending
from flambeau.errors import SourceError
from flambeau.items import FREE
from flambeau.settings.source import SourceOptions
from flambeau.sources.request import BuildRequest, refuse_idle
from flambeau.types import Tensors, TensorSpec

_USED = ("pipeline", "input_shape", "output_name", "samples", "task", "mean", "std")


def filled(
    order: BuildRequest,
    network: Callable[[Tensors], Tensors],
    spec: TensorSpec,
    answers: tuple[str, ...],
    sides: tuple[int, ...],
    *,
    tell: Tell,
    ending: Ending,
) -> Filled:
    """The graph with its preparation. `spec` is its only input; `sides` the height and width that it says that has.

    Raises `SourceError` for one whose answer is no map of an image's pixels.
    """
    options, name = order.options, order.name
    fixed = _fixed(sides, options, name)
    segments = options.task == SEGMENTS
    used = (*_USED, *(("activation", "labels", "threshold") if segments else ("levels",)))
    refuse_idle(options, f"{name} with --task {options.task}", used=used if fixed else (*used, "resize"))
    channels = spec.shape[0]

    def answered(tried: tuple[int, int]) -> tuple[int, ...] | None:
        with contextlib.suppress(Exception):  # onnxruntime has its own exception types, and raising is an answer
            return tuple(network({spec.name: np.zeros((1, channels, *tried), np.float32)})[answers[0]].shape)
        return None

    if fixed is None:
        found = dense_recipe.sizes(answered, name)
    else:
        found = dense_recipe.sizes_of_one(answered(fixed) or (), fixed, name)
        tell(
            f"{name} takes images of {fixed[1]} × {fixed[0]} pixels and no others: every image is stretched to that, "
            "and its answer back; export it with free sides to keep their shape"
        )
    shape = (channels, *(fixed or (FREE, FREE)))
    return Filled(
        network=network,
        name=name,
        architecture=None,
        pipeline=dense_recipe.pipeline_of(options, channels, found, name, tell=tell),
        inputs=(TensorSpec(spec.name, spec.dtype, shape),),
        labels=options.labels,
        rows=1,
        exports="ready",
        outputs=answers,
        one_row=ONE_ROW,
        ending=ending,
        levels=None if segments else options.levels,
    )


def _fixed(sides: tuple[int, ...], options: SourceOptions, name: str) -> tuple[int, int] | None:
    """The only height and width that the graph takes; `None` if it takes any. Raises `SourceError`."""
    if options.input_shape is not None and not isinstance(options.input_shape, dict):
        sides = tuple(int(side) for side in options.input_shape[-2:])
    if FREE not in sides:
        return sides[0], sides[1]
    if set(sides) != {FREE}:
        raise SourceError(
            f"one side of the images that {name} takes is {max(sides)} pixels long, and the other is free: export it "
            "with both free or none, or say --input-shape"
        )
    return None


def sides_of(model: onnx.ModelProto) -> tuple[int, ...]:
    """The height and width that the graph says its only input has; `FREE` for one of any length."""
    weights = {each.name for each in model.graph.initializer}
    [value] = [each for each in model.graph.input if each.name not in weights]
    return tuple(
        size.dim_value if size.HasField("dim_value") else FREE for size in value.type.tensor_type.shape.dim[2:]
    )
