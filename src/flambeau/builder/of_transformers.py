"""Fill a network of Hugging Face's transformers by the files beside its weights, and describe its input."""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec

from flambeau.architectures import transformers_networks
from flambeau.architectures.transformers_networks import PooledBy
from flambeau.builder import texts
from flambeau.builder.filled import Filled, Tell, customised, dressed
from flambeau.builder.shapes import InputForm
from flambeau.builder.weights import Weights
from flambeau.bundle.storage import Architecture
from flambeau.checkpoints import transformers_config
from flambeau.checkpoints.transformers_config import PROCESSOR, TransformersConfig
from flambeau.errors import SourceError
from flambeau.identify import of_transformers, unsupported
from flambeau.items import FREE
from flambeau.pipelines.text import read_tokenizer
from flambeau.sources.request import IMAGE_OPTIONS, BuildRequest, as_graph, refuse_idle
from flambeau.types import TensorSpec

_OF_IMAGES = ("weights", "weights_key", "samples", *IMAGE_OPTIONS)


def filled(order: BuildRequest, weights: Weights, *, tell: Tell) -> Filled:
    """The network that `config.json` names, with these weights. Raises `SourceError`."""
    config = transformers_config.read(Path(str(order.transformers)))
    try:
        kind = of_transformers.kind_of(config)
        pooling, told = _pooling(config, kind, order)
        network = transformers_networks.filled(config.network, config.settings, weights.tensors, pooling=pooling)
    except SourceError as error:
        others = "; if they are those of another network, name it with --arch"
        raise SourceError(f"{error}{others}{as_graph(Path(str(order.file)))}") from None
    tell(of_transformers.statement(config))
    made = Architecture(
        registry="transformers", name=config.network, args={"config": config.settings, "pooling": pooling}
    )
    if kind == "image":
        return _over_images(network, made, config, order, tell=tell)
    if pooling is not None:
        tell(f"the vector of a text is {texts.POOLED[pooling]}, as {told} says")
    return _over_texts(network, made, config, order, tell=tell)


def _pooling(config: TransformersConfig, kind: str, order: BuildRequest) -> tuple[PooledBy | None, str]:
    """How one vector is made of those of all tokens, and what says so; `None` for a classifier. Raises `SourceError`"""
    if kind != "text":
        return None, ""
    if order.options.pipeline != "tensor" and (needs := of_transformers.missing(config, order.tokenizer is not None)):
        raise SourceError(needs)
    if not of_transformers.makes_vectors(config):
        if order.options.pooling is not None:
            raise SourceError(f"--pooling has no effect on {config.network}, which is one row for a text: leave it out")
        return None, ""
    if order.tokenizer is None:
        raise SourceError(
            f"--pipeline tensor has no effect on {config.network}, which makes vectors of texts: leave it out"
        )
    return texts.pooling_of(order, "last_hidden_state")


def _over_images(
    network: Any, made: Architecture, config: TransformersConfig, order: BuildRequest, *, tell: Tell
) -> Filled:
    options = order.options
    refuse_idle(options, f"{made.name}, a network over images", used=_OF_IMAGES)
    if options.task == "embedding":
        raise SourceError(
            f"--task embedding, but the outputs of {made.name} are classes, and its features are not served: "
            f"{unsupported.AROUND}"
        )
    asked = {key: value for key in ("resize", "crop", "mean", "std") if (value := getattr(options, key)) is not None}
    pipeline = customised(of_transformers.prepared(config, asked=asked), options)
    told = f"as {PROCESSOR} beside the weights says" if config.processor else "as the options say"
    tell(f"images are prepared with {pipeline}, {told}")
    if config.task and options.task is None:
        tell(f"the task is {config.task}, as config.json beside the weights says: --task says another")
    return Filled(
        network=network,
        name=made.name,
        architecture=made,
        pipeline=pipeline,
        inputs=(TensorSpec("input", "float32", (3, pipeline.crop, pipeline.crop)),),
        labels=options.labels,
        classes=config.labels,
        task=config.task,
    )


def _over_texts(
    network: Any, made: Architecture, config: TransformersConfig, order: BuildRequest, *, tell: Tell
) -> Filled:
    words = config.settings.get("vocab_size")
    shared = (FREE,), 1, ("tokens",)  # any length, the same for both
    ids = TensorSpec("input_ids", "int64", *shared, below=words if type(words) is int else 0)
    form = InputForm((ids, TensorSpec("attention_mask", "int64", *shared, known=(1,))))
    form = texts.taken(form, order, made.name, tell=tell, limit=of_transformers.most_tokens(config))
    if form.text is not None:
        _refuse_types(Path(str(order.tokenizer)), form.text.example, made.name)
        form = dataclasses.replace(form, text=msgspec.structs.replace(form.text, pooling=made.args["pooling"]))
    found = dressed(network, form, order, name=made.name, architecture=made, tell=tell, classes=config.labels)
    return dataclasses.replace(found, task=config.task)  # which a tokenizer in another folder does not lie beside


def _refuse_types(tokenizer: Path, text: str, name: str) -> None:
    """Raise `SourceError` if tokens of one text belong to another sentence than the first: the network is not told."""
    if any(read_tokenizer(tokenizer.read_bytes()).encode(text).type_ids):
        raise SourceError(
            f"{tokenizer.name} gives tokens of one text the types of another sentence, and {name} is given none: set "
            f"their type_id to 0 if it was trained without, or {unsupported.AROUND}"
        )
