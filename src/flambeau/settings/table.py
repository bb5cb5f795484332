"""The table of all that can be set: what the source is, and how the service runs (`flambeau.settings.service`).

Commands, the environment, `flambeau.toml` and docs/configuration.md are made from it. It reads none of them.
"""

import functools
import typing
from typing import Any

from flambeau.settings import service
from flambeau.settings.schema import Setting, ValueKind
from flambeau.settings.source import HiddenActivation, OutputActivation
from flambeau.tasks import TASKS

TOKEN, ADMIN_TOKEN = "FLAMBEAU_TOKEN", "FLAMBEAU_ADMIN_TOKEN"

VARIABLES = {
    "FLAMBEAU_CONFIG": "The configuration file, as `--config`.",
    "FLAMBEAU_CACHE": "The folder that built bundles are kept in.",
    TOKEN: "The token that clients must show.",
    ADMIN_TOKEN: "The token for what operators do.",
}
"""Variables that are read and are no settings. What is secret stands here, and never in a flag."""

SECRET_VARIABLES = (TOKEN, ADMIN_TOKEN)

PERMISSIONS = ("allow_code", "insecure_no_auth")
"""Settings that let something happen which is refused otherwise: somebody has to say so."""

_SOURCE, _IMAGES = "Source", "Images"


def _row(
    name: str, meaning: str, long: str, *, kind: ValueKind = "text", group: str = _SOURCE, **bounds: Any
) -> Setting:
    default: Any = {} if kind == "object" else None
    return Setting(name=name, kind=kind, default=default, meaning=meaning, long=long, group=group, **bounds)


SOURCE = (
    _row(
        "source",
        "What is served.",
        "What is served: a file, a folder, the name of a network, or `file.py:Class`, as [below](#what-the-source-is). "
        "Not set: the built-in model.",
        metavar="SOURCE",
    ),
    _row(
        "arch",
        "Network of a weights file: a name, or module:Class.",
        "Network of a weights file: a name, or `file.py:Class` or `package.module:Class` with `--allow-code`. "
        "Not set: it is found.",
        metavar="NAME",
    ),
    _row(
        "arch_args",
        "Its keyword arguments.",
        "Keyword arguments of the network, as a JSON object; in a configuration file a table.",
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
        "What stands between the linear layers of a replaced head; weights do not show it.",
        "What stands between the linear layers of a replaced head: `relu`, `gelu`, `silu`, `tanh`, `sigmoid` or "
        "`none`.",
        kind="choice",
        choices=typing.get_args(HiddenActivation),
        metavar="NAME",
    ),
    _row(
        "labels",
        "Class names: a file, or imagenet.",
        "Class names: `imagenet`, or a file (JSON, or one name a line). Not set: official weights have ImageNet's, "
        "names that lie beside the weights are taken, others answer class numbers.",
        metavar="FILE",
    ),
    _row(
        "num_classes",
        "Number of classes; checked against the file.",
        "Number of classes. Not needed; where given, it is checked against the weights.",
        kind="whole",
        minimum=1,
    ),
    _row(
        "pipeline",
        "What an own network takes; else found out.",
        "What an own network takes: `image` or `tensor`. Not set: told from its first layer.",
        kind="choice",
        choices=("image", "tensor"),
    ),
    _row(
        "task",
        "What the network does with an image; else found out.",
        "What the network does with an image: `classification` (one of several), `multi-label` (each class on its "
        "own), `regression` (numbers) or `embedding` (a vector). Not set: [found out](sources.md#task-and-activation).",
        kind="choice",
        choices=tuple(name for name, task in TASKS.items() if task.takes == "image"),
    ),
    _row(
        "activation",
        "What makes the network's last numbers into the answer; else found out.",
        "What Flambeau applies to the network's last numbers: `softmax`, `sigmoid` or `none`. Not set: "
        "[found out](sources.md#task-and-activation).",
        kind="choice",
        choices=typing.get_args(OutputActivation),
    ),
    _row(
        "output_name",
        "Which of several outputs is the answer: its name, or its number.",
        "Which of several outputs is the answer: its name in an ONNX graph, or the key or the number in what an own "
        "network returns.",
        metavar="NAME",
    ),
    _row(
        "input_shape",
        "Shape of one item, for own networks.",
        "Shape of one item, such as `4` or `3,32,32`. A word is "
        "[a length that is free](sources.md#lengths-that-are-free), as in `steps,8`; of "
        "[several inputs](sources.md#several-inputs-and-outputs) each is named: `left=4,right=3,8`. "
        "Not set: told from the first layer, or found by trying.",
        kind="shape",
    ),
    _row(
        "samples",
        "Inputs to keep in the bundle: no service is ready before it answers them as PyTorch does now.",
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
)
"""What `flambeau.settings.source.SourceOptions` holds, but for the two that are settings of a service too."""

GROUPS = (
    _SOURCE,
    _IMAGES,
    "Model",
    "Address",
    "Batches and queue",
    "Limits of a request",
    "Workers",
    "Access",
    "Connections",
    "Log and traces",
)
"""The order of the groups; others follow as they come."""


@functools.cache
def rows() -> dict[str, Setting]:
    """Every setting by its name, those of the source first."""
    return {each.name: each for each in (*SOURCE, *service.rows())}


def grouped() -> dict[str, list[Setting]]:
    """All settings by the heading it stands under, in the order of the headings."""
    headings: dict[str, list[Setting]] = {group: [] for group in GROUPS}
    for each in rows().values():
        headings.setdefault(each.group, []).append(each)
    return headings
