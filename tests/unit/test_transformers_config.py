"""What the files of Hugging Face's transformers say of images, and what `flambeau inspect` says of weights beside them.

It needs no transformers: `tests/builder/test_transformers.py` compares the answers with it.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from flambeau.bundle.storage import ImageConfig
from flambeau.checkpoints import transformers_config
from flambeau.errors import SourceError
from flambeau.identify import of_transformers
from flambeau.sources.inspection import inspect
from tests.support.image_pipelines import pipeline
from tests.support.photographs import encoded, photograph

CONFIG = {"architectures": ["ViTForImageClassification"], "model_type": "vit", "id2label": {"1": "dog", "0": "cat"}}
SAID = {
    "image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "do_resize": True,
    "do_rescale": True, "rescale_factor": 0.00392156862745098, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5], "resample": 2,
}  # fmt: skip
HALF = (0.5, 0.5, 0.5)


def folder(path: Path, config: dict[str, Any] = CONFIG, **said: Any) -> Path:
    """A folder as `save_pretrained` leaves it; gives the weights."""
    (path / "config.json").write_text(json.dumps(config))
    table = {key: value for key, value in {**SAID, **said}.items() if value is not None}
    (path / "preprocessor_config.json").write_text(json.dumps(table))
    save_file({"classifier.weight": np.zeros((2, 4), np.float32)}, path / "model.safetensors")
    return path / "model.safetensors"


def prepared(path: Path, **said: Any) -> ImageConfig:
    folder(path, **said)
    return of_transformers.prepared(transformers_config.read(path / "config.json"), asked={})


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, ImageConfig(224, 224, HALF, HALF, stretch=True)),
        ({"feature_extractor_type": "ViTFeatureExtractor", "image_processor_type": None, "size": 384, "resample": 3,
          "do_rescale": None, "rescale_factor": None}, ImageConfig(384, 384, HALF, HALF, "bicubic", stretch=True)),
        ({"image_processor_type": "DeiTImageProcessorFast", "size": 256, "crop_size": 224},
         ImageConfig(256, 224, HALF, HALF, stretch=True, crop_floor=True)),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 240},
          "crop_size": {"height": 224, "width": 224}}, ImageConfig(240, 224, HALF, HALF, crop_floor=True)),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875},
         ImageConfig(256, 224, HALF, HALF, crop_floor=True)),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 0.875},
         ImageConfig(384, 384, HALF, HALF, stretch=True)),
        ({"do_normalize": False}, ImageConfig(224, 224, (0.0,) * 3, (1.0,) * 3, stretch=True)),
    ],
)  # fmt: skip
def test_a_processor_becomes_our_own_way_with_images(
    tmp_path: Path, said: dict[str, Any], expected: ImageConfig
) -> None:
    assert prepared(tmp_path, **said) == expected


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"image_processor_type": "MobileViTImageProcessor"}, "image_processor_type MobileViTImageProcessor"),
        ({"do_rescale": False}, "do_rescale False"),
        ({"rescale_factor": 1.0}, "rescale_factor 1.0"),
        ({"size": {"height": 224, "width": 160}}, "size {'height': 224, 'width': 160}"),
        ({"size": {"shortest_edge": 224}}, "a size of the shorter side without do_center_crop"),
        (
            {"image_processor_type": "SiglipImageProcessor", "size": 224},
            "a size of the shorter side without do_center_crop",
        ),
        ({"resample": 1}, "resample 1"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std 0"),
        ({"image_mean": [0.5]}, r"image_mean \[0.5\]"),
        ({"do_pad": True}, "do_pad True"),
    ],
)
def test_a_way_with_images_that_is_not_ours_is_refused_with_what_it_is(
    tmp_path: Path, said: dict[str, Any], named: str
) -> None:
    with pytest.raises(SourceError, match=f"preprocessor_config.json beside the weights says {named}, and images"):
        prepared(tmp_path, **said)


def test_what_the_user_says_takes_the_place_of_a_way_that_is_not_ours(tmp_path: Path) -> None:
    folder(tmp_path, do_rescale=False)
    config = transformers_config.read(tmp_path / "config.json")
    assert of_transformers.prepared(config, asked={"crop": 160, "mean": HALF, "std": HALF}).crop == 160
    with pytest.raises(SourceError, match="do_rescale"):
        of_transformers.prepared(config, asked={"crop": 160, "mean": HALF})


def test_a_stretched_image_is_resized_to_both_sides() -> None:
    picture = photograph("chelsea").crop((0, 0, 300, 120))
    stretching = pipeline(resize=64, crop=64, mean=(0.0,) * 3, std=(1.0,) * 3, stretch=True)
    [found] = stretching.preprocess(_file(encoded(picture))).values()
    expected = np.asarray(picture.resize((64, 64), 2), np.float32).transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(found[0], expected)


def _file(data: bytes) -> Any:
    from flambeau.types import Payload

    return Payload("file", data)


def test_inspect_names_the_network_its_classes_and_its_way_with_images(tmp_path: Path) -> None:
    found = inspect(folder(tmp_path))
    assert found.architecture == "ViTForImageClassification"
    assert found.report.classes == ("cat", "dog")
    assert found.preprocessing == ImageConfig(224, 224, HALF, HALF, stretch=True)
    assert found.task.startswith("classification, assumed")
    assert found.serve == f"flambeau serve {tmp_path / 'model.safetensors'}"


def test_inspect_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = folder(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert "no preprocessor_config.json says how its images are prepared" in inspect(weights).needs
    folder(tmp_path, {**CONFIG, "architectures": ["BertForSequenceClassification"], "model_type": "bert"})
    assert "no tokenizer.json says how texts become its token ids" in inspect(weights).needs
    folder(tmp_path, {**CONFIG, "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"})
    assert "WhisperForConditionalGeneration, which is not served by its weights" in inspect(weights).needs
    folder(tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "transformers" else found(name)
    )
    needs = inspect(weights).needs
    assert "those of transformers' ViTForImageClassification, and it is not installed: pip install" in needs


def test_inspect_says_what_a_build_does_of_vectors_of_one_output_and_of_grey_images(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    bert = {"architectures": ["BertModel"], "model_type": "bert", "problem_type": "multi_label_classification"}
    found = inspect(folder(tmp_path, {**bert, "id2label": {"0": "cat", "1": "dog"}}))
    assert found.task == "of a text, made token ids by its tokenizer: embedding, of a vector for every token"
    assert found.report.classes is None
    one = {**CONFIG, "id2label": {"0": "LABEL_0"}}
    assert "one output, of which a softmax would always make 1: say --task" in inspect(folder(tmp_path, one)).needs
    found = inspect(folder(tmp_path, {**one, "problem_type": "regression"}))
    assert found.serve == f"flambeau serve {tmp_path / 'model.safetensors'}"
    grey = inspect(folder(tmp_path, {**CONFIG, "num_channels": 1})).needs
    assert "of images of 1 channel, and those that are prepared have 3: a PythonModel" in grey


@pytest.mark.parametrize(("network", "kind"), [("TimmWrapper", "timm_wrapper"), ("ImageGPT", "imagegpt")])
def test_networks_that_take_something_else_or_would_be_fetched_are_refused(
    tmp_path: Path, network: str, kind: str
) -> None:
    names = {"architectures": [f"{network}ForImageClassification"], "model_type": kind}
    found = inspect(folder(tmp_path, {**names, "architecture": "hf-hub:theirs/network"}))
    assert f"{network}ForImageClassification, which is not served by its weights" in found.needs


def test_a_config_of_other_weights_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    weights = folder(tmp_path)
    assert transformers_config.beside(weights) == tmp_path / "config.json"
    (tmp_path / "other.pth").write_bytes(weights.read_bytes())
    assert transformers_config.beside(tmp_path / "other.pth") is None  # it is that of model.safetensors
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    assert transformers_config.beside(weights) is None
    (tmp_path / "config.json").write_text("{")
    assert transformers_config.beside(weights) is None
    (tmp_path / "config.json").write_text('{"architectures": ["ViTForImageClassification"], "model_type": ')
    with pytest.raises(SourceError, match=r"config\.json cannot be read"):
        transformers_config.beside(weights)


def test_classes_that_nobody_named_have_no_names() -> None:
    assert transformers_config.class_names({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}) is None
    assert transformers_config.class_names({"id2label": {"1": "dog"}}) is None
    assert transformers_config.class_names({}) is None
