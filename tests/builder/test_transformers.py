"""Weights beside the `config.json` of Hugging Face's transformers: served as transformers itself computes and prepares.

Expected answers are transformers' own, of the network that was saved, through its own image processor or of the tokens
of its own tokenizer.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import flambeau
from flambeau.bundle.storage import Bundle, ImageConfig, TextConfig
from flambeau.checkpoints import transformers_config
from flambeau.errors import SourceError
from flambeau.identify import of_transformers
from flambeau.types import Payload
from tests.support import transformers_models as models
from tests.support.image_pipelines import pipeline
from tests.support.photographs import encoded, photograph
from tests.support.transformers_models import IMAGES, SIDE, TEXTS, changed

pytestmark = [pytest.mark.usefixtures("warm_builds"), pytest.mark.long]

Build = Callable[..., Bundle]

PREPARED = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.5, 0.75], "resample": 3}
TEXT = "the cat sleeps and runs"


def processor(folder: Path, kind: str = "ViT", **said: Any) -> Any:
    """An image processor, saved in the folder."""
    made = getattr(models.library(), f"{kind}ImageProcessor")(
        **{"size": {"height": SIDE, "width": SIDE}, **PREPARED, **said}
    )
    made.save_pretrained(folder)
    return made


def softmax(numbers: Any) -> np.ndarray:
    return np.asarray(torch.as_tensor(numbers).softmax(-1))


def answered(bundle: Bundle, given: Any) -> Any:
    with flambeau.load(bundle.path) as model:
        return model.predict(given)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A small ViT with three classes; and what transformers has of it."""
    folder = tmp_path_factory.mktemp("flowers")
    return folder, models.saved(folder, "ViT", config=IMAGES["ViT"], ending="ForImageClassification"), processor(folder)


def test_a_classifier_of_images_answers_as_transformers_does(flowers: tuple[Path, Any, Any], built: Build) -> None:
    folder, network, prepares = flowers
    bundle = built(folder / "model.safetensors")
    assert bundle.manifest.engine == "onnxruntime"  # which serves it without transformers
    assert [each.name for each in bundle.labels() or ()] == ["rose", "lily", "fern"]
    assert bundle.manifest.pipeline == ImageConfig(
        SIDE, SIDE, (0.5, 0.4, 0.3), (0.25, 0.5, 0.75), "bicubic", stretch=True
    )
    for image in (photograph("chelsea"), photograph("chelsea").crop((0, 0, 99, 300))):
        found = answered(bundle, encoded(image))
        assert np.allclose(found.probabilities, softmax(models.logits(network, prepares, image)), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in IMAGES if name != "ViT"])
def test_other_networks_over_images(name: str, tmp_path: Path, built: Build) -> None:
    network = models.saved(tmp_path, name, config=IMAGES[name], ending="ForImageClassification")
    prepares = processor(tmp_path)
    found = answered(built(tmp_path / "model.safetensors"), encoded(photograph("coffee")))
    assert np.allclose(found.probabilities, softmax(models.logits(network, prepares, photograph("coffee"))), atol=2e-3)


def test_what_it_was_trained_for_is_its_task_and_a_trainers_folder_is_served(
    flowers: tuple[Path, Any, Any], tmp_path: Path, built: Build, notes: list[str]
) -> None:
    folder, network, prepares = flowers
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(folder / name, tmp_path)
    changed(tmp_path / "config.json", problem_type="multi_label_classification")
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    torch.save({"state": {}}, tmp_path / "optimizer.pt")  # as beside a checkpoint of Trainer's
    bundle = built(tmp_path / "pytorch_model.bin")
    assert bundle.manifest.task == "multi-label"
    assert "the task is multi-label, as config.json beside the weights says: --task says another" in notes
    found = answered(bundle, encoded(photograph("coffee")))
    expected = torch.as_tensor(models.logits(network, prepares, photograph("coffee"))).sigmoid()
    assert np.allclose(np.frombuffer(found.vector, np.float32), expected, atol=2e-3)


def texts(folder: Path, name: str, ending: str) -> tuple[Any, Any]:
    return models.saved(folder, name, config=TEXTS[name], ending=ending), models.with_tokenizer(folder)


@pytest.mark.parametrize(
    "name", [name if name == "Bert" else pytest.param(name, marks=pytest.mark.slow) for name in TEXTS]
)
def test_a_classifier_of_texts_answers_as_transformers_does(name: str, tmp_path: Path, built: Build) -> None:
    network, tokenizer = texts(tmp_path, name, "ForSequenceClassification")
    bundle = built(tmp_path / "model.safetensors")
    assert bundle.manifest.engine == "onnxruntime"
    with flambeau.load(bundle.path) as model:
        for text in (TEXT, "a good film", "it was not dull and the lazy dog runs over what is wonderful"):
            found = model.predict(text)
            assert {each.label.name for each in found.top} <= {"rose", "lily", "fern"}
            expected = softmax(models.of_tokens(network, tokenizer, text).logits[0])
            assert np.allclose(found.probabilities, expected, atol=1e-4)
        assert isinstance(bundle.manifest.pipeline, TextConfig)
        longest = " ".join(["cat"] * (bundle.manifest.pipeline.most - 2))
        expected = softmax(models.of_tokens(network, tokenizer, longest).logits[0])
        assert np.allclose(model.predict(longest).probabilities, expected, atol=1e-4)
        with pytest.raises(flambeau.InvalidInput, match="tokens"):
            model.predict(longest + " cat")


@pytest.mark.slow
def test_a_pooler_that_the_network_does_not_use_is_left_out(tmp_path: Path, built: Build) -> None:
    network, tokenizer = texts(tmp_path, "Roberta", "ForSequenceClassification")
    weights = {**network.state_dict(), "roberta.pooler.dense.weight": torch.ones(32, 32)}  # as older versions wrote
    torch.save({**weights, "roberta.pooler.dense.bias": torch.ones(32)}, tmp_path / "pytorch_model.bin")
    found = answered(built(tmp_path / "pytorch_model.bin"), TEXT)
    expected = softmax(models.of_tokens(network, tokenizer, TEXT).logits[0])
    assert np.allclose(found.probabilities, expected, atol=1e-4)


def test_an_encoder_of_sentences_answers_with_the_mean_of_its_vectors(
    tmp_path: Path, built: Build, notes: list[str]
) -> None:
    network, tokenizer = texts(tmp_path, "Bert", "Model")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    found = answered(built(tmp_path / "model.safetensors"), TEXT)
    expected = models.of_tokens(network, tokenizer, TEXT).last_hidden_state[0].mean(0)
    assert np.allclose(found.embedding, expected, atol=1e-4)
    bare = tmp_path / "bare"
    shutil.copytree(tmp_path, bare, ignore=shutil.ignore_patterns("1_Pooling"))
    with pytest.raises(SourceError, match="say --pooling mean for their mean, or --pooling first"):
        built(bare / "model.safetensors")


@pytest.mark.slow
def test_types_of_tokens_that_the_network_is_not_told_are_refused(tmp_path: Path, built: Build) -> None:
    texts(tmp_path, "Bert", "ForSequenceClassification")
    file = tmp_path / "tokenizer.json"
    template = json.loads(file.read_text())["post_processor"]
    template["single"][1]["Sequence"]["type_id"] = 1
    changed(file, post_processor=template)
    with pytest.raises(SourceError, match="gives tokens of one text the types of another sentence"):
        built(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("file", "said", "problem"),
    [
        ("config.json", {"num_hidden_layers": 3}, "do not fit ViTForImageClassification: 16 missing"),
        ("config.json", {"model_type": "bert"}, "model_type bert, and ViTForImageClassification is of another"),
        ("config.json", {"architectures": ["NoForImageClassification"]}, "has no NoForImageClassification"),
        ("config.json", {"auto_map": {"AutoModel": "theirs--x.Y"}}, "has auto_map, with which transformers runs"),
        ("config.json", {"more": {"auto_map": {"AutoModel": "theirs--x.Y"}}}, "has auto_map, with which transformers"),
        (
            "config.json",
            {
                "architectures": ["TimmWrapperForImageClassification"],
                "model_type": "timm_wrapper",
                "architecture": "hf-hub:theirs/network",
            },
            "TimmWrapperForImageClassification, which is not served by its weights",
        ),
        ("config.json", {"num_channels": 1}, "of images of 1 channel, and those that are prepared have 3"),
        ("config.json", {"architectures": ["ViTForMaskedImageModeling"]}, "is not served by its weights"),
        ("config.json", {"num_hidden_layers": 30_000}, "says num_hidden_layers 30000, and the file has 40 tensors"),
        ("config.json", {"hidden_size": 48}, "do not fit ViTForImageClassification: 37 of another shape: "),
        (
            "config.json",
            {"id2label": {"0": "rose", "1": "lily"}, "label2id": None},
            r"classifier.weight \(\[3, 32\], and config.json describes \[2, 32\]\)",
        ),
        ("config.json", {"hidden_size": "many"}, "makes no ViTForImageClassification of config.json"),
        ("preprocessor_config.json", {"do_rescale": False}, "says do_rescale False"),
    ],
)
def test_what_cannot_be_served_as_they_say_is_refused(
    flowers: tuple[Path, Any, Any], tmp_path: Path, built: Build, file: str, said: dict[str, Any], problem: str
) -> None:
    shutil.copytree(flowers[0], tmp_path, dirs_exist_ok=True)
    changed(tmp_path / file, **said)
    with pytest.raises(SourceError, match=problem):
        built(tmp_path / "model.safetensors")


def test_pytorch_serves_the_network_where_it_is_asked_to(flowers: tuple[Path, Any, Any], built: Build) -> None:
    folder, network, prepares = flowers
    bundle = built(folder / "model.safetensors")
    with flambeau.load(bundle.path, engine="eager") as model:
        found = model.predict(encoded(photograph("coffee")))
    assert np.allclose(found.probabilities, softmax(models.logits(network, prepares, photograph("coffee"))), atol=2e-3)


SQUARE = {"height": 40, "width": 40}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ViT", {"size": {"height": 48, "width": 48}}),
        ("DeiT", {"size": {"height": 48, "width": 48}, "crop_size": SQUARE}),
        ("Beit", {"size": {"height": 48, "width": 48}, "do_center_crop": True, "crop_size": SQUARE}),
        ("Bit", {"size": {"shortest_edge": 48}, "crop_size": SQUARE}),
        ("CLIP", {"size": {"shortest_edge": 48}, "crop_size": SQUARE}),
        ("ConvNext", {"size": {"shortest_edge": 40}, "crop_pct": 0.8}),  # whose crops begin at half a pixel
        ("ConvNext", {"size": {"shortest_edge": 384}}),
        ("MobileNetV1", {"size": {"shortest_edge": 48}, "crop_size": SQUARE}),
        ("MobileNetV2", {"size": {"shortest_edge": 48}, "crop_size": SQUARE}),
        ("Pvt", {"size": {"height": 48, "width": 48}}),
        ("Siglip", {"size": {"height": 48, "width": 48}}),
    ],
)
def test_images_are_prepared_as_its_processor_does(kind: str, said: dict[str, Any], tmp_path: Path) -> None:
    its = processor(tmp_path, kind, **said)
    config = transformers_config.TransformersConfig(
        "Any", {}, processor=json.loads((tmp_path / transformers_config.PROCESSOR).read_text())
    )
    ours = of_transformers.prepared(config, asked={})
    for image in (photograph("coffee"), photograph("chelsea").crop((0, 0, 200, 300))):
        [found] = pipeline(**msgspec.structs.asdict(ours)).preprocess(Payload("file", encoded(image))).values()
        expected = np.asarray(its(image, return_tensors="pt")["pixel_values"])
        levels = np.abs(found - expected) * np.array(PREPARED["image_std"]).reshape(1, 3, 1, 1) * 255
        assert found.shape == expected.shape
        assert levels.mean() < 1  # of 255: it resizes with torchvision, in whole levels, too
        assert levels.max() < 4
