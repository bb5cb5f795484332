"""What a tokenizer and its neighbours say of texts beside their tokens: used, or asked about."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.errors import SourceError
from flambeau.sources.inspection import inspect
from tests.networks import text_nets
from tests.networks.text_nets import Bag, Masked, Places
from tests.support.text_models import VOCABULARY, encoder, seeded, tokenizer_json

pytestmark = pytest.mark.usefixtures("warm_builds")

TEXT = "the cat sleeps and runs"
WORDS = {"words": len(VOCABULARY)}


def beside(folder: Path, network: nn.Module, **changed: Any) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer beside the weights of the network, with these parts of its file changed, and what to build."""
    made = json.loads(tokenizer_json(ends=False)) | changed
    (folder / "tokenizer.json").write_text(json.dumps(made))
    torch.save(network.state_dict(), folder / "saved.pth")
    arch = f"{text_nets.__file__}:{type(network).__name__}"
    given = {"source": folder / "saved.pth", "arch": arch, "arch_args": WORDS, "allow_code": True}
    return Tokenizer.from_file(str(folder / "tokenizer.json")), given


def padding(length: int, direction: str = "Right") -> dict[str, Any]:
    return {
        "strategy": {"Fixed": length}, "direction": direction, "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip


def truncation(length: int, direction: str = "Right") -> dict[str, Any]:
    return {"direction": direction, "max_length": length, "strategy": "LongestFirst", "stride": 0}


def probabilities(made: Bundle, text: str) -> Any:
    with flambeau.load(made.path, allow_code=True) as model:
        return model.predict(text).probabilities


def of_script(network: nn.Module, tokenizer: Tokenizer, text: str) -> Any:
    """What a script computes that gives the network what its tokenizer makes."""
    with torch.inference_mode():
        return network(torch.tensor([tokenizer.encode(text).ids]))[0].softmax(0).numpy()


@pytest.mark.long
def test_a_tokenizer_that_fills_texts_up_is_asked_about_and_each_way_answers(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    network = seeded(Bag(len(VOCABULARY)))
    tokenizer, given = beside(tmp_path, network, padding=padding(24))
    with pytest.raises(SourceError, match=r"fills every text up to 24 tokens.*--input-shape 24 .*--input-shape tokens"):
        built(**given)
    filled = probabilities(built(**given, input_shape=(24,)), TEXT)
    assert np.abs(filled - of_script(network, tokenizer, TEXT)).max() <= 1e-5
    tokenizer.no_padding()
    alone = probabilities(built(**given, input_shape=("tokens",)), TEXT)
    assert np.abs(alone - of_script(network, tokenizer, TEXT)).max() <= 1e-5
    assert np.abs(np.subtract(alone, filled)).max() > 1e-3


@pytest.mark.parametrize("direction", ["Left", "Right"])
def test_texts_are_cut_and_filled_up_at_the_end_that_the_tokenizer_says(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path, direction: str
) -> None:
    network = seeded(Places(len(VOCABULARY)))
    ends = {"padding": padding(6, direction), "truncation": truncation(6, direction)}
    tokenizer, given = beside(tmp_path, network, **ends)
    made = built(**given, input_shape=(6,), truncate=True)
    for text in ("a cat", "no", f"{TEXT} over the quick brown fox"):
        assert np.abs(probabilities(made, text) - of_script(network, tokenizer, text)).max() <= 1e-5


def test_token_types_are_those_of_the_tokenizer(built: Callable[..., Bundle], cache: Path, tmp_path: Path) -> None:
    network = encoder(tmp_path, normalise=False)
    made = json.loads((tmp_path / "tokenizer.json").read_text())
    made["post_processor"]["single"][1]["Sequence"]["type_id"] = 1
    made["padding"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    found = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(TEXT)
    with torch.inference_mode():
        given = [torch.tensor([each]) for each in (found.ids, found.attention_mask, found.type_ids)]
        expected = network(*given)[0].mean(0).numpy()
    with flambeau.load(built(tmp_path / "model.onnx").path) as model:
        assert np.abs(model.predict(TEXT).embedding - expected).max() <= 1e-5


def exported(folder: Path, config: Any) -> nn.Module:
    """A classifier of texts as an ONNX graph, with the `config.json` of Hugging Face's library beside it."""
    network = seeded(Masked(len(VOCABULARY)))
    (folder / "tokenizer.json").write_text(tokenizer_json(ends=True))
    (folder / "config.json").write_text(json.dumps(config))
    names, given = ["input_ids", "attention_mask"], torch.ones(2, 7, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "sequence"} for name in names} | {"logits": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter says that it is the older one
        torch.onnx.export(
            network, (given, given), folder / "model.onnx",
            dynamo=False, dynamic_axes=axes, input_names=names, output_names=["logits"],
        )  # fmt: skip
    return network


@pytest.mark.parametrize(
    ("config", "task", "names"),
    [
        ({"id2label": {"0": "joy", "1": "anger", "2": "fear"}}, "classification", ["joy", "anger", "fear"]),
        (
            {"id2label": {"0": "joy", "1": "anger", "2": "fear"}, "problem_type": "multi_label_classification"},
            "multi-label",
            ["joy", "anger", "fear"],
        ),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}}, "classification", None),
        ({"problem_type": "regression"}, "regression", None),
        ({"id2label": ["joy", "anger"], "problem_type": 3}, "classification", None),
        (["not", "of", "this", "library"], "classification", None),
    ],
)
def test_the_task_and_the_names_of_classes_are_those_of_config_json(
    built: Callable[..., Bundle], notes: list[str], cache: Path, tmp_path: Path, config: Any, task: str, names: Any
) -> None:
    exported(tmp_path, config)
    made = built(tmp_path / "model.onnx")
    assert made.manifest.task == task
    labels = made.labels()
    assert (None if labels is None else [label.name for label in labels]) == names
    assert any("config.json" in note for note in notes) == ("problem_type" in config and task != "classification")


def test_a_table_with_many_more_vectors_than_tokens_is_told(
    built: Callable[..., Bundle], notes: list[str], cache: Path, tmp_path: Path
) -> None:
    _, given = beside(tmp_path, seeded(Bag(30_000)))
    built(**{**given, "arch_args": {"words": 30_000}})
    assert any("makes 35 token ids, and the table of Bag has 30,000 vectors" in note for note in notes)


def test_weights_of_hugging_faces_beside_a_tokenizer_name_the_way_to_a_graph(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    _, given = beside(tmp_path, seeded(text_nets.Encoder(words=len(VOCABULARY))))
    way = f"optimum-cli export onnx --model {tmp_path} OUT"
    with pytest.raises(SourceError) as told:
        built(given["source"])
    assert way in str(told.value)
    assert way in inspect(tmp_path / "saved.pth").needs
    (tmp_path / "tokenizer.json").unlink()
    assert "optimum" not in inspect(tmp_path / "saved.pth").needs


def test_a_folder_with_weights_and_their_graph_names_the_graph(
    built: Callable[..., Bundle], cache: Path, tmp_path: Path
) -> None:
    """A sentence encoder's repository has both. The weights alone were named, and from them a way led to an export."""
    folder = tmp_path / "encoder"
    (folder / "onnx").mkdir(parents=True)
    graph = folder / "onnx" / "model.onnx"
    graph.write_bytes(b"")
    (folder / "config.json").write_text("{}")
    network, weights = seeded(text_nets.Encoder(words=len(VOCABULARY))), folder / "model.safetensors"
    beside(folder, network)[1]["source"].unlink()
    save_file(network.state_dict(), weights)
    with pytest.raises(SourceError, match=r"give the file in it: onnx/model\.onnx, model\.safetensors"):
        built(folder)
    with pytest.raises(SourceError) as told:
        built(weights)
    assert str(told.value).endswith(f"a graph, which is served over texts: flambeau serve {graph}")
