"""A network that is ready to compute, with the pipeline for its input. Imports no torch, because graphs need none."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from flambeau.builder.shapes import InputForm
from flambeau.bundle.storage import Architecture, HasTask, ImageConfig, TensorConfig
from flambeau.checkpoints.last_operation import Ending
from flambeau.errors import SourceError
from flambeau.items import FREE
from flambeau.settings.source import SourceOptions
from flambeau.sources.request import AUDIO_OPTIONS, OPTIONS, TEXT_OPTIONS, BuildRequest, refuse_idle
from flambeau.types import TensorSpec

OF_ANY_NETWORK = (
    "arch", "arch_args", "weights", "weights_key", "pipeline", "input_shape", "input_dtype", "output_name", "samples",
)  # fmt: skip
"""Options that have an effect on every network, whatever its input."""

_OF_TASKS = ("labels", "task", "activation", "normalize", "threshold")

OF_TEXTS = (*OF_ANY_NETWORK, *TEXT_OPTIONS, *_OF_TASKS)
"""Options that have an effect on a network over texts."""

OF_SOUND = (*OF_ANY_NETWORK, *AUDIO_OPTIONS, *_OF_TASKS)
"""Options that have an effect on a network over sound."""

Tell = Callable[[str], None]
Exporter = Literal["dynamo", "torchscript", "ready"]


@dataclass(frozen=True)
class Filled:
    """A network that is ready to compute, and what is known about it.

    `network` takes tensors of rows, one for each of its `inputs` in order, and returns as many rows. With `exports`
    `ready` it is an ONNX graph, in the bundle already, that maps arrays by name to arrays by name instead.

    * `rows`: where set, the only number of rows it takes; `one_row`: why it is given one row at a time
    * `architecture`: `None` for a network that came as a program, which only its export can serve
    * `labels`: where the class names come from; `classes`: class names found beside the weights
    * `official`: the weights are published ones; `without_head`: where the head belongs that the weights lack
    * `exports`: the exporter; `ending`: the last operation, where the graph gave it
    * `outputs`: the names of its outputs; `shapes`: the shape of one row of each, with free axes marked after probing
    * `levels`: what the user said are the numbers for black and white
    * `plain`: it returns one tensor and nothing else
    * `task`: what a file beside the weights says that they were trained for
    * `tokenizer`: the file that makes token ids of texts, for a network over texts
    """

    network: Callable[[Any], Any]
    name: str
    architecture: Architecture | None
    pipeline: HasTask | TensorConfig
    inputs: tuple[TensorSpec, ...]
    labels: str | None = None
    classes: tuple[str, ...] | None = None
    rows: int | None = None
    exports: Exporter = "dynamo"
    outputs: tuple[str, ...] = ("output",)
    shapes: tuple[tuple[int, ...], ...] = ((),)
    plain: bool = True
    official: bool = False
    without_head: str | None = None
    ending: Ending | None = None
    one_row: str | None = None
    tokenizer: Path | None = None
    levels: str | None = None
    task: str | None = None

    @property
    def free(self) -> bool:
        """Whether any axis other than the rows' may have any length."""
        return any(FREE in spec.shape for spec in self.inputs)


def dressed(
    network: Callable[[Any], Any],
    taken: InputForm,
    order: BuildRequest,
    *,
    name: str,
    architecture: Architecture | None,
    tell: Tell,
    classes: tuple[str, ...] | None = None,
    exports: Exporter = "dynamo",
    outputs: tuple[str, ...] = ("output",),
    ending: Ending | None = None,
) -> Filled:
    """A network outside the registries, with the pipeline for its input `taken`."""
    options = order.options
    if taken.note:
        tell(taken.note)
    pipeline: HasTask | TensorConfig = TensorConfig()
    if taken.image is not None:
        others = tuple(each for each in OPTIONS if each not in (*TEXT_OPTIONS, *AUDIO_OPTIONS, "input_dtype"))
        refuse_idle(options, f"{name}, a network over images", used=others)
        pipeline = customised(taken.image, options)
        tell(f"images are prepared with {pipeline}: --resize, --crop, --mean and --std change that")
    elif taken.text is not None:
        pipeline = taken.text
        refuse_idle(options, f"{name}, a network over texts", used=OF_TEXTS)
    elif taken.audio is not None:
        pipeline = taken.audio
        refuse_idle(options, f"{name}, a network over sound", used=OF_SOUND)
    else:
        refuse_idle(options, f"{name}, a network over numbers", used=OF_ANY_NETWORK)
    return Filled(
        network=network,
        name=name,
        architecture=architecture,
        pipeline=pipeline,
        inputs=taken.inputs,
        labels=options.labels,
        classes=classes or taken.classes,
        rows=taken.rows,
        exports=exports,
        outputs=outputs,
        ending=ending,
        one_row=taken.one_row,
        tokenizer=Path(str(order.tokenizer)) if taken.text is not None else None,
    )


def customised(pipeline: ImageConfig, options: SourceOptions) -> ImageConfig:
    """The pipeline with the user's options applied. Raises `SourceError` for numbers that do not fit its channels."""
    asked = {key: getattr(options, key) for key in ("resize", "crop", "mean", "std", "threshold")}
    for key in ("mean", "std"):
        if asked[key] is not None and len(asked[key]) != len(pipeline.mean):
            raise SourceError(
                f"--{key} has {len(asked[key])} numbers, but the network takes {len(pipeline.mean)} channels"
            )
    if asked["crop"] is not None and asked["resize"] is None and pipeline.resize < asked["crop"]:
        asked["resize"] = asked["crop"]
    if asked["resize"] is not None:
        pipeline = msgspec.structs.replace(pipeline, stretch=False)  # --resize is the shorter side
    return msgspec.structs.replace(pipeline, **{key: value for key, value in asked.items() if value is not None})
