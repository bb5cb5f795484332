"""Sources of networks over texts: a tokenizer of whole words, a classifier over token ids, and a sentence encoder."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from tests.networks.text_nets import Encoder

WORDS = (
    "a", "an", "the", "is", "was", "i", "it", "film", "cat", "dog", "good", "bad", "sleeps", "runs", "wonderful",
    "dull", "not", "and", "or", "quick", "brown", "fox", "lazy", "over", "jumps", "this", "what", "of", "in", "for",
    "no",
)  # fmt: skip
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = {word: place for place, word in enumerate((*SPECIAL, *WORDS))}


def tokenizer_json(*, ends: bool) -> str:
    """A tokenizer of words in lower case; with `ends`, texts begin with [CLS] and end with [SEP]. As the library writes
    it, with the truncation that a training script left in it, and with `ends` its padding."""
    special = [
        {"id": place, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True} for place, name in enumerate(SPECIAL)
    ]  # fmt: skip
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [VOCABULARY[name]], "tokens": [name]} for name in SPECIAL[2:]},
    }  # fmt: skip
    padding = {
        "strategy": {"Fixed": 24}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip
    truncation = {"direction": "Right", "max_length": 24, "strategy": "LongestFirst", "stride": 0}
    return json.dumps({
        "version": "1.0", "truncation": truncation, "padding": padding if ends else None, "added_tokens": special,
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": template if ends else None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "[UNK]"},
    })  # fmt: skip


def tokens(text: str, *, ends: bool = True) -> list[int]:
    """What the library itself makes of a text, neither cut nor filled up."""
    made = Tokenizer.from_str(tokenizer_json(ends=ends))
    made.no_padding()
    made.no_truncation()
    return list(made.encode(text).ids)


def seeded(network: nn.Module, seed: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.4)
    return network.eval()


def encoder(folder: Path, *, pooling: str | None = "mean", normalise: bool = True, layout: bool = True) -> nn.Module:
    """A sentence encoder as ONNX, laid out as sentence-transformers lays it out; gives PyTorch's own network."""
    network = seeded(Encoder(words=len(VOCABULARY)))
    folder.mkdir(parents=True, exist_ok=True)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    given = torch.ones(2, 7, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "sequence"} for name in (*names, "last_hidden_state")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter says that it is one: it needs a tenth of the other's time
        torch.onnx.export(
            network, (given, given, torch.zeros_like(given)), folder / "model.onnx",
            dynamo=False, dynamic_axes=axes, input_names=names, output_names=["last_hidden_state"],
        )  # fmt: skip
    (folder / "tokenizer.json").write_text(tokenizer_json(ends=True))
    if layout:
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')
        kinds = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
        modules = [{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
        (folder / "modules.json").write_text(json.dumps(modules))
    if pooling:
        (folder / "1_Pooling").mkdir()
        modes = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": False, pooling_key(pooling): True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return network


def pooling_key(pooling: str) -> str:
    return {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}[
        pooling
    ]


def embedded(network: nn.Module, text: str, *, pooling: str = "mean", most: int = 20) -> np.ndarray:
    """The vector of one text alone, by PyTorch and by the formulas of sentence-transformers."""
    ids = torch.tensor([tokens(text)[:most]])
    with torch.inference_mode():
        hidden = network(ids, torch.ones_like(ids), torch.zeros_like(ids))[0]
    vector = hidden.mean(0) if pooling == "mean" else hidden[0]
    array: np.ndarray = nn.functional.normalize(vector, dim=0).numpy()
    return array
