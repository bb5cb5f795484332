"""The table of all settings: those of the source, and those of the service (`flambeau.settings.service`).

Commands, environment variables, `flambeau.toml` and docs/configuration.md are made from it. It reads none of them.
"""

import functools
import typing
from typing import Any

from flambeau.settings import service
from flambeau.settings.schema import Setting, ValueKind
from flambeau.settings.source import HiddenActivation, OutputActivation
from flambeau.tasks import OF_ANOTHER_INPUT, TASKS

TOKEN, ADMIN_TOKEN = "FLAMBEAU_TOKEN", "FLAMBEAU_ADMIN_TOKEN"
SERVER = "FLAMBEAU_SERVER"

VARIABLES = {
    "FLAMBEAU_CONFIG": "The configuration file, as `--config`.",
    "FLAMBEAU_CACHE": "The folder for built bundles.",
    SERVER: "Of `flambeau models`: the address of the service, as `--server`.",
    TOKEN: "The token that clients must show.",
    ADMIN_TOKEN: "The token for operators.",
}
"""Variables that are read but are no settings. A secret is given in one of these, never in a flag."""

SECRET_VARIABLES = (TOKEN, ADMIN_TOKEN)

PERMISSIONS = ("allow_code", "allow_installs", "insecure_no_auth")
"""Settings that permit something risky: somebody has to give them on purpose."""

_SOURCE, _IMAGES, _TEXTS, _SOUND = "Source", "Images", "Texts", "Sound"


def _row(
    name: str, meaning: str, long: str, *, kind: ValueKind = "text", group: str = _SOURCE, **bounds: Any
) -> Setting:
    default: Any = {} if kind == "object" else None
    return Setting(name=name, kind=kind, default=default, meaning=meaning, long=long, group=group, **bounds)


SOURCE = (
    _row(
        "source",
        "What to serve.",
        "What to serve: a file, a folder, the name of a network, or `file.py:Class`, as [below](#what-the-source-is). "
        "Not set: the built-in model.",
        metavar="SOURCE",
    ),
    _row(
        "arch",
        "Architecture of a weights file: a name, or module:Class.",
        "Architecture of a weights file: a name, or `file.py:Class` or `package.module:Class` with `--allow-code`. "
        "Not set: found from the weights.",
        metavar="NAME",
    ),
    _row(
        "arch_args",
        "Keyword arguments of the architecture.",
        "Keyword arguments of the architecture, as a JSON object; in a configuration file a table.",
        kind="object",
    ),
    _row(
        "weights",
        "Weights, when SOURCE is the name of a network.",
        "Weights file, when SOURCE is the name of a network.",
        metavar="FILE",
    ),
    _row(
        "weights_key",
        "Which of several sets of weights: state_dict, model_ema.",
        "Which of several sets of weights in a checkpoint: `state_dict`, `model_ema`, `checkpoint.model`.",
        metavar="KEY",
    ),
    _row(
        "hidden_activation",
        "Activation between the linear layers of a replaced head; the weights do not show it.",
        "Activation between the linear layers of a replaced head: `relu`, `gelu`, `silu`, `tanh`, `sigmoid` or `none`.",
        kind="choice",
        choices=typing.get_args(HiddenActivation),
        metavar="NAME",
    ),
    _row(
        "labels",
        "Class names: a file, or imagenet, coco or voc.",
        "Class names: `imagenet`, `coco` or `voc`, or a file (JSON, or one name a line). Not set: their own for "
        "official weights, else the names stored with the weights, else class numbers.",
        metavar="FILE",
    ),
    _row(
        "num_classes",
        "Number of classes; checked against the file.",
        "Number of classes. Not needed; if given, it is checked against the weights.",
        kind="whole",
        minimum=1,
    ),
    _row(
        "pipeline",
        "Input of your own network. Default: found from its first layer.",
        "Input of your own network: `image`, `text`, `audio` or `tensor`. Not set: found from its first layer; "
        "`text` if it takes token ids and [a tokenizer](text.md) lies beside it.",
        kind="choice",
        choices=("image", "text", "audio", "tensor"),
    ),
    _row(
        "task",
        "What it does: classification, multi-label, regression, embedding, ... Default: found out.",
        "What the network does with an image, a text or a sound: `classification` (one of several), `multi-label` "
        "(each class on its own), `regression` (numbers), `embedding` (a vector); with an image also "
        "`object-detection` (boxes, of a detector), `instance-segmentation` (with masks), `keypoint-detection` (with "
        "keypoints), `semantic-segmentation` (the class of each pixel) or "
        "`image-to-image` (a picture). `audio-classification` and `text-classification` say the input, too. Not set: "
        "[found out](sources.md#task-and-activation).",
        kind="choice",
        choices=(*(name for name, task in TASKS.items() if task.takes == "image"), *OF_ANOTHER_INPUT),
        metavar="TASK",
    ),
    _row(
        "activation",
        "Activation that Flambeau applies to the network's outputs. Default: found out.",
        "Activation that Flambeau applies to the network's outputs: `softmax`, `sigmoid` or `none`. Not set: "
        "[found out](sources.md#task-and-activation).",
        kind="choice",
        choices=typing.get_args(OutputActivation),
    ),
    _row(
        "normalize",
        "Make the vectors of --task embedding length 1.",
        "Make the vectors of `--task embedding` length 1 (their Euclidean norm), as most vector stores want them.",
        kind="switch",
    ),
    _row(
        "output_name",
        "Which of several outputs is the answer: its name, or its number.",
        "Which of several outputs is the answer: its name in an ONNX graph, or the key or the number in what your own "
        "network returns. With `--task embedding` and a known classifier, the name of its head, whose outputs are then "
        "the answer instead of the features before it.",
        metavar="NAME",
    ),
    _row(
        "input_shape",
        "Shape of one item, for your own network.",
        "Shape of one item, such as `4` or `3,32,32`. A word is "
        "[a free length](sources.md#lengths-that-are-free), as in `steps,8`; "
        "[several inputs](sources.md#several-inputs-and-outputs) are named: `left=4,right=3,8`. "
        "Not set: found from the first layer, or by trying.",
        kind="shape",
    ),
    _row(
        "input_dtype",
        "Numbers that your own network takes. Default: int64 for an embedding table, else float32.",
        "Numbers that your own network takes: `float32`, or whole ones such as token ids, `int64` or `int32`. Not set: "
        "`int64` if it begins with an embedding table, else `float32`.",
        kind="choice",
        choices=("float32", "int64", "int32"),
        metavar="DTYPE",
    ),
    _row(
        "samples",
        "Inputs to keep in the bundle: a service is ready only when it answers them as PyTorch does now.",
        "Folder of [golden samples](operations.md#golden-samples) to keep in the bundle.",
        metavar="DIR",
    ),
    _row(
        "resize",
        "Shorter side of the image, in pixels.",
        "Shorter side that an image is resized to, in pixels.",
        kind="whole",
        group=_IMAGES,
        minimum=1,
    ),
    _row(
        "crop",
        "Side of the square cut from its centre, in pixels.",
        "Side of the square cut from its centre, in pixels.",
        kind="whole",
        group=_IMAGES,
        minimum=1,
    ),
    _row(
        "mean",
        "Mean to subtract, on the scale 0 to 1.",
        "Mean to subtract, for red, green and blue on a scale of 0 to 1: `0.485,0.456,0.406`. One number for a network "
        "of grey images.",
        kind="numbers",
        group=_IMAGES,
    ),
    _row(
        "std",
        "Deviation to divide by.",
        "Deviation to divide by, in the same form: `0.229,0.224,0.225`.",
        kind="numbers",
        group=_IMAGES,
    ),
    _row(
        "tokenizer",
        "Tokenizer that makes token ids of texts. Default: a tokenizer.json beside the model.",
        "Tokenizer that makes token ids of [texts](text.md), a `tokenizer.json`. Not set: one beside the model.",
        group=_TEXTS,
        metavar="FILE",
    ),
    _row(
        "pooling",
        "How the vectors of all tokens become one.",
        "How the vectors of all tokens become that of the text: their `mean`, or the `first`. Not set: as "
        "`1_Pooling/config.json` beside the model says.",
        kind="choice",
        group=_TEXTS,
        choices=("mean", "first"),
    ),
    _row(
        "max_tokens",
        "Most tokens of a text.",
        "Most tokens of a text, those that begin and end it included. Not set: as `sentence_bert_config.json` or the "
        "tokenizer says, else 512.",
        kind="whole",
        group=_TEXTS,
        minimum=1,
    ),
    _row(
        "truncate",
        "Cut texts of more tokens, instead of refusing them.",
        "Cut texts of more tokens than that at their end, instead of refusing them.",
        kind="switch",
        group=_TEXTS,
    ),
    _row(
        "sample_rate",
        "Samples a second that your network over sound takes.",
        "Samples a second that your network over [sound](audio.md) takes, in Hz: files of other rates are resampled.",
        kind="whole",
        group=_SOUND,
        minimum=1000,
        maximum=192_000,
        metavar="HZ",
    ),
    _row(
        "max_seconds",
        "Longest sound, in seconds. Default: 30, or what the network takes.",
        "Longest sound, in seconds. Not set: 30, or the length of the network's input.",
        kind="number",
        group=_SOUND,
        minimum=0.01,
        maximum=600,
        metavar="SECONDS",
    ),
    _row(
        "log_mel",
        "Spectrogram that your network over sound takes, as n_fft=400,hop=160,mels=64.",
        "Spectrogram that your network over [sound](audio.md#spectrograms) takes, such as `n_fft=400,hop=160,mels=64`. "
        "Not set: it takes the waveform.",
        group=_SOUND,
        metavar="K=V,...",
    ),
    _row(
        "levels",
        "Numbers for black and white, of a network that makes pictures.",
        "Numbers that a network which makes pictures gives for black and white, such as `0,1`, `-1,1` or `0,255`; "
        "`own` for each picture's least and largest. Not set: found out, or asked for.",
        group=_IMAGES,
        metavar="B,W",
    ),
)
"""The fields of `flambeau.settings.source.SourceOptions`, except the two that are service settings too."""

GROUPS = (
    _SOURCE,
    _IMAGES,
    _TEXTS,
    _SOUND,
    "Model",
    "Address",
    "Batches and queue",
    "Limits of a request",
    "Workers",
    "Access",
    "Connections",
    "Log and traces",
)
"""The groups in order; any others follow as they come."""


@functools.cache
def rows() -> dict[str, Setting]:
    """Every setting by its name, those of the source first."""
    return {each.name: each for each in (*SOURCE, *service.rows())}


def grouped() -> dict[str, list[Setting]]:
    """All settings by heading, in the order of the headings."""
    headings: dict[str, list[Setting]] = {group: [] for group in GROUPS}
    for each in rows().values():
        headings.setdefault(each.group, []).append(each)
    return headings
