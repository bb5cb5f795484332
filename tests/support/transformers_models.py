"""Untrained networks of Hugging Face's transformers as `save_pretrained` and `Trainer` write them, and what it computes
of them.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from flambeau.architectures import torchvision_compat
from tests.support.text_models import VOCABULARY, tokenizer_json

NAMES = {0: "rose", 1: "lily", 2: "fern"}
SIDE = 32
_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}

IMAGES: dict[str, dict[str, Any]] = {
    "ViT": {**_SMALL, "image_size": SIDE, "patch_size": 8},
    "DeiT": {**_SMALL, "image_size": SIDE, "patch_size": 8},
    "Swin": {"image_size": SIDE, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2],
             "window_size": 4},
    "ConvNext": {"image_size": SIDE, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "patch_size": 2},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "layer_type": "basic"},
    "Dinov2": {**_SMALL, "image_size": SIDE, "patch_size": 8},
    "MobileNetV2": {"image_size": SIDE, "depth_multiplier": 0.35},
}  # fmt: skip
"""Networks over images, and the arguments that make them small."""

_WORDS = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 22}
TEXTS: dict[str, dict[str, Any]] = {
    "Bert": {**_SMALL, **_WORDS},
    "DistilBert": {**_WORDS, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "Roberta": {**_SMALL, **_WORDS, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
    "XLMRoberta": {**_SMALL, **_WORDS, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
    "Camembert": {**_SMALL, **_WORDS, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
    "Albert": {**_SMALL, **_WORDS, "embedding_size": 16},
    "Electra": {**_SMALL, **_WORDS, "embedding_size": 16},
    "MPNet": {**_SMALL, **_WORDS, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
}
"""Networks over texts, and the arguments that make them small."""


def library() -> Any:
    """transformers, with the stand-ins for torchvision's operators that it imports."""
    torchvision_compat.declare_missing()
    import transformers

    return transformers


def saved(folder: Path, name: str, *, config: dict[str, Any], ending: str, **said: Any) -> Any:
    """A network as `save_pretrained` writes it. Its config says so much more; the network itself is returned."""
    transformers = library()
    torch.manual_seed(5)
    names = {"id2label": NAMES, "label2id": {word: place for place, word in NAMES.items()}} if ending != "Model" else {}
    network = getattr(transformers, name + ending)(getattr(transformers, f"{name}Config")(**config, **names, **said))
    for parameter in network.parameters():  # as they come, all answers are nearly alike
        parameter.data.normal_(0, 0.3)
    for key, buffer in network.named_buffers():
        if key.endswith("running_var"):
            buffer.fill_(0.7)
    network.eval().save_pretrained(folder)
    return network


def with_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer beside the weights, whose texts are neither cut nor filled up here."""
    (folder / "tokenizer.json").write_text(tokenizer_json(ends=True))
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.no_padding()
    return made


def changed(file: Path, **members: Any) -> None:
    """Other members of a JSON file; `None` removes one."""
    table = {**json.loads(file.read_text()), **members}
    file.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))


def logits(network: Any, processor: Any, image: Any) -> np.ndarray:
    """What transformers itself answers to an image."""
    with torch.inference_mode():
        return np.asarray(network(**processor(image, return_tensors="pt")).logits[0])


def of_tokens(network: Any, tokenizer: Tokenizer, text: str) -> Any:
    """What transformers itself computes of a text."""
    ids = torch.tensor([tokenizer.encode(text).ids])
    with torch.inference_mode():
        return network(input_ids=ids, attention_mask=torch.ones_like(ids))
