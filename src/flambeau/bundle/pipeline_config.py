"""How an input becomes tensors: the part of a manifest that chooses the pipeline. It prepares nothing itself."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from flambeau.answers.activation import Activation
from flambeau.tasks import NetworkFacts
from flambeau.types import Label, PipelineKind, TensorSpec


class CodeReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A class in the user's own code.

    Either `module` (importable) or `file` (a member of the bundle) is set. `root` is a folder to import sibling modules
    from: set in this machine's cache, absent from a portable bundle.
    """

    name: str
    module: str | None = None
    file: str | None = None
    root: str | None = None


class ImageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="image", tag_field="kind"):
    """How an image becomes a tensor: Resize (shorter side), CenterCrop, scale to [0, 1], normalise.

    `mean` and `std` are per channel on the [0, 1] scale: three for R, G, B, or one for a network that takes grey
    images. Sizes are pixels. `stretch`: both sides become `resize` pixels, whatever the image's proportions.
    `crop_floor`: a crop that would begin at half a pixel begins at the whole one before it, as in transformers;
    torchvision takes the even one.
    """

    resize: int = 255
    crop: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    threshold: float = 0.0
    stretch: bool = False
    crop_floor: bool = False

    def __str__(self) -> str:
        """The transform in torchvision's words."""
        numbers = [", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std)]
        grey = "Grayscale, " if len(self.mean) == 1 else ""
        filtered = "" if self.interpolation == "bilinear" else f", {self.interpolation}"
        size = f"({self.resize}, {self.resize})" if self.stretch else str(self.resize)
        return f"{grey}Resize({size}{filtered}), CenterCrop({self.crop}), Normalize([{numbers[0]}], [{numbers[1]}])"


class PictureConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="picture", tag_field="kind"):
    """How a whole image becomes a tensor for a network that resizes and normalises by itself, such as a detector.

    The image is scaled to [0, 1]: RGB, float32 (1, 3, height, width). One of more than `most_pixels` is reduced by a
    whole factor first, and the boxes are multiplied by it.

    `classes`: the number of classes that the network's labels count. `least`: the score below which it reports nothing.
    `most`: how many boxes it reports at most. `keypoints`: the names of the points that it finds of each object, if
    they are known.
    """

    classes: int
    least: float
    most: int
    threshold: float = 0.5
    most_pixels: int = 12_500_000
    keypoints: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What is done to the image, in words."""
        return "the whole image, scaled to [0, 1]; the network resizes and normalises it"


class TextConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="text", tag_field="kind"):
    """How a text becomes token ids, by the `tokenizer.json` in the bundle.

    `ids`, `mask` and `types` are the names of the network's inputs: the token ids, which of them count, and the number
    of the sentence that each belongs to, which is 0. `most`: how many tokens the network takes; longer texts are cut if
    `truncate`, and else refused. `lower`: texts are written in lower case first. With a mask, they are filled up with
    the token `pad` to a multiple of `block` tokens. `pooling` made one vector of those of all tokens, in the graph
    itself: their mean, or the first. `example`: a text.
    """

    ids: str
    most: int
    mask: str | None = None
    types: str | None = None
    pad: int = 0
    block: int = 1
    truncate: bool = False
    pooling: Literal["mean", "first"] | None = None
    example: str = "An example."
    threshold: float = 0.0
    lower: bool = False

    def __str__(self) -> str:
        """What is done to a text, in words."""
        cut = "longer ones are cut" if self.truncate else "longer ones are refused"
        pooled = {None: "", "mean": "; the mean of its tokens' vectors", "first": "; the vector of its first token"}
        return f"texts of at most {self.most:,} tokens, {cut}{pooled[self.pooling]}"


class MelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a waveform becomes a log-mel spectrogram, (mels, frames): see `flambeau.pipelines.mel`.

    `n_fft`: the length of a window in samples, and `hop` from one to the next. `mels` bands from `low` to `high` Hz,
    which is half the sampling rate if it is `None`. `norm`: whether each band has the same area (`slaney`). `log`: what
    is taken of the power plus `offset`, which is `floor` at least; `db` is ten times `log10`.
    """

    n_fft: Annotated[int, msgspec.Meta(ge=16, le=65_536, multiple_of=2)]
    hop: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    mels: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    low: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    high: Annotated[float, msgspec.Meta(gt=0)] | None = None
    scale: Literal["htk", "slaney"] = "htk"
    norm: Literal["none", "slaney"] = "none"
    log: Literal["ln", "log10", "db", "none"] = "ln"
    offset: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    floor: Annotated[float, msgspec.Meta(gt=0)] = 1e-10

    def __str__(self) -> str:
        """All of it in words."""
        high = "half the rate" if self.high is None else f"{self.high:g} Hz"
        logs = f"{self.log} of the power + {self.offset:g}, which is {self.floor:g} at least"
        return (
            f"{self.mels} mels from {self.low:g} Hz to {high} ({self.scale}, norm {self.norm}), windows of "
            f"{self.n_fft} samples every {self.hop} (Hann, centred, reflected), "
            f"{'no logarithm' if self.log == 'none' else logs}"
        )


class AudioConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="audio", tag_field="kind"):
    """How a sound file becomes a waveform: mixed to one channel, on the scale [-1, 1], at `rate` samples a second.

    Sounds of more than `seconds` are refused. With `mel`, the network is given a spectrogram of the waveform; else what
    it makes of that first is part of the network.
    """

    rate: int
    seconds: float = 30.0
    threshold: float = 0.0
    mel: MelConfig | None = None

    def __str__(self) -> str:
        """What is done to a sound, in words."""
        wave = f"a waveform of one channel at {self.rate:,} Hz, of at most {self.seconds:g} seconds"
        return wave if self.mel is None else f"{wave}, as a spectrogram: {self.mel}"


class DenseConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="dense", tag_field="kind"):
    """How an image becomes a tensor for a network that answers for every pixel, such as a segmenter.

    The image is resized so that its shorter side is `resize` pixels long (unless that is `None`), made smaller if it
    then has more than `most_pixels` and `large` says so, scaled to [0, 1] and normalised by `mean` and `std`, which are
    per channel: three for R, G, B, or one for a network that takes grey images. Its right and lower edges are repeated
    until both sides are multiples of `multiple`. The network's output has `scale[0]` pixels for every `scale[1]` of its
    input.

    `fixed`: the only height and width that the network takes; every image is stretched to them, whatever its shape.

    `large`: what becomes of an image of more than `most_pixels`. Unless it is to `reduce`, it is refused, or cut into
    tiles that overlap by `overlap` pixels, where one fades into the next.

    `classes`: the number of classes that the network's labels count. `levels`: its numbers for black and white, if its
    answer is a picture; `None` if each picture has its own.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resize: int | None = None
    fixed: tuple[int, int] | None = None
    large: Literal["reduce", "refuse", "tile"] = "reduce"
    overlap: int = 0
    levels: tuple[float, float] | None = None
    multiple: int = 1
    scale: tuple[int, int] = (1, 1)
    classes: int = 0
    threshold: float = 0.0
    most_pixels: int = 1_048_576

    def __str__(self) -> str:
        """The transform in words."""
        numbers = [", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std)]
        grey = "Grayscale, " if len(self.mean) == 1 else ""
        if self.fixed:
            return f"{grey}stretched to {self.fixed[1]} × {self.fixed[0]}, Normalize([{numbers[0]}], [{numbers[1]}])"
        size = f"Resize({self.resize})" if self.resize else "images in their own size"
        most = f"{self.most_pixels / 1e6:.1f} megapixels"
        bound = {"reduce": f"at most {most}", "refuse": f"at most {most}", "tile": f"in tiles above {most}"}[self.large]
        return f"{grey}{size}, {bound}, Normalize([{numbers[0]}], [{numbers[1]}])"


class TensorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tensor", tag_field="kind"):
    """The pipeline over numbers: JSON numbers to a tensor and back."""


class PythonConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="python", tag_field="kind"):
    """The pipeline that a Python model defines itself."""

    code: CodeReference


class HandlerConfig(PythonConfig, frozen=True, forbid_unknown_fields=True, tag="handler", tag_field="kind"):
    """A model in another server's Python: a handler of TorchServe, or an inference script of SageMaker.

    `code` is the file of the handler, a member of the bundle, and the name of the function in it, if one is named; or
    the module of a handler that TorchServe brings. The author's other files lie in the same folder of the bundle.
    `manifest` and `yaml` are the archive's, as handlers read them, and `requirements` is the text of its
    requirements.txt. `batch` items at most are given to the code at once,
    which is 1 where the archive says nothing: many handlers look at the first item only. The others are 0 where nothing
    was said: `delay_ms` milliseconds to wait for a batch, `workers` and `most_workers`, `timeout` and `startup_timeout`
    in seconds.
    """

    contract: Literal["torchserve", "sagemaker"]
    manifest: dict[str, Any] = {}
    yaml: dict[str, Any] = {}
    envelope: str = ""
    requirements: str = ""
    batch: int = 1
    delay_ms: int = 0
    workers: int = 0
    most_workers: int = 0
    timeout: int = 0
    startup_timeout: int = 0


TakesImages = ImageConfig | PictureConfig | DenseConfig
"""The pipelines over images."""

HasTask = TakesImages | TextConfig | AudioConfig
"""The pipelines whose answers a task makes: of a picture, a text or a sound."""

PipelineConfig = HasTask | TensorConfig | PythonConfig | HandlerConfig
"""Any pipeline."""


def kind_of(pipeline: PipelineConfig) -> PipelineKind:
    """What a model with this pipeline takes."""
    if isinstance(pipeline, TakesImages):
        return "image"
    if isinstance(pipeline, TextConfig):
        return "text"
    if isinstance(pipeline, AudioConfig):
        return "audio"
    return "tensor" if isinstance(pipeline, TensorConfig) else "python"


def facts_of(
    pipeline: PipelineConfig,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    activation: Activation,
    labels: Sequence[Label] | None = None,
    threshold: float | None = None,
) -> NetworkFacts:
    """What a task knows of the network. `threshold` takes the place of the pipeline's."""
    detector = pipeline if isinstance(pipeline, PictureConfig) else None
    usual = pipeline.threshold if isinstance(pipeline, HasTask) else 0.0
    return NetworkFacts(
        inputs=inputs,
        outputs=outputs,
        activation=activation,
        labels=None if labels is None else tuple(labels),
        threshold=usual if threshold is None else threshold,
        classes=pipeline.classes if isinstance(pipeline, PictureConfig | DenseConfig) else 0,
        least=detector.least if detector else 0.0,
        most=detector.most if detector else 0,
        keypoints=detector.keypoints if detector else (),
        scale=pipeline.scale if isinstance(pipeline, DenseConfig) else (1, 1),
        levels=pipeline.levels if isinstance(pipeline, DenseConfig) else None,
    )
