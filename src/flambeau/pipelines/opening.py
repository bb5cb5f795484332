"""The pipeline of a model, by what its manifest says. It reads no file."""

from collections.abc import Sequence

from flambeau import bundle
from flambeau.bundle import Activation
from flambeau.config import Settings
from flambeau.pipelines.base import Pipeline
from flambeau.pipelines.image import ImagePipeline
from flambeau.pipelines.tasks import answer_of
from flambeau.pipelines.tensor import TensorPipeline
from flambeau.types import Label, Task, TensorSpec

SOFTMAX = Activation("softmax")
"""What a classifier was given before bundles said what it is."""


def open_pipeline(
    config: bundle.ImagePipeline | bundle.TensorPipeline,
    *,
    labels: Sequence[Label] | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    task: Task = "classification",
    activation: Activation = SOFTMAX,
    threshold: float | None = None,
    max_pixels: int = Settings.max_image_pixels,
    fast_decode: bool = False,
) -> Pipeline:
    """The two halves of a model's way. Without `labels` the classes are named by their numbers.

    `task` and `activation` are those of the manifest, and count over images only: numbers come out as they are.
    `threshold` as `Options.threshold`; `max_pixels` is the size of the largest image; `fast_decode` as in `decode`.
    """
    if not isinstance(config, bundle.ImagePipeline):
        return TensorPipeline(inputs=inputs, outputs=outputs)
    return ImagePipeline(
        config,
        answer=answer_of(
            task,
            activation=activation,
            output=outputs[0],
            labels=labels,
            threshold=config.threshold if threshold is None else threshold,
        ),
        inputs=inputs,
        outputs=outputs,
        max_pixels=max_pixels,
        fast_decode=fast_decode,
    )
