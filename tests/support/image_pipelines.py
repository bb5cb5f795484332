"""The pipeline of a classifier of images, with a network that nobody computes."""

from flambeau.bundle import storage
from flambeau.bundle.storage import Activation
from flambeau.pipelines.image import ImagePipeline
from flambeau.tasks import TASKS, NetworkFacts
from flambeau.types import Label, TensorSpec


def pipeline(
    *, max_pixels: int = 50_000_000, classes: int = 3, fast_decode: bool = False, **config: object
) -> ImagePipeline:
    """`config`: fields of `storage.ImageConfig`."""
    network = NetworkFacts(
        inputs=[TensorSpec("input", "float32", (3, 224, 224))],
        outputs=[TensorSpec("output", "float32", (classes,))],
        activation=Activation("softmax"),
        labels=tuple(Label(f"n{index}", f"class{index}") for index in range(classes)),
        threshold=storage.ImageConfig(**config).threshold,  # type: ignore[arg-type]
    )
    return ImagePipeline(
        storage.ImageConfig(**config),  # type: ignore[arg-type]
        postprocess=TASKS["classification"].postprocess(network),
        inputs=network.inputs,
        max_pixels=max_pixels,
        fast_decode=fast_decode,
    )
