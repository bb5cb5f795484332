"""The small networks of the screenshots over texts, sounds and colours: one learns from a few sentences, the others are
written down. Their answers are true, if simple.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.numpy import save_file
from torch import nn
from torch.nn import functional

from flambeau.bundle import storage
from flambeau.bundle.pipeline_config import AudioConfig, TextConfig
from flambeau.bundle.storage import Activation, ImageConfig, Manifest, Source
from flambeau.items import FREE
from flambeau.types import Label, TensorSpec
from tests.networks.sound_nets import Pitch
from tests.support import task_models, text_models

MOODS = ("praise", "complaint", "neither")
SENTENCES = (
    ("a wonderful film", 0), ("the film was good", 0), ("this is a good cat", 0), ("what a wonderful dog", 0),
    ("it was wonderful and good", 0), ("a dull film", 1), ("the film was bad", 1), ("this dog is bad", 1),
    ("it was dull and bad", 1), ("what a dull film", 1), ("the cat sleeps", 2), ("the quick brown fox jumps", 2),
    ("it runs over the lazy dog", 2), ("this is the cat of the dog", 2), ("the film is in a film", 2),
)  # fmt: skip
SENTENCE = "What a wonderful film, and the fox in it was good"
TONES = ("low", "middle", "high")
RATE = 16_000
LOOKS = ("bright", "cold colours", "dark", "strong contrast", "warm colours")


class Words(nn.Module):
    """Which mood a text has, by the mean of its words' vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(len(text_models.VOCABULARY), 8), nn.Linear(8, len(MOODS))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.table(tokens).mean(1))
        return found


class Looks(nn.Module):
    """What may be said of a picture's colours: a number for each of `LOOKS`, or how bright it is, in percent."""

    def __init__(self, *, brightness: bool) -> None:
        super().__init__()
        self.brightness = brightness
        self.mean, self.std = (
            torch.tensor(each)[None, :, None, None] for each in (ImageConfig().mean, ImageConfig().std)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels = image * self.std + self.mean
        bright = pixels.mean(1)
        middle = bright.mean((1, 2))
        if self.brightness:
            return 100 * middle[:, None]
        apart = (bright - middle[:, None, None]).abs().mean((1, 2))
        warm = (pixels[:, 0] - pixels[:, 2]).mean((1, 2))
        return torch.stack([middle - 0.45, -0.03 - warm, 0.35 - middle, apart - 0.2, warm - 0.03], 1) * 12


def moods() -> nn.Module:
    """The network, once it knows the sentences."""
    torch.manual_seed(0)
    network = Words()
    training = torch.optim.Adam(network.parameters(), 0.05)
    for _ in range(60):
        training.zero_grad()
        for text, mood in SENTENCES:
            ids = torch.tensor([text_models.tokens(text, ends=False)])
            functional.cross_entropy(network(ids), torch.tensor([mood])).backward()
        training.step()
    return network.eval()


def write(
    network: nn.Module, folder: Path, config: TextConfig | AudioConfig, given: torch.Tensor, spec: TensorSpec,
    names: Sequence[str],
) -> None:  # fmt: skip
    """The bundle of a classifier, as a build writes it, with its answer to what is given as a probe."""
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter says that it is one
        torch.onnx.export(
            network, (given,), folder / storage.ONNX, input_names=[spec.name], output_names=["scores"], dynamo=False,
            dynamic_axes={spec.name: {0: "rows", given.dim() - 1: "length"}, "scores": {0: "rows"}},
        )  # fmt: skip
    with torch.inference_mode():
        scores = network(given).numpy()
    save_file({f"input.{spec.name}": given.numpy(), "output.scores": scores}, folder / storage.PROBES)
    storage.write_labels(folder, tuple(Label(str(place), name) for place, name in enumerate(names)))
    if isinstance(config, TextConfig):
        (folder / storage.TOKENIZER).write_text(text_models.tokenizer_json(ends=False))
    manifest = Manifest(
        format=storage.FORMAT, name=folder.name, flambeau="0",
        source=Source(kind="checkpoint", name=f"{folder.name}.pth"), pipeline=config, engine="onnxruntime",
        inputs=(spec,), outputs=(TensorSpec("scores", "float32", (len(names),)),), task="classification",
        activation=Activation("softmax", known="said"),
    )  # fmt: skip
    storage.write_manifest(folder, manifest)


def chord(file: Path) -> None:
    """A low tone over a weaker middle one, two seconds long."""
    time = np.arange(2 * RATE) / RATE
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * 300 * time) + 0.14 * np.sin(2 * np.pi * 1000 * time), RATE)


def make(folder: Path) -> list[Path]:
    """A classifier over texts, one over sounds, one of several labels, and one number, as bundles in that folder."""
    words = TensorSpec("tokens", "int64", (FREE,), below=len(text_models.VOCABULARY))
    ids = torch.tensor([text_models.tokens(SENTENCE, ends=False)])
    write(moods(), folder / "moods", TextConfig(ids="tokens", most=24, example=SENTENCE), ids, words, MOODS)
    wave = torch.randn(1, 1, RATE, generator=torch.Generator().manual_seed(0)) / 10
    write(Pitch().eval(), folder / "pitch", AudioConfig(RATE), wave, TensorSpec("wave", "float32", (1, FREE)), TONES)
    pictures = ImageConfig(resize=224, crop=224, threshold=0.5)
    task_models.make(
        folder / "looks", Looks(brightness=False), task="multi-label", activation=Activation("sigmoid", known="said"),
        labels=LOOKS, pipeline=pictures,
    )  # fmt: skip
    task_models.make(
        folder / "brightness", Looks(brightness=True), task="regression", activation=Activation("none", known="said"),
        pipeline=pictures,
    )  # fmt: skip
    return [folder / name for name in ("moods", "pitch", "looks", "brightness")]
