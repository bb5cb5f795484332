"""The pipeline of a model, by what its manifest says. It reads no file."""

from collections.abc import Sequence

from flambeau import bundle
from flambeau.config import Settings
from flambeau.pipelines.base import Pipeline
from flambeau.pipelines.image import ImagePipeline
from flambeau.pipelines.tensor import TensorPipeline
from flambeau.types import Label, TensorSpec


def open_pipeline(
    config: bundle.ImagePipeline | bundle.TensorPipeline,
    *,
    labels: Sequence[Label] | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    threshold: float | None = None,
    max_pixels: int = Settings.max_image_pixels,
    fast_decode: bool = False,
) -> Pipeline:
    """The two halves of a model's way. Without `labels` the classes are named by their numbers.

    `threshold` as `Options.threshold`; `max_pixels` is the size of the largest image; `fast_decode` as in `decode`.
    """
    if not isinstance(config, bundle.ImagePipeline):
        return TensorPipeline(inputs=inputs, outputs=outputs)
    return ImagePipeline(
        config,
        labels=labels or [Label(str(index), str(index)) for index in range(outputs[0].shape[0])],
        inputs=inputs,
        outputs=outputs,
        threshold=threshold,
        max_pixels=max_pixels,
        fast_decode=fast_decode,
    )
