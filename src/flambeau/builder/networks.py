"""Make a computing network from weights: find its architecture (or use the named one), fill it, describe its input."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import torch
from torch import nn

from flambeau import architectures, identify
from flambeau.builder import (
    dense,
    dense_recipe,
    inputs,
    of_transformers,
    own_weights,
    parts,
    sounds,
    stated_args,
    texts,
)
from flambeau.builder.filled import OF_ANY_NETWORK, Filled, Tell, customised, dressed
from flambeau.builder.labels import IMAGENET
from flambeau.builder.official_names import compare_name
from flambeau.builder.weights import Weights
from flambeau.bundle.storage import Architecture, DenseConfig, ImageConfig, PictureConfig, TensorConfig
from flambeau.checkpoints import stated, timm_config
from flambeau.checkpoints.report import TensorInfo
from flambeau.checkpoints.timm_config import TimmConfig
from flambeau.errors import SourceError
from flambeau.identify import of_timm, segmentation_models, unsupported
from flambeau.identify.finding import Fit, Identified
from flambeau.settings.source import SourceOptions
from flambeau.sources.request import BuildRequest, as_graph, refuse_idle
from flambeau.types import TensorSpec

DEFAULT_THRESHOLD = 0.2
"""The embedded model's probability below which it recognises nothing: it is never this sure of what it was not trained
on."""


def filled(order: BuildRequest, weights: Weights, *, tell: Tell) -> Filled:
    """The network that the weights belong to, by the user's class, the files beside them, or their names and shapes."""
    if order.code is not None:
        return own(order, weights, tell=tell)
    if order.transformers is not None:
        return of_transformers.filled(order, weights, tell=tell)
    return registered(order, weights, tell=tell)


def registered(order: BuildRequest, weights: Weights, *, tell: Tell) -> Filled:
    """The network that the weights belong to: the one that `--arch` names, or found by tensor names and shapes.

    Raises `SourceError` with the nearest architectures when none fits.
    """
    options = order.options
    config = timm_config.read(Path(order.timm)) if order.timm else None
    finding = identify.detect(
        weights.entry.tensors,
        wanted=order.architecture,
        args=options.arch_args,
        hidden_activation=options.hidden_activation,
        features=options.task == "embedding" and options.output_name is None,
        said=stated.networks(weights.stated),
        config=config,
    )
    fit = finding.fit
    if fit is None:
        raise SourceError(_nothing_fits(order, finding))
    for note in (fit.why, *finding.notes):
        if note:
            tell(note)
    if options.output_name is not None:
        _refuse_another_output(fit, options.output_name)
    if fit.features and options.num_classes is not None:
        raise SourceError(f"--num-classes has no effect on {fit.architecture.name} without its head: leave it out")
    if options.num_classes not in (None, fit.classes):
        raise SourceError(
            f"--num-classes {options.num_classes}, but the last layer of {fit.architecture.name} in the file has "
            f"{fit.classes}: leave it out, or name another file"
        )
    network = architectures.create(fit.architecture)
    whole = parts.multiplied_out(weights.tensors)
    tensors = {ours: whole[theirs] for theirs, ours in fit.keys.items()}
    if isinstance(fit.pipeline, PictureConfig):
        from flambeau.builder import detectors  # it imports torchvision, which most builds do without

        return detectors.filled(network, tensors, fit, order, weights, tell=tell)
    if fit.architecture.registry == segmentation_models.LIBRARY:
        return dense.of_library(network, tensors, fit, order, weights, tell=tell)
    if isinstance(fit.pipeline, DenseConfig):
        return dense.filled(network, tensors, fit, order, weights, tell=tell)
    try:
        architectures.load_weights(network, tensors, name=fit.architecture.name)
    except SourceError as error:
        if config is None:
            raise
        raise SourceError(
            f"{of_timm.statement(config)}, but {error}: correct what it says, or say --arch and --arch-args"
        ) from None
    _tell_of_precision(network, tensors, name=fit.architecture.name, tell=tell)
    if fit.pipeline is None:
        return _over_numbers(network, fit.architecture, options)
    return _over_images(network, fit, order, weights, config=config, tell=tell)


def _refuse_another_output(fit: Fit, named: str) -> None:
    """Raise `SourceError` unless `--output-name` names the head, whose outputs are the answer then."""
    heads = identify.heads_of(fit)
    if named in heads:
        return
    raise SourceError(
        f"--output-name {named} is not a head of {fit.architecture.name}"
        + (f": its head is {heads[0]}" if heads else ", which has one output")
        + "; leave it out for the features before the head"
    )


def pretrained(
    architecture: Architecture,
    state: Mapping[str, torch.Tensor],
    pipeline: ImageConfig,
    options: SourceOptions,
    *,
    tell: Tell,
) -> Filled:
    """The network of that architecture, with the weights its library fetched and the transform published with them."""
    without_head = None
    if options.task == "embedding":
        found = identify.detect(
            {key: TensorInfo(str(each.dtype).removeprefix("torch."), tuple(each.shape)) for key, each in state.items()},
            wanted=architecture.name,
            args=architecture.args,
            features=options.output_name is None,
        )
        fit = found.fit
        if fit is None:
            raise SourceError(f"{architecture.name}: {found.advice}")
        if options.output_name is not None:
            _refuse_another_output(fit, options.output_name)
        for note in found.notes:
            tell(note)
        architecture, without_head = fit.architecture, _head_taken_off(fit)
        state = {ours: state[theirs] for theirs, ours in fit.keys.items()}
    network = architectures.create(architecture)
    architectures.load_weights(network, state, name=architecture.name)
    pipeline = customised(pipeline, options)
    return Filled(
        network=network,
        name=architecture.name,
        architecture=architecture,
        pipeline=pipeline,
        inputs=(TensorSpec("input", "float32", (3, pipeline.crop, pipeline.crop)),),
        labels=options.labels or (None if without_head else IMAGENET),
        official=True,
        without_head=without_head,
    )


def _over_numbers(network: nn.Module, architecture: Architecture, options: SourceOptions) -> Filled:
    refuse_idle(options, f"{architecture.name}, a network over numbers", used=OF_ANY_NETWORK)
    features = next(layer["sizes"][0] for layer in architecture.args["layers"] if layer["sizes"])
    return Filled(
        network=network,
        name=architecture.name,
        architecture=architecture,
        pipeline=TensorConfig(),
        inputs=(TensorSpec("input", "float32", (features,)),),
    )


def _over_images(
    network: nn.Module, fit: Fit, order: BuildRequest, weights: Weights, *, config: TimmConfig | None, tell: Tell
) -> Filled:
    options = order.options
    published = identify.published(weights.sha256, architecture=fit.architecture.name)
    compare_name(str(order.file or ""), weights.sha256, tell=tell)
    if published:
        recipe = "" if config else ": prepared as in their recipe"
        tell(f"these are the official weights {published.architecture} {published.name}{recipe}")
    pipeline = published.pipeline if published else fit.pipeline
    classes = weights.classes
    if config is not None:
        pipeline = of_timm.prepared(config, resize=options.resize, crop=options.crop)
        classes, note = of_timm.names(config, fit, classes)
        tell(f"images are prepared with {pipeline}, as {timm_config.NAME} beside the weights says")
        if note and options.labels is None:
            tell(note)
    elif order.file and order.kind == "checkpoint" and (note := timm_config.passed_over(Path(order.file))):
        tell(note)
    assert isinstance(pipeline, ImageConfig)  # the caller checked
    threshold = DEFAULT_THRESHOLD if order.kind == "default" else pipeline.threshold
    pipeline = customised(msgspec.structs.replace(pipeline, threshold=threshold), options)
    return Filled(
        network=network,
        name=fit.architecture.name,
        architecture=fit.architecture,
        pipeline=pipeline,
        inputs=(TensorSpec("input", "float32", (3, pipeline.crop, pipeline.crop)),),
        labels=options.labels or (IMAGENET if published and not classes else None),
        classes=classes,
        official=published is not None,
        without_head=_head_taken_off(fit),
    )


def _head_taken_off(fit: Fit) -> str | None:
    """The path of the head that the network is without; `None` if it has one."""
    return fit.architecture.head.path if fit.features and fit.architecture.head else None


def own(order: BuildRequest, weights: Weights, *, tell: Tell) -> Filled:
    """The network that the user's own class makes, filled strictly. Raises `SourceError` for weights of another."""
    options, code = order.options, order.code
    assert code is not None  # `--arch module:Class` sets it
    constructor = architectures.own_constructor(code, allow_code=options.allow_code)
    args = stated_args.of_class(constructor, options.arch_args, weights.stated, name=code.name, tell=tell)
    architecture = Architecture(registry="code", name=code.name, args=args, code=code)
    network = architectures.create(architecture, allow_code=options.allow_code, constructor=constructor)
    tensors = own_weights.of_class(weights.tensors, network, options, name=code.name, tell=tell)
    architectures.load_weights(network, tensors, name=code.name, remedy=_made_otherwise(constructor, code.name))
    _tell_of_precision(network, tensors, name=code.name, tell=tell)
    if dense_recipe.wanted(options):
        return dense.own(network, order, name=code.name, architecture=architecture, classes=weights.classes, tell=tell)
    taken = inputs.infer(network, code.name, options)
    taken = texts.taken(sounds.taken(taken, options, code.name), order, code.name, tell=tell)
    if taken.image is not None and (note := timm_config.passed_over(Path(str(order.file)), own=True)):
        tell(note)
    return dressed(network, taken, order, name=code.name, architecture=architecture, classes=weights.classes, tell=tell)


def _made_otherwise(constructor: Callable[..., object], name: str) -> str:
    """What to try if the weights do not fit the network that the user's class makes."""
    if taken := stated_args.names(constructor):
        example = json.dumps({taken[0]: "..."})
        return (
            f"name the class as it was when they were trained, and with --arch-args, such as {example}, the arguments "
            f"that it was made with; {name} takes {', '.join(taken)}"
        )
    return f"name the class as it was when they were trained; {name} takes no arguments that could change it"


def _tell_of_precision(network: nn.Module, tensors: Mapping[str, torch.Tensor], *, name: str, tell: Tell) -> None:
    """Tell the user where weights of float64 became float32, in which the network computes."""
    own = network.state_dict()
    if any(
        each.dtype == torch.float64 and own[key].dtype == torch.float32 for key, each in tensors.items() if key in own
    ):
        tell(
            f"the weights are float64, and {name} computes in float32: its inputs and its answers have 7 digits, so "
            "that large numbers, such as times in seconds since 1970, lose their last ones"
        )


def _nothing_fits(order: BuildRequest, finding: Identified) -> str:
    """The message for weights that fit no architecture: the nearest ones, how they differ, and what to try."""
    others = [near.name for near in finding.near[1:]]
    also = f" (nearest after that: {', '.join(others)})" if others and order.architecture is None else ""
    advice = finding.advice
    if finding.known and unsupported.image_sketch(finding.known, "", ()):
        advice = advice.replace(unsupported.AROUND, unsupported.ask(str(order.file)))
    return f"{Path(str(order.file)).name}: {advice}{also}{as_graph(Path(str(order.file)))}"
