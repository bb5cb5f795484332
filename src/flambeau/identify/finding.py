"""The findings about weights or a graph: its architecture, its task, and whether it can be served.

It knows architectures and names of operations only, and opens nothing. The build looks at the numbers as well, and has
the last word.
"""

import re
from collections.abc import Mapping

import msgspec

from flambeau.bundle.storage import Architecture, DenseConfig, ImageConfig, PictureConfig
from flambeau.identify import unsupported
from flambeau.identify.row_axes import Size, elsewhere
from flambeau.identify.unsupported import Known


class Fit(msgspec.Struct, frozen=True):
    """An architecture that the weights fill completely.

    `architecture` has everything its constructor needs, the number of classes and a replaced head included. `keys` maps
    each used key of the file to the network's own; `aside` names the file's keys that are for training only.
    `same_weights` are other architectures that these weights fill as well, and `why` says in one sentence why this one
    was chosen. `pipeline` is `None` for a network over numbers. `features`: there is no head, and `classes` counts the
    features. `task`: that of an architecture which has no other. `normalises`: the file's keys for the mean and the
    deviation by which the network's own code normalised images of a scale that does not show.
    """

    architecture: Architecture
    classes: int
    keys: dict[str, str]
    aside: tuple[str, ...] = ()
    same_weights: tuple[str, ...] = ()
    why: str = ""
    pipeline: ImageConfig | PictureConfig | DenseConfig | None = ImageConfig()
    features: bool = False
    task: str = ""
    normalises: tuple[str, ...] = ()


class Near(msgspec.Struct, frozen=True):
    """An architecture that the weights nearly fill, and what differs. `misshaped`: (key, file's shape, network's)."""

    name: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]


class Identified(msgspec.Struct, frozen=True):
    """The fit, or the nearest misses with a sentence of advice. `notes` are for the user in either case.

    `known` is a network of torchvision whose task is not supported yet.
    """

    fit: Fit | None
    near: tuple[Near, ...] = ()
    advice: str = ""
    notes: tuple[str, ...] = ()
    known: Known | None = None


class Published(msgspec.Struct, frozen=True):
    """Official weights: the architecture they belong to, their name, and the transform of their recipe."""

    architecture: str
    name: str
    pipeline: ImageConfig


# The task that a build will assume, in words, and which activation is applied by whom.


ONE_OUTPUT = (
    "it has one output, of which a softmax would always make 1: say --task regression if it is a number, or "
    "--task multi-label if it is the score of one class (binary, trained with BCEWithLogitsLoss)"
)

_OTHERWISE = (
    "say --task multi-label if each class was trained on its own (BCEWithLogitsLoss), --task regression or --task "
    "embedding if they are no classes"
)
_OTHERWISE_OF_KNOWN = (
    "say --task multi-label if each class was trained on its own (BCEWithLogitsLoss), --task regression if they are "
    "numbers, --task embedding for the features before them"
)
_IMAGES = re.compile(r"[^\[]+\[[^,\]]+, [13], [^,\]]+, [^,\]]+\]")
_COLOURS = re.compile(r"[^\[]+ float32\[[^,\]]+, 3, ([^,\]]+), ([^,\]]+)\]")

_MEAN, _STD = (",".join(map(str, each)) for each in (ImageConfig().mean, ImageConfig().std))
NORMALISES_ITSELF = (
    "begins by scaling its images with numbers of its own, as a network does that normalises them itself, and Flambeau "
    "would normalise them before, by ImageNet's mean and std: say --mean 0,0,0 --std 1,1,1 if it takes colours from 0 "
    "to 1, --mean 0,0,0 --std 0.003921569,0.003921569,0.003921569 if from 0 to 255, and "
    f"--mean {_MEAN} --std {_STD} if it was trained with these before it"
)
"""Why a network over coloured images is not served as it is; a sentence that begins with its name."""


def task_of_fit(fit: Fit, *, official: bool) -> str:
    """The task of an architecture with these weights; empty over numbers, and if the user has to name it."""
    if fit.pipeline is None or asks(fit):
        return ""
    if isinstance(fit.pipeline, PictureConfig):
        besides = {"instance-segmentation": " with masks", "keypoint-detection": " with keypoints"}.get(fit.task, "")
        found = f"finds boxes{besides} of {fit.classes} classes, the background included"
        return f"{fit.task}: {fit.architecture.name} {found}"
    if isinstance(fit.pipeline, DenseConfig):
        return (
            f"semantic-segmentation: {fit.architecture.name} says of each pixel which of {fit.classes} classes it has"
        )
    if official:
        return "classification: Flambeau applies a softmax, as these weights were trained"
    if fit.features:
        return f"embedding: without its head it makes {fit.classes} features"
    return f"classification, assumed: Flambeau applies a softmax to its {fit.classes} outputs; {_OTHERWISE_OF_KNOWN}"


def asks(fit: Fit) -> bool:
    """Whether the user has to name the task."""
    return isinstance(fit.pipeline, ImageConfig) and fit.classes == 1


def task_of_graph(facts: Mapping[str, str]) -> str:
    """The task of an ONNX graph, by the facts of its file; empty over numbers, and for several outputs."""
    ends = facts.get("ends in", "")
    if not ends or ": " in ends or not _IMAGES.fullmatch(facts.get("inputs", "")):
        return ""
    if ends in ("a softmax", "a log-softmax"):
        return f"classification: it ends in {ends}, and Flambeau applies none"
    if ends == "a sigmoid":
        return "multi-label: it ends in a sigmoid, and Flambeau applies none"
    if ends == "a linear layer":
        return f"classification, assumed: Flambeau applies a softmax; {_OTHERWISE}"
    return f"it ends in {ends}, which may be features or classes: say --task embedding or --task classification"


def task_of_text(facts: Mapping[str, str], tokenizer: str) -> str:
    """The task of a graph over token ids that has a tokenizer beside it; empty if it takes no token ids."""
    inputs = [(found[1], found[2], found[3]) for found in _END.finditer(facts.get("inputs", ""))]
    if not inputs or any(not dtype.startswith("int") or shape.count(",") != 1 for _, dtype, shape in inputs):
        return ""
    if len(inputs) > 1 and not any("ids" in name for name, _, _ in inputs):
        return ""
    outputs = [found[3] for found in _END.finditer(facts.get("outputs", ""))]
    if any(shape.count(",") == 2 for shape in outputs):
        return f"of a text, made token ids by {tokenizer}: embedding, of a vector for every token"
    return f"of a text, made token ids by {tokenizer}"


# Whether an ONNX graph can be served: it must take tensors of numbers, rows first. The facts come from
# `flambeau.checkpoints`; the build says the same when it opens the graph.


_END = re.compile(r"(.+?) (\w+|\?)\[([^\[\]]*)\](?:, |$)")


class GraphAssessment(msgspec.Struct, frozen=True):
    """`needs` says why a graph cannot be served as it is, and the remedy; `example` is a Python model that does it."""

    needs: str = ""
    example: str = ""


def assess_graph(facts: Mapping[str, str], file: str) -> GraphAssessment:
    """Whether a graph with these inputs can be served. `file` is its path, for the Python model."""
    inputs = [(found[1], found[2], found[3]) for found in _END.finditer(facts.get("inputs", ""))]
    if not inputs:
        return _around("it takes 0 inputs", file, inputs)
    with_rows = 0
    axes = elsewhere({name: [_size(word) for word in text.split(", ")] if text else [] for name, _, text in inputs})
    for name, dtype, text in inputs:
        if dtype not in SERVED_DTYPES:
            return _around(f"its input {name} is {dtype}, and numbers of at most 64 bits are served", file, inputs)
        rows = text.split(", ")[axes.get(name, 0)]
        if not rows and len(inputs) == 1:
            return _around(f"its input {name} does not say its shape, or has none", file, inputs)
        if rows.isdigit() and rows != "1":
            of = f" of {name}" if len(inputs) > 1 else ""
            return _around(f"it takes {rows} rows{of} at a time only", file, inputs)
        with_rows += bool(rows)
    if not with_rows:
        return _around("no input of it has rows, and items are rows", file, inputs)
    outputs = [(found[1], found[2]) for found in _END.finditer(facts.get("outputs", ""))]
    numbers = [name for name, dtype in outputs if dtype in SERVED_DTYPES]
    texts = [name for name, dtype in outputs if dtype == unsupported.TEXT]
    if outputs and not numbers and (texts or len(outputs) > 1):
        why = "none of its outputs is a tensor of numbers: export it with zipmap=False, if scikit-learn made it"
        return _around(why, file, inputs)
    if texts:
        named = " or ".join(f"--output-name {name}" for name in numbers[:_NAMED])
        return GraphAssessment(f"its output {texts[0]} is text, and numbers are served: say {named}")
    square = (found := _COLOURS.fullmatch(facts.get("inputs", ""))) and (found[1] == found[2] or not found[1].isdigit())
    return GraphAssessment(f"it {NORMALISES_ITSELF}" if square and "begins by" in facts else "")


_NAMED = 4


def _size(word: str) -> Size:
    return int(word) if word.isdigit() else None if word == "?" else word


SERVED_DTYPES = frozenset(
    ("float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)
"""The dtypes of inputs that can be served."""


def _around(why: str, file: str, inputs: list[tuple[str, str, str]]) -> GraphAssessment:
    if not inputs or any(dtype not in (*SERVED_DTYPES, unsupported.TEXT) for _, dtype, _ in inputs):
        return GraphAssessment(f"{why}; {unsupported.AROUND}")
    return GraphAssessment(f"{why}; {unsupported.PRINTED}", unsupported.graph_sketch(file, inputs))
