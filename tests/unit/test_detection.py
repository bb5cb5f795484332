"""Architectures found by names and shapes alone, over generated checkpoints; and the index that they are found with."""

import argparse
import gzip
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from flambeau import architectures, identify
from flambeau.architectures import efficientnet_lite
from flambeau.architectures.registries import TIMM, TORCHVISION
from flambeau.bundle import storage
from flambeau.bundle.storage import ImageConfig
from flambeau.checkpoints.report import TensorInfo
from flambeau.identify import detect, index, published
from flambeau.identify.finding import Identified
from flambeau.sources.inspection import inspect
from flambeau.system.machine import pip_install
from tests.support import ROOT, changed
from tests.support.changed import B, D, L, N, R, backbone, chain, named
from tests.support.checkpoints import Case, State, model, published_lite_file, timm_model

CASES = changed.cases()
INDEX = Path(index.__file__).parent / "index"
SCRIPT = ROOT / "scripts" / "make_index.py"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks of toys are slower in several threads, and much slower where others use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def verdict(case: Case, finding: Identified) -> list[str]:
    """What is wrong with a finding, in words."""
    fit = finding.fit
    said = " | ".join([finding.advice, *finding.notes, fit.why if fit else ""])
    wrong = [] if case.says in said else [f"it does not say {case.says!r}"]
    if fit is None or case.found is None:
        return wrong if fit is None and case.found is None and finding.advice else [*wrong, "fits or not?"]
    registry, _, name = case.found.rpartition("/")
    architecture = fit.architecture
    right = {
        "name": architecture.name == name and registry in ("", architecture.registry),
        "classes": fit.classes == case.classes,
        "head": (architecture.head.path if architecture.head else None) == case.head,
        "twins": case.also is None or case.also in fit.same_weights,
        "reason": bool(fit.why) or not fit.same_weights,
    }
    return wrong + [what for what, holds in right.items() if not holds]


def row(case: Case, finding: Identified) -> str:
    fit = finding.fit
    if fit is None:
        return f"| {case.name} | refused | | | {finding.advice} |"
    others = ", ".join(fit.same_weights[:3]) + (f" and {len(fit.same_weights) - 3} more" * (len(fit.same_weights) > 3))
    return f"| {case.name} | {fit.architecture.name} | {fit.classes} | {others} | {'; '.join(finding.notes)} |"


@pytest.mark.long
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)], ids=["every third", "all"])
def test_every_generated_checkpoint_is_found_or_refused_with_a_reason(step: int) -> None:
    """The table of the generated checkpoints: `pytest -s -k generated_checkpoint` prints it."""
    assert len(CASES) > 160
    assert len({case.name for case in CASES}) == len(CASES)
    rows, wrong = [], []
    for case in CASES[::step]:
        finding = detect(case.tensors(), timm=True, **case.options)
        rows.append(row(case, finding))
        wrong += [f"{case.name}: {each}: {rows[-1]}" for each in verdict(case, finding)]
    print("\n| checkpoint | found | classes | also fits | note |\n|---|---|---|---|---|", *rows, sep="\n")
    assert wrong == []


REBUILT = [case for case in CASES if (case.head or "outside" in case.name) and case.name != "vgg11, two layers more"]


def filled(case: Case, network: nn.Module, finding: Identified) -> nn.Module:
    """What the finding says of the network's weights, constructed and filled."""
    fit = finding.fit
    assert fit is not None
    weights = case.change(dict(network.state_dict()))
    stored = msgspec.json.decode(msgspec.json.encode(fit.architecture), type=storage.Architecture)
    built = architectures.create(stored)
    architectures.load_weights(built, {ours: weights[theirs] for theirs, ours in fit.keys.items()}, name=case.name)
    return built


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in REBUILT if "outside" not in case.name], ids=lambda case: case.name)
def test_a_rebuilt_head_computes_what_the_changed_network_did(case: Case) -> None:
    network = case.network()
    size = 224 if case.name.startswith("vit") else 64
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(4))
    built = filled(case, network, detect(case.tensors(), **case.options))
    with torch.inference_mode():
        expected, found = network(images), built(images)
    assert expected.shape == (2, case.classes)
    assert (expected[0] - expected[1]).abs().max() > 1e-4  # else any network would do
    assert torch.equal(found, expected)


def test_the_activation_that_was_told_matters() -> None:
    case = Case("", model("resnet18", "fc", chain(L(512, 40), nn.GELU, L(40, 7))), "resnet18")
    network, images = case.network(), torch.ones(1, 3, 64, 64)
    answers = {}
    for told in ("relu", "gelu", "silu", "tanh", "sigmoid", "none"):
        with torch.inference_mode():
            answers[told] = filled(case, network, detect(case.tensors(), hidden_activation=told))(images)
    assert torch.equal(answers["gelu"], network(images))
    assert all(not torch.equal(answers["gelu"], answer) for told, answer in answers.items() if told != "gelu")


class Outside(nn.Module):
    """A backbone with its head beside it, as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = model("resnet18", "fc", nn.Identity)()
        self.head = chain(D, L(512, 9), R, L(9, 7))()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.head(self.backbone(images))
        return rows


@pytest.mark.parametrize(
    ("make", "size", "options"),
    [
        (Outside, (3, 64, 64), {"hidden_activation": "relu"}),
        (chain(model("resnet18", "fc", nn.Identity), L(512, 7)), (3, 64, 64), {}),
        (L(4, 3), (4,), {}),
        (chain(L(4, 9), N(9), L(9, 3)), (4,), {"wanted": "mlp"}),
        (chain(B(4), L(4, 9), B(9), R, D, L(9, 3)), (4,), {"wanted": "mlp", "args": {"activation": "relu"}}),
        (named(a=L(4, 9), b=nn.Tanh, c=L(9, 3)), (4,), {"wanted": "mlp", "args": {"activation": "tanh"}}),
        (model("googlenet", num_classes=5), (3, 64, 64), {}),
        (model("vit_b_32", image_size=96, num_classes=5), (3, 96, 96), {}),
        (timm_model("vit_tiny_patch16_224", img_size=96, num_classes=5), (3, 96, 96), {}),
        (timm_model("resnet26d", num_classes=5), (3, 64, 64), {}),
    ],
)  # fmt: skip
def test_what_was_found_computes_the_same(make: object, size: tuple[int, ...], options: dict[str, object]) -> None:
    case = Case("", make, None)  # type: ignore[arg-type]
    network = case.network()
    rows = torch.randn(2, *size, generator=torch.Generator().manual_seed(4))
    built = filled(case, network, detect(case.tensors(), **options))  # type: ignore[arg-type]
    with torch.inference_mode():
        expected = network(rows)
        assert (expected[0] - expected[1]).abs().max() > 1e-4
        assert torch.equal(built(rows), expected)


def hold(own: State, classes: int, registry: index.Registry, name: str) -> None:
    """Hold the index's tensors of an architecture against those of the library."""
    facts, shapes = index.facts(registry), index.shapes(registry)
    number, _ = facts.architectures[name]
    aux = facts.networks[number].aux
    expected = {
        key: tuple(value.shape)
        for key, value in own.items()
        if not key.endswith("num_batches_tracked") and key.partition(".")[0] not in aux
    }
    found = shapes.of(number)
    assert {key: tuple(side or classes for side in shape) for key, shape in found.items()} == expected, name
    assert {key for key, shape in found.items() if 0 in shape} <= facts.networks[number].outputs.keys(), name


@pytest.mark.long
def test_the_index_is_the_installed_torchvision() -> None:
    assert index.facts("torchvision").version == importlib.metadata.version("torchvision").partition("+")[0]
    assert sorted(index.facts("torchvision").architectures) == TORCHVISION.names()
    every = CASES[: len(TORCHVISION.names())]
    assert [case.found for case in every] == TORCHVISION.names()
    for case in every:
        hold(case.own, case.classes or 0, "torchvision", case.found or "")


def test_the_index_is_the_whole_lite_family() -> None:
    assert list(index.facts("flambeau").architectures) == efficientnet_lite.names()
    for name in efficientnet_lite.names():
        make = partial(efficientnet_lite.constructor(name), num_classes=11)
        hold(Case("", make, None).own, 11, "flambeau", name)


def test_the_index_has_the_installed_timm() -> None:
    """A sample of its networks, and all but the few names that are no classifiers of square images."""
    facts = index.facts("timm")
    assert facts.version == importlib.metadata.version("timm")
    assert facts.architectures.keys() <= set(TIMM.names())
    left_out = set(TIMM.names()) - facts.architectures.keys()
    assert len(left_out) < 20
    assert all("sapiens2" in name or name.endswith("_enc") for name in left_out)
    for name in ("beit_base_patch16_224", "cait_xxs24_224", "coat_tiny", "fastvit_t8", "nfnet_f0", "tinynet_a"):
        hold(Case("", timm_model(name, num_classes=11), None).own, 11, "timm", name)


def test_the_same_libraries_make_the_same_index() -> None:
    """Of the smallest registry, which takes no minutes."""
    found = importlib.util.spec_from_file_location("make_index", SCRIPT)
    assert found is not None
    assert found.loader is not None
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    for made, name in zip(script.collect("flambeau"), ("flambeau", "flambeau_shapes"), strict=True):
        shipped = gzip.decompress((INDEX / f"{name}.json.gz").read_bytes())
        assert msgspec.json.encode(made) == shipped, name


def test_the_index_is_small() -> None:
    sizes = {file.name: file.stat().st_size for file in INDEX.iterdir()}
    assert len(sizes) == 7
    assert sum(size for name, size in sizes.items() if name.startswith("torchvision")) < 50_000
    assert sum(sizes.values()) < 500_000


@pytest.mark.parametrize(
    ("sha256", "architecture", "name", "resize", "crop"),
    [
        ("f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec", "resnet18", "IMAGENET1K_V1", 256, 224),
        ("11ad3fa62ff1b6a6a02ef55dbee8a30d8c9a9e86ce9ff7ef2c3b7b6f9bb1a3d2", "resnet50", "IMAGENET1K_V2", 232, 224),
        ("9ac1b5372bbb9a1d5e2c8a37e40c5b4a7b0c3f7c3c8f5a4c0c3c1d9e5f7a8b6c", "vit_b_16", "SWAG_E2E", 384, 384),
        ("3ffadce67e" + "0" * 54, "mnasnet0_5", "IMAGENET1K_V1", 256, 224),
    ],
)  # fmt: skip
def test_official_weights_are_known_by_the_hash_in_their_names(
    sha256: str, architecture: str, name: str, resize: int, crop: int
) -> None:
    found = published(sha256, architecture=architecture)
    assert found is not None
    assert name in found.name
    assert (found.pipeline.resize, found.pipeline.crop) == (resize, crop)
    assert published(sha256, architecture="alexnet") is None
    assert published(sha256[::-1], architecture=architecture) is None


@pytest.mark.parametrize("number", range(3))
def test_the_published_files_of_the_lite_family_are_known_by_their_contents(number: int) -> None:
    file = published_lite_file(number)
    found = published(storage.sha256_of(file), architecture=f"efficientnet_lite{number}")
    assert found is not None
    assert found.name == file.name
    assert found.pipeline == identify.pipeline_for("flambeau", f"efficientnet_lite{number}")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (model("resnet18"), ImageConfig()),
        (model("inception_v3"), ImageConfig(resize=342, crop=299)),
        (model("vit_b_16", image_size=384), ImageConfig(resize=384, crop=384)),
        (
            timm_model("vit_tiny_patch16_224"),
            ImageConfig(resize=248, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic"),
        ),
        (L(4, 3), None),
    ],
)
def test_a_fit_says_how_its_input_is_prepared(make: object, expected: ImageConfig | None) -> None:
    fit = detect(Case("", make, None).tensors()).fit  # type: ignore[arg-type]
    assert fit is not None
    assert fit.pipeline == expected


@pytest.mark.long
def test_every_key_of_the_file_is_used_or_set_aside() -> None:
    for case in CASES:
        tensors = case.tensors()
        fit = detect(tensors, **case.options).fit
        if fit is None:
            continue
        assert fit.keys.keys() | set(fit.aside) == tensors.keys(), case.name
        assert not fit.keys.keys() & set(fit.aside), case.name
        assert len(set(fit.keys.values())) == len(fit.keys), case.name


def test_the_nearest_misses_name_what_differs() -> None:
    tensors = Case("", model("resnet18"), None).tensors()
    del tensors["module.conv1.weight".removeprefix("module.")]
    tensors["extra.weight"] = tensors["fc.weight"]
    tensors["bn1.weight"] = tensors["layer4.0.bn1.weight"]
    finding = detect({f"module.{key}": info for key, info in tensors.items()}, timm=False)
    assert finding.fit is None
    assert [near.name for near in finding.near[:2]] == ["resnet18", "resnet34"]
    assert finding.near[0].missing == ("conv1.weight",)
    assert finding.near[0].unexpected == ("module.extra.weight",)
    assert finding.near[0].misshaped == (("module.bn1.weight", (512,), (64,)),)
    assert len(finding.near) <= 3


def test_timm_counts_when_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = Case("", timm_model("regnety_002"), None).tensors()
    assert detect(tensors).fit is not None
    assert detect(tensors, timm=False).fit is None
    finding = detect(tensors, timm=False, wanted="regnety_002")
    assert finding.advice == f"regnety_002 is an architecture of timm, which is not installed: {pip_install('timm')}"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    index.present.cache_clear()
    assert detect(tensors).fit is None
    index.present.cache_clear()


def test_a_name_that_the_installed_library_lacks_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its index is of a newer version: then what the library's own files define counts."""
    tensors = Case("", timm_model("resnet18"), None).tensors()
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.0.0")
    monkeypatch.setattr(index, "_constructors", lambda registry: {"resnet18"} if registry == "timm" else set())
    for cached in (index.lacks, index.names_of):
        cached.cache_clear()
    fit = detect(tensors, timm=True).fit
    for cached in (index.lacks, index.names_of):
        cached.cache_clear()
    assert fit is not None
    assert (fit.architecture.registry, fit.architecture.name, fit.same_weights) == ("timm", "resnet18", ())


def test_constructors_are_found_in_the_text_of_the_library() -> None:
    index._constructors.cache_clear()
    assert set(TORCHVISION.names()) <= index._constructors("torchvision")
    assert index.facts("timm").architectures.keys() <= index._constructors("timm")


def test_detection_imports_no_torch() -> None:
    tell = "import sys, flambeau.identify as d; d.detect({}); print('torch' in sys.modules, 'timm' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert ran.stdout.split() == ["False", "False"]


def test_nothing_at_all_is_refused() -> None:
    finding = detect({})
    assert finding.fit is None
    assert finding.advice


@pytest.mark.long
def test_hostile_names_and_shapes_are_refused_quickly() -> None:
    """Names of a thousand parts, of nothing, and shapes of any length change nothing but the answer."""
    names = ["", ".", "..", "a" * 10_000, ".".join("ab" * 500), "fc.weight", "fc..weight", "weight", "0.weight"]
    shapes = [(), (0,), (-1, -1), (2**62, 2**62), tuple(range(64)), (0, 0)]
    for name in names:
        for shape in shapes:
            detect({name: TensorInfo("float32", shape), "x.y": TensorInfo("int7", shape)})
    for place in ("²", "٣", "0" * 999, "9" * 12, "-1", "1e9", "a" + "9" * 9999):
        tensors = Case("", model("resnet18"), None).tensors()
        tensors[f"fc.{place}.weight"] = tensors["fc.0.weight"] = tensors.pop("fc.weight")
        assert detect(tensors, hidden_activation="relu").fit is None
    for shape in ((0, 512), (-1, 512), (-1, -512)):
        for key in ("fc.weight", "fc.0.weight"):
            tensors = Case("", model("resnet18"), None).tensors()
            del tensors["fc.weight"], tensors["fc.bias"]
            assert detect({**tensors, key: TensorInfo("float32", shape)}).fit is None
    deep = {f"{number}." + ".".join("ab" * 100): TensorInfo("float32", (3,)) for number in range(5_000)}
    assert detect(deep).fit is None
    many = {f"block.{number}.{number % 7}.weight": TensorInfo("float32", (number, 3)) for number in range(20_000)}
    assert detect(many).fit is None


def test_backbones_of_two_heads_are_refused() -> None:
    """Which of them classifies is nothing that weights tell."""
    two = backbone("fc.", fc_age__weight=(1, 512), fc_age__bias=(1,), fc_sex__weight=(2, 512), fc_sex__bias=(2,))
    finding = detect(Case("", model("resnet18"), None, change=two).tensors())
    assert finding.fit is None
    assert "512→1" in finding.advice


@pytest.mark.parametrize("last", [nn.Identity(), nn.Sigmoid(), nn.Softmax(1)])
def test_what_follows_a_linear_layer_over_numbers_is_said_to_leave_no_trace(last: nn.Module) -> None:
    """Its file is the same with a sigmoid and without: it was served without a word."""
    found = detect(Case("", lambda: nn.Sequential(nn.Linear(4, 1), last), None).tensors())
    assert found.fit is not None
    assert any("a sigmoid, a softmax or a scale after that" in note for note in found.notes)


@pytest.mark.parametrize(
    ("beside", "taken"),
    [
        ({}, "efficientnet_b0"),
        ({"arch": "tf_efficientnet_b0"}, "tf_efficientnet_b0"),
        ({"args": argparse.Namespace(model="tf_efficientnet_b0.ns_jft_in1k")}, "tf_efficientnet_b0"),
        ({"arch": "resnet18"}, "efficientnet_b0"),
    ],
)
def test_the_name_in_a_checkpoint_chooses_among_networks_that_weights_do_not_tell_apart(
    beside: dict[str, object], taken: str, tmp_path: Path
) -> None:
    """They pad their images differently: the other one's answers are wrong."""
    network = timm_model("tf_efficientnet_b0")()
    tensors = {key: torch.zeros(each.shape) for key, each in network.state_dict().items()}
    torch.save({"state_dict": tensors, **beside}, tmp_path / "saved.pth")
    assert inspect(tmp_path / "saved.pth").architecture == taken
