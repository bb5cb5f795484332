"""The features before the head: every known classifier without its head answers with what its head was given."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from flambeau import architectures, identify
from flambeau.architectures.registries import REGISTRIES
from flambeau.identify import index
from flambeau.identify.finding import Fit
from flambeau.identify.index import Registry
from tests.support.checkpoints import Case, described

FEW = (
    "torchvision/resnet18", "torchvision/squeezenet1_1", "torchvision/mobilenet_v3_small", "torchvision/googlenet",
    "torchvision/shufflenet_v2_x0_5", "efficientnet_lite0",
)  # fmt: skip
CLASSES = 7
NEAR = 1e-5
MOST_WEIGHTS = 150_000_000
"""Of larger ones, minutes pass for each; two modules of timm's (deepseek_vit, gemma4_vit) have no smaller network."""


def families(registry: Registry) -> list[str]:
    """The smallest network of every family: of torchvision by the word that its name begins with, all of ours, and of
    each module of timm's."""
    smallest: dict[str, tuple[int, str]] = {}
    by: dict[str, Callable[[str], str]] = {"torchvision": _word, "flambeau": str, "timm": _module}
    family_of = by[registry]
    facts, shapes = index.facts(registry), index.shapes(registry)
    for name, (number, pipeline) in facts.architectures.items():
        if not index.names_of(registry, number) or index.lacks(registry, name):
            continue
        weights = sum(map(math.prod, shapes.of(number).values()))
        if weights > MOST_WEIGHTS:
            continue
        size = weights * facts.pipelines[pipeline].crop
        called = name if registry == "flambeau" else f"{registry}/{name}"
        family = family_of(name)
        smallest[family] = min(smallest.get(family, (size, called)), (size, called))
    return [name for _, name in smallest.values()]


def _word(name: str) -> str:
    return name.partition("_")[0].rstrip("0123456789")


def _module(name: str) -> str:
    import timm

    return str(timm.models._registry._model_to_module[name])


def without_head(network: nn.Module, called: str) -> tuple[nn.Module, Fit]:
    """The same network as found without its head, with its weights."""
    state = network.state_dict()
    found = identify.detect(described(state), wanted=called, features=True)
    assert found.fit is not None, found.advice
    bare = architectures.create(found.fit.architecture)
    architectures.load_weights(bare, {ours: state[theirs] for theirs, ours in found.fit.keys.items()}, name=called)
    return bare, found.fit


def given_to_head(network: nn.Module, heads: Sequence[str], pictures: torch.Tensor) -> torch.Tensor:
    """What the network gives its head, as rows: a head that is a convolution is given maps, which are averaged."""
    seen: list[torch.Tensor] = []
    network.get_submodule(heads[0]).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.inference_mode():
        network(pictures)
    return seen[0].flatten(2).mean(2) if seen[0].dim() == 4 else seen[0]


def apart(called: str) -> float | str:
    """How far the features are from those that PyTorch's own head is given; or why there are none."""
    before, _, name = called.rpartition("/")
    registry: Registry = "torchvision" if before == "torchvision" else "timm" if before == "timm" else "flambeau"
    network = Case(name, lambda: REGISTRIES[registry].constructor(name)(num_classes=CLASSES), None).network()
    facts = index.facts(registry)
    number, pipeline = facts.architectures[name]
    heads = facts.networks[number].heads
    side = facts.pipelines[pipeline].crop
    pictures = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(3))
    if len(heads) > 1:
        refused = identify.detect(described(network.state_dict()), wanted=called, features=True)
        assert refused.fit is None
        assert f"--output-name {heads[0]}" in refused.advice
        return "several heads"
    bare, fit = without_head(network, called)
    expected = given_to_head(network, heads, pictures)
    with torch.inference_mode():
        found = bare(pictures)
    assert found.shape == expected.shape == (1, fit.classes)
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("called", FEW)
def test_a_known_classifier_gives_the_features_before_its_head(called: str) -> None:
    assert float(apart(called)) <= NEAR


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("registry", "least"), [("torchvision", 18), ("flambeau", 5), ("timm", 88)])
def test_every_family_of_classifiers_gives_the_features_before_its_head(registry: Registry, least: int) -> None:
    from flambeau.architectures import torchvision_compat

    torchvision_compat.declare_missing()
    found: dict[str, float | str] = {}
    for called in families(registry):
        found[called] = apart(called)
        print(called, found[called], flush=True)
    wrong = {called: each for called, each in found.items() if isinstance(each, float) and not each <= NEAR}
    assert not wrong
    several = [called for called, each in found.items() if each == "several heads"]
    assert len(found) - len(several) >= least, several


def bare(change: str, **options: str) -> Fit:
    """ResNet-18 with another head, without it."""
    head: dict[str, tuple[int, ...]] = {
        "two layers": {"fc.0.weight": (256, 512), "fc.0.bias": (256,), "fc.3.weight": (5, 256), "fc.3.bias": (5,)},
        "outside": {"classifier.weight": (5, 512), "classifier.bias": (5,)},
        "none": {},
    }[change]
    number = index.facts("torchvision").architectures["resnet18"][0]
    place = "backbone." if change == "outside" else ""
    own = index.shapes("torchvision").of(number).items()
    body = {place + name: shape for name, shape in own if not name.startswith("fc.")}
    state = {key: torch.empty(shape) for key, shape in {**body, **head}.items()}
    found = identify.detect(described(state), features=True, timm=False, hidden_activation=options.get("activation"))
    assert found.fit is not None, found.advice
    return found.fit


@pytest.mark.parametrize(("change", "options"), [
    ("two layers", {"activation": "relu"}), ("outside", {}), ("none", {}),
])  # fmt: skip
def test_a_replaced_or_missing_head_is_off_as_a_whole(change: str, options: dict[str, str]) -> None:
    fit = bare(change, **options)
    assert (fit.architecture.name, fit.classes, fit.features) == ("resnet18", 512, True)
    assert not [ours for ours in fit.keys.values() if ours.startswith("fc.")]
    network = architectures.create(fit.architecture)
    assert isinstance(network.get_submodule("fc"), nn.Identity)


def test_layers_that_make_vectors_of_maps_stay() -> None:
    """ConvNeXt's own block is given maps: with a new last part, the norm before it stays, and its weights."""
    number = index.facts("torchvision").architectures["convnext_tiny"][0]
    shapes = {
        name: shape
        for name, shape in index.shapes("torchvision").of(number).items()
        if not name.startswith("classifier.2.")
    }
    more = {
        "classifier.2.weight": (64, 768), "classifier.2.bias": (64,), "classifier.4.weight": (5, 64),
        "classifier.4.bias": (5,),
    }  # fmt: skip
    state = {key: torch.empty(shape) for key, shape in {**shapes, **more}.items()}
    found = identify.detect(described(state), features=True, timm=False, hidden_activation="relu")
    assert found.fit is not None, found.advice
    assert found.fit.classes == 768
    assert sorted(ours for ours in found.fit.keys.values() if ours.startswith("classifier.")) == [
        "classifier.0.bias", "classifier.0.weight",
    ]  # fmt: skip
    network = architectures.create(found.fit.architecture)
    weights = {ours: torch.ones(state[theirs].shape) for theirs, ours in found.fit.keys.items()}
    architectures.load_weights(network, weights, name="convnext_tiny")
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 64)).flatten(1).shape == (1, 768)


def test_the_note_says_what_is_left_out_and_how_to_get_it() -> None:
    case = Case("resnet18", lambda: REGISTRIES["torchvision"].constructor("resnet18")(num_classes=37), None)
    found = identify.detect(case.tensors(), features=True, timm=False)
    assert (
        "the vector is the 512 features that it gives its head (fc), whose 37 outputs are left out: "
        "--output-name fc answers with those instead"
    ) in found.notes
