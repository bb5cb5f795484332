"""Networks that answer for every pixel, run over pictures of unlike sizes, each alone: what they answer, and in which
numbers.

`flambeau.builder.eager` is the part that needs PyTorch; graphs are probed without it.
"""

import io
from dataclasses import replace
from importlib import resources

import msgspec
import numpy as np
from PIL import Image

from flambeau.builder import dense_task, probing, tile_trial
from flambeau.builder.dense_recipe import ONE_ROW
from flambeau.builder.filled import Filled, Tell
from flambeau.builder.probing import Probed
from flambeau.bundle.storage import DenseConfig
from flambeau.checkpoints.last_operation import UNKNOWN, Ending
from flambeau.errors import SourceError
from flambeau.items import FREE
from flambeau.pipelines import dense
from flambeau.types import Tensors, TensorSpec

_PHOTOGRAPHS = (("chelsea.jpg", (161, 127)), ("coffee.jpg", (95, 144)))


def probe(filled: Filled, asked: str | None, *, tell: Tell) -> Probed:
    """Run the network over pictures of unlike sizes, each alone. `asked` is the value of `--output-name`.

    Raises `SourceError` for one that cannot compute them, whose answers change from run to run, or are not finite.
    """
    spec = filled.inputs[0]
    pictures = [{spec.name: each} for each in _pictures(filled)]
    filled, planes, ending = _looked_at(filled, pictures[0], asked, tell=tell)
    [name] = filled.outputs
    answers = [probing.compute(filled, picture) for picture in pictures]
    again = probing.compute(filled, pictures[0])
    if not np.array_equal(answers[0][name], again[name], equal_nan=True) and not np.allclose(
        answers[0][name], again[name], rtol=0, atol=1e-5 * float(np.abs(again[name]).max())
    ):
        raise SourceError(
            f"{filled.name} is random: it answers one picture with numbers that differ from run to run: call dropout "
            "as F.dropout(x, training=self.training), and add no noise when it serves"
        )
    for each in answers:
        if each[name].dtype != np.float32 or not np.isfinite(each[name]).all():
            told = "numbers that are not finite" if each[name].dtype == np.float32 else str(each[name].dtype)
            raise SourceError(f"{filled.name} answers a photograph with {told}: check its weights and its last layer")
    assert isinstance(filled.pipeline, DenseConfig)  # the caller checked
    if not filled.pipeline.classes:
        filled = _as_picture(filled, ending.text, [each[name] for each in answers], tell)
    outputs = (TensorSpec(name, "float32", (planes, FREE, FREE)),)
    longer = tuple(zip(pictures[1:], answers[1:], strict=True))
    return Probed(filled, outputs, pictures[0], answers[0], ending, one_row=ONE_ROW, longer=longer)


def _looked_at(filled: Filled, picture: Tensors, asked: str | None, *, tell: Tell) -> tuple[Filled, int, Ending]:
    """The network with the name and shape of its answer, how many planes that has, and its last operation."""
    if filled.exports == "ready":
        [name] = filled.outputs
        shape = tuple(filled.network(picture)[name].shape)
        plain, ending = True, filled.ending or UNKNOWN
    else:
        from flambeau.builder import eager

        seen = eager.look(filled, picture, asked, tell=tell)
        name = filled.outputs[0] if seen.bare else seen.outputs[0]
        shape, plain, ending = seen.shapes[0], seen.bare, seen.ending
    if len(shape) != 4:
        raise SourceError(f"{filled.name} answers a picture with {list(shape)}, and a map of its pixels is needed")
    return replace(filled, outputs=(name,), shapes=((shape[1], FREE, FREE),), plain=plain), shape[1], ending


def _as_picture(filled: Filled, ending: str, answers: list[np.ndarray], tell: Tell) -> Filled:
    """The network with its numbers for black and white, and with what becomes of large pictures."""
    config = filled.pipeline
    assert isinstance(config, DenseConfig)  # the caller checked
    levels, how = dense_task.picture(filled, answers, ending)
    tell(
        f"each picture's least number is black and its largest white ({how})"
        if levels is None
        else f"{levels[0]:g} is black and {levels[1]:g} is white ({how}): --levels says otherwise"
    )
    if config.fixed is not None:
        return replace(filled, pipeline=msgspec.structs.replace(config, levels=levels))
    overlap = tile_trial.overlap(
        _photograph(filled, "chelsea.jpg", (tile_trial.WHOLE, tile_trial.WHOLE)),
        lambda inputs: probing.compute(filled, inputs),
        (filled.inputs[0].name, filled.outputs[0]),
        scale=config.scale[0] / config.scale[1],
        multiple=config.multiple,
        span=None if levels is None else levels[1] - levels[0],
    )
    most = f"{config.most_pixels / 1e6:.1f} megapixels"
    tell(
        f"pictures of more than {most} are cut into tiles that overlap by {overlap} pixels"
        if overlap
        else f"pictures of more than {most} are refused: its answer to a pixel depends on pixels far from it, so that "
        "tiles would show seams"
    )
    pipeline = msgspec.structs.replace(config, levels=levels, large="tile" if overlap else "refuse", overlap=overlap)
    return replace(filled, pipeline=pipeline)


def _pictures(filled: Filled) -> list[np.ndarray]:
    """Two photographs of unlike sizes as the network takes them."""
    return [_photograph(filled, *each) for each in _PHOTOGRAPHS]


def _photograph(filled: Filled, name: str, size: tuple[int, int]) -> np.ndarray:
    """One of the page's photographs, resized, as the network takes it."""
    assert isinstance(filled.pipeline, DenseConfig)  # the caller checked
    config = msgspec.structs.replace(filled.pipeline, resize=None)
    file = resources.files("flambeau").joinpath("ui", "static", "samples", name)
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        return dense.prepared(image.convert("RGB").resize(size), config)
