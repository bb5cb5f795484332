"""The classes of the corpus: networks that people write, and Python models that serve what has no other way.

The corpus names them to `--arch FILE:CLASS`, and pickles some of them, so this file is somebody's own code: it imports
torch, and nothing of Flambeau but the base class of a Python model.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

import flambeau

HERE = Path(__file__).parent
"""The folder of the weights. A bundle has a copy of this file, so the corpus writes the folder in when it copies it."""


class Digits(nn.Module):
    """28 x 28 grey pixels, as for MNIST, to ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.conv2 = nn.Conv2d(4, 8, 3)
        self.fc1 = nn.Linear(8 * 5 * 5, 16)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, images: Any) -> Any:
        features = functional.max_pool2d(functional.relu(self.conv1(images)), 2)
        features = functional.max_pool2d(functional.relu(self.conv2(features)), 2)
        return self.fc2(functional.relu(self.fc1(features.flatten(1))))


class Norms(nn.Module):
    """Numbers through a norm first: the places between have no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layers(rows)


class Cut(nn.Module):
    """The children of a ResNet without its last layer, and a layer of one's own: a form of many tutorials."""

    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(body.children())[:-1])
        self.fc = nn.Linear(512, classes)

    def forward(self, images: Any) -> Any:
        return self.fc(self.features(images).flatten(1))


class ConcatPool(nn.Module):
    """fastai's AdaptiveConcatPool2d."""

    def forward(self, features: Any) -> Any:
        pools = functional.adaptive_max_pool2d, functional.adaptive_avg_pool2d
        return torch.cat([pool(features, 1) for pool in pools], 1)


def fastai(classes: int = 3) -> nn.Module:
    """What `vision_learner(dls, resnet18)` trains: the children of the body, and fastai's head."""
    from torchvision import models

    return nn.Sequential(
        nn.Sequential(*list(models.resnet18().children())[:-2]),
        nn.Sequential(
            ConcatPool(), nn.Flatten(),
            nn.BatchNorm1d(1024), nn.Dropout(0.25), nn.Linear(1024, 512, bias=False), nn.ReLU(),
            nn.BatchNorm1d(512), nn.Dropout(0.5), nn.Linear(512, classes, bias=False),
        ),
    )  # fmt: skip


class Wave(nn.Module):
    """Two channels of a signal, 64 samples long."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 5)
        self.out = nn.Linear(4, 3)

    def forward(self, signals: Any) -> Any:
        return self.out(functional.relu(self.conv(signals)).mean(2))


class Steps(nn.Module):
    """A series of ten steps of four numbers through an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.fc = nn.Linear(6, 2)

    def forward(self, series: Any) -> Any:
        return self.fc(self.lstm(series)[0][:, -1])


class Attending(nn.Module):
    """A transformer over ten steps of eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.fc = nn.Linear(8, 2)

    def forward(self, series: Any) -> Any:
        return self.fc(self.encoder(series).mean(1))


class Words(nn.Module):
    """Token numbers to two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 8)
        self.gru = nn.GRU(8, 6, batch_first=True)
        self.fc = nn.Linear(6, 2)

    def forward(self, tokens: Any) -> Any:
        return self.fc(self.gru(self.embedding(tokens))[0][:, -1])


class Pair(nn.Module):
    """Numbers to a tuple: class scores, and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)
        self.value = nn.Linear(4, 1)

    def forward(self, rows: Any) -> Any:
        return self.line(rows), self.value(rows)


class Named(Pair):
    """The same, with names for its outputs."""

    def forward(self, rows: Any) -> Any:
        return {"scores": self.line(rows), "value": self.value(rows)}


class Two(nn.Module):
    """Two inputs, one output."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 3)
        self.right = nn.Linear(2, 3)

    def forward(self, left: Any, right: Any) -> Any:
        return self.left(left) + self.right(right)


class Noisy(nn.Module):
    """Dropout that evaluation mode does not stop."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 2)
        self.line = nn.Linear(6, 3)

    def forward(self, rows: Any) -> Any:
        return functional.dropout(self.line(self.conv(rows[:, None]).flatten(1)), 0.5)


class RowsTogether(nn.Module):
    """A norm over the rows of a batch, which needs more than one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)
        self.line = nn.Linear(4, 3)

    def forward(self, rows: Any) -> Any:
        return self.line(self.norm(rows))


class Squeezed(nn.Module):
    """Answers one row without its axis."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)

    def forward(self, rows: Any) -> Any:
        return self.line(rows).squeeze()


class Ending(nn.Module):
    """A small network of images that ends in an activation of its own."""

    END: ClassVar[nn.Module]

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Any) -> Any:
        return self.END(self.fc(functional.relu(self.conv(images)).mean((2, 3))))


class EndsInSoftmax(Ending):
    END = nn.Softmax(1)


class EndsInLogSoftmax(Ending):
    END = nn.LogSoftmax(1)


class EndsInSigmoid(Ending):
    END = nn.Sigmoid()


class Strangers(nn.Module):
    """A norm of images over the batch: an answer would depend on who else asks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)
        self.fc = nn.Linear(8, 3)

    def forward(self, images: Any) -> Any:
        return self.fc(functional.relu(self.norm(self.conv(images))).mean((2, 3)))


class _Served(flambeau.PythonModel):
    """A network of this module with the weights beside this file, in a Python model."""

    network: ClassVar[type[nn.Module]]
    file: ClassVar[str]

    def load(self) -> None:
        self.net = self.network().eval()
        self.net.load_state_dict(torch.load(HERE / self.file, weights_only=True))

    def predict(self, batch: list[Any]) -> list[Any]:
        with torch.inference_mode():
            return [self.answer(item) for item in batch]

    def answer(self, item: Any) -> Any:
        return self.net(torch.tensor([item]))[0].tolist()


class ServedWords(_Served):
    network, file = Words, "words.pth"


class ServedVectors(flambeau.PythonModel):
    """The vector of a word's number."""

    def load(self) -> None:
        self.table = torch.load(HERE / "vectors.pth", weights_only=True)["embedding.weight"]

    def predict(self, batch: list[Any]) -> list[Any]:
        return [self.table[item].tolist() for item in batch]
