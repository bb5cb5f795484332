"""The protocol of pipelines, and the choice of a model's pipeline from its manifest. No file is read here."""

from collections.abc import Sequence
from typing import Protocol

from flambeau.answers.activation import Activation
from flambeau.bundle import storage
from flambeau.bundle.pipeline_config import facts_of
from flambeau.pipelines.audio import AudioPipeline
from flambeau.pipelines.dense import DensePipeline
from flambeau.pipelines.image import ImagePipeline
from flambeau.pipelines.picture import PicturePipeline
from flambeau.pipelines.tensor import TensorPipeline
from flambeau.pipelines.text import TextPipeline
from flambeau.settings.service import Settings
from flambeau.tasks import TASKS, TaskName
from flambeau.types import Answer, Item, Label, Payload, Tensors, TensorSpec


class Pipeline(Protocol):
    """Preprocess and postprocess of a model: payload to tensors, rows of the outputs to answer. Stateless."""

    def preprocess(self, payload: Payload) -> Tensors:
        """Make one item's tensors, shape (rows, ...). Raises `InvalidInput` if the payload is at fault."""
        ...

    def postprocess(self, outputs: Tensors, item: Item, /) -> Answer:
        """Make the item's answer from its rows of the model's outputs, as its task does."""
        ...

    def example(self) -> Payload:
        """A payload that the model can answer, for warm-up."""
        ...


SOFTMAX = Activation("softmax")
"""The activation of a classifier in bundles from before the manifest named one."""


def open_pipeline(
    config: storage.HasTask | storage.TensorConfig,
    *,
    labels: Sequence[Label] | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    task: TaskName = "classification",
    activation: Activation = SOFTMAX,
    threshold: float | None = None,
    max_pixels: int = Settings.max_image_pixels,
    fast_decode: bool = False,
    tokenizer: bytes = b"",
) -> Pipeline:
    """The pipeline of a model. Without `labels`, classes are named by their numbers.

    `task` and `activation` are the manifest's, and apply to models of images, texts and sounds only: a network over
    numbers has its outputs unchanged. `threshold` as in `Options.threshold`; `max_pixels` is the size of the largest
    image; `fast_decode` lets `decode` read JPEGs at a reduced size. `tokenizer` is the text of a `tokenizer.json`, for
    texts.
    """
    network = facts_of(
        config, inputs=inputs, outputs=outputs, activation=activation, labels=labels, threshold=threshold
    )
    if isinstance(config, storage.TensorConfig):
        return TensorPipeline(postprocess=TASKS["tensor"].postprocess(network), inputs=inputs)
    postprocess = TASKS[task].postprocess(network)
    if isinstance(config, storage.TextConfig):
        return TextPipeline(config, postprocess=postprocess, inputs=inputs, tokenizer=tokenizer)
    if isinstance(config, storage.AudioConfig):
        return AudioPipeline(config, postprocess=postprocess, inputs=inputs)
    if isinstance(config, storage.PictureConfig):
        return PicturePipeline(config, postprocess=postprocess, inputs=inputs, max_pixels=max_pixels)
    if isinstance(config, storage.DenseConfig):
        return DensePipeline(config, postprocess=postprocess, inputs=inputs, max_pixels=max_pixels)
    return ImagePipeline(config, postprocess=postprocess, inputs=inputs, max_pixels=max_pixels, fast_decode=fast_decode)


def pipeline_of(
    bundle: storage.Bundle,
    *,
    threshold: float | None = None,
    max_pixels: int = Settings.max_image_pixels,
    fast_decode: bool = False,
) -> Pipeline:
    """The pipeline of a bundle with a network. The options are those of `open_pipeline`."""
    manifest = bundle.manifest
    assert not isinstance(manifest.pipeline, storage.PythonConfig | storage.HandlerConfig)  # own code has none
    return open_pipeline(
        manifest.pipeline,
        labels=bundle.labels(),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        task=manifest.what_it_does,
        activation=manifest.activated_by,
        threshold=threshold,
        max_pixels=max_pixels,
        fast_decode=fast_decode,
        tokenizer=bundle.tokenizer(),
    )
