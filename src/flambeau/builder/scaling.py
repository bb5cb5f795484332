"""Ask how images are prepared where a network of the user's own seems to normalise them itself.

Colour images are normalised with ImageNet's mean and std unless the user says otherwise. A network that begins with
`(x - mean) / std` would get them normalised twice, and its answers would be wrong with nothing to show for it.
"""

from collections.abc import Mapping
from pathlib import Path

from flambeau.builder.filled import Filled, Tell
from flambeau.bundle.storage import DenseConfig, ImageConfig
from flambeau.checkpoints import first_operation, prepared
from flambeau.checkpoints.last_operation import Node
from flambeau.errors import SourceError
from flambeau.identify.finding import NORMALISES_ITSELF
from flambeau.items import FREE
from flambeau.settings.source import SourceOptions

_SHOWN = 6
_SIDE = 128  # of an image, where the network takes any


def ask(filled: Filled, options: SourceOptions, graph: Path) -> None:
    """Raise `SourceError` for a network that scales its images, unless the user has said `--mean` or `--std`.

    `graph` is where its ONNX graph is, if it came as one.
    """
    known = filled.architecture is not None and filled.architecture.registry != "code"
    if known or options.mean is not None or options.std is not None or not _normalised(filled.pipeline):
        return
    if not (_of_graph(graph, filled.inputs[0].name) if filled.exports == "ready" else _of_network(filled)):
        return
    raise SourceError(f"{filled.name} {NORMALISES_ITSELF}")


def ask_of_file(
    filled: Filled, names: Mapping[str, tuple[float, ...] | None], options: SourceOptions, tell: Tell
) -> None:
    """Raise `SourceError`, or tell the user, if the file keeps constants by which inputs were prepared beside the
    weights: Flambeau applies none of them.

    Images are asked about, because they would be normalised by others.
    """
    if not names or filled.official or options.mean is not None or options.std is not None:
        return
    pipeline = filled.pipeline
    if isinstance(pipeline, ImageConfig | DenseConfig):
        if question := prepared.question(names, pipeline.mean, pipeline.std):
            raise SourceError(question)
        return
    shown = ", ".join([*names][:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    tell(
        f"the file has {shown} beside the weights, and they are not applied: {filled.name} is given its inputs as they "
        "are sent, so send prepared ones, or give a class whose forward() prepares them"
    )


def _normalised(pipeline: object) -> bool:
    """Whether images are normalised by ImageNet's mean."""
    return isinstance(pipeline, ImageConfig | DenseConfig) and pipeline.mean == ImageConfig().mean


def _of_graph(graph: Path, given: str) -> bool:
    import onnx
    from onnx.inliner import inline_local_functions

    model = onnx.load(graph, load_external_data=False)
    if model.functions:
        model = inline_local_functions(model)
    nodes = (Node(node.op_type, tuple(node.input), tuple(node.output)) for node in model.graph.node)
    return first_operation.scales(nodes, (given,))


def _of_network(filled: Filled) -> bool:
    import torch

    from flambeau.builder import recording

    shape = (_SIDE if size == FREE else size for size in filled.inputs[0].shape)
    return recording.scales(filled.network, torch.zeros(filled.rows or 1, *shape))
