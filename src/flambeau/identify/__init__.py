"""Identifies the architecture of weights by the names and shapes of their tensors, without torch and without a number.

The result is certain, or it is a refusal that names the nearest architectures. It reads no file and constructs nothing.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import msgspec

from flambeau.bundle.storage import ImageConfig
from flambeau.checkpoints.report import TensorInfo
from flambeau.checkpoints.timm_config import TimmConfig
from flambeau.identify import choose, index, naming, nearest, of_timm
from flambeau.identify.features import HeadStaysError, before_head, head_of
from flambeau.identify.finding import Fit, Identified, Published
from flambeau.identify.index import REGISTRIES, Network, Registry, Shape


def detect(
    tensors: Mapping[str, TensorInfo],
    *,
    wanted: str | None = None,
    args: Mapping[str, Any] = {},
    hidden_activation: str | None = None,
    timm: bool | None = None,
    features: bool = False,
    said: Collection[str] = (),
    config: TimmConfig | None = None,
) -> Identified:
    """The architecture that these tensors fill completely, or the nearest misses.

    With `wanted`, a registered name such as `resnet50` or `timm/resnet50`, only that one is tried; `args` are arguments
    for its constructor. `hidden_activation` (relu, gelu, silu, tanh, sigmoid, none) is the activation between the
    linear layers of a replaced head. timm's architectures count if timm is installed, unless `timm` says otherwise.
    `features`: the network is wanted without its head, so that it answers with the features before it. `said` are names
    that the file itself says: they choose among architectures that the weights do not tell apart. `config` is what
    timm's file beside the weights says: the network that it names is taken, unless `wanted` is another.
    """
    shapes, made = naming.fold_parts({key: info.shape for key, info in tensors.items()})
    find = partial(choose.find, shapes, activation=hidden_activation, registries=_registries(timm))
    found = find(wanted=wanted, args=args)
    installed = "timm" in _registries(timm)
    if config is not None and (wanted is None or (installed and of_timm.asked(config, wanted))):
        by_name = lambda name, given: find(wanted=name, args=given)  # noqa: E731
        found = of_timm.decide(config, by_name, args, timm=installed, otherwise=found)
    elif wanted is None and (name := _said_among(found, said)):
        other = find(wanted=name, args=args)
        if other.fit is not None:
            fit = msgspec.structs.replace(other.fit, why=f"the file says that it is {name}")
            found = msgspec.structs.replace(other, fit=fit)
    if config is not None and found.fit is not None and (differs := of_timm.other_classes(config, found.fit)):
        found = Identified(None, advice=differs)
    if features:
        found = _without_head(found, shapes)
    if found.fit is None and (module := naming.unknown_parametrisation(shapes)):
        return msgspec.structs.replace(found, advice=nearest.parametrised(module))
    notes = [f"{next(iter(made))} is kept in parts, which are multiplied out"] if made else []
    return msgspec.structs.replace(found, notes=(*found.notes, *notes))


def _said_among(found: Identified, said: Collection[str]) -> str | None:
    """The architecture that the file says, if it has the same weights as the one that was taken and is another."""
    if found.fit is None:
        return None
    alike = {name.rpartition("/")[2]: name for name in found.fit.same_weights}
    for text in said:
        name = text.rpartition("/")[2].partition(".")[0]  # timm's names may end in the name of a training
        if name == found.fit.architecture.name:
            return None
        if name in alike:
            return alike[name]
    return None


def heads_of(fit: Fit) -> tuple[str, ...]:
    """The paths of the heads of a classifier, as `--output-name` takes them; empty for other networks."""
    if not isinstance(fit.pipeline, ImageConfig):
        return ()
    return (fit.architecture.head.path,) if fit.architecture.head else _network_of(fit).heads


def _network_of(fit: Fit) -> Network:
    assert fit.architecture.registry != "code"  # of the user's own code nothing is in the index
    facts = index.facts(fit.architecture.registry)
    return facts.networks[facts.architectures[fit.architecture.name][0]]


def _without_head(found: Identified, shapes: Mapping[str, Shape]) -> Identified:
    fit = found.fit
    if fit is None or not isinstance(fit.pipeline, ImageConfig):
        return found
    network = _network_of(fit)
    try:
        bare = before_head(fit, network, shapes)
    except HeadStaysError as error:
        return Identified(None, advice=str(error))
    if bare is fit:
        return found
    head = head_of(fit, network)
    note = (
        f"the vector is the {bare.classes:,} features that it gives its head ({head}), whose {fit.classes:,} outputs "
        f"are left out: --output-name {head} answers with those instead"
    )
    return msgspec.structs.replace(found, fit=bare, notes=(*found.notes, note))


def published(sha256: str, *, architecture: str) -> Published | None:
    """The official weights of this architecture whose file has this sha256, or `None`."""
    for registry in REGISTRIES:
        facts = index.facts(registry)
        for digits, weights in facts.weights.items():
            if sha256.startswith(digits) and weights.architecture == architecture:
                return Published(architecture, weights.name, facts.pipelines[weights.pipeline])
    return None


def pipeline_for(registry: Registry, name: str) -> ImageConfig:
    """The image transform of an architecture, or the default recipe's if the index does not have the architecture.

    The recipe fits all of torchvision's models of its size. A model trained at another size takes the size from its
    library's metadata: at 224 its answers would be wrong, not just slightly different.
    """
    facts = index.facts(registry)
    found = facts.architectures.get(name)
    return facts.pipelines[found[1]] if found else ImageConfig()


def _registries(timm: bool | None) -> tuple[Registry, ...]:
    return tuple(
        registry for registry in REGISTRIES if registry != "timm" or (index.present("timm") if timm is None else timm)
    )
