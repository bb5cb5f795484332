"""Networks over images as people train and save them: what stands at their end is what differs."""

import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """Five scores; `end` is what is done with them, `body` and `head` what they are made of."""

    classes = 5

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, stride=4)
        self.fc: nn.Module = nn.Linear(8 * 16, self.classes)

    def forward(self, images: torch.Tensor) -> object:
        return self.end(self.fc(self.body(self.conv(images))))

    def body(self, maps: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(torch.relu(maps), 4).flatten(1) * 4

    def end(self, scores: torch.Tensor) -> object:
        return scores


class Softmax(Net):
    def end(self, scores: torch.Tensor) -> object:
        return F.softmax(scores, dim=1)


class SoftmaxLayer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Softmax(dim=-1)

    def end(self, scores: torch.Tensor) -> object:
        return self.last(scores[:, :, None, None].squeeze(3).squeeze(2))


class HandmadeSoftmax(Net):
    def end(self, scores: torch.Tensor) -> object:
        return scores.exp() / scores.exp().sum(1, keepdim=True)


class LogSoftmax(Net):
    def end(self, scores: torch.Tensor) -> object:
        return F.log_softmax(scores, dim=1)


class HandmadeLogSoftmax(Net):
    def end(self, scores: torch.Tensor) -> object:
        return scores - scores.logsumexp(1, keepdim=True)


class SigmoidInPlace(Net):
    """Written through a view: the tensor that is returned was made by the linear layer."""

    def end(self, scores: torch.Tensor) -> object:
        scores.view(-1).sigmoid_()
        return scores


class SigmoidOfAPart(Net):
    def end(self, scores: torch.Tensor) -> object:
        scores[:, 1:].sigmoid_()
        return scores


class Sigmoid(Net):
    def end(self, scores: torch.Tensor) -> object:
        return torch.sigmoid(scores)


class OneScore(Net):
    classes = 1


class OneSigmoid(Sigmoid):
    classes = 1


class OneSqueezed(Net):
    classes = 1

    def end(self, scores: torch.Tensor) -> object:
        return scores.squeeze()


class SoftmaxOverRows(Net):
    def end(self, scores: torch.Tensor) -> object:
        return F.softmax(scores, dim=0)


class HardSigmoid(Net):
    def end(self, scores: torch.Tensor) -> object:
        return F.hardsigmoid(scores)


class ClippedSigmoid(Net):
    """As people keep logarithms finite."""

    def end(self, scores: torch.Tensor) -> object:
        return torch.sigmoid(scores).clamp(1e-4, 1 - 1e-4)


class ClippedSoftmax(Net):
    def end(self, scores: torch.Tensor) -> object:
        return F.softmax(scores, dim=1).clamp(0.15, 0.85)


class MeanOfSigmoids(Net):
    def end(self, scores: torch.Tensor) -> object:
        return (torch.sigmoid(scores) + torch.sigmoid(scores * 2)) / 2


class LogSigmoid(Net):
    def end(self, scores: torch.Tensor) -> object:
        return F.logsigmoid(scores)


class Percent(Net):
    def end(self, scores: torch.Tensor) -> object:
        return F.softmax(scores, dim=1) * 100


class PartOfSoftmax(Net):
    """Without the class of the background."""

    def end(self, scores: torch.Tensor) -> object:
        return F.softmax(scores, dim=1)[:, 1:]


class ScoresAndSigmoid(Net):
    """Two kinds of numbers in one row."""

    def end(self, scores: torch.Tensor) -> object:
        return torch.cat([scores[:, 1:], torch.sigmoid(scores[:, :1])], 1)


class TwoHeads(Net):
    """Numbers of one kind, joined."""

    def end(self, scores: torch.Tensor) -> object:
        return torch.cat([scores, scores * 2], 1)


class Tanh(Net):
    def end(self, scores: torch.Tensor) -> object:
        return torch.tanh(scores)


class Normalised(Net):
    def end(self, scores: torch.Tensor) -> object:
        return F.normalize(scores)


class NormAfterLinear(Net):
    """As FaceNet's last_bn."""

    def __init__(self) -> None:
        super().__init__()
        self.last_bn = nn.BatchNorm1d(5)

    def end(self, scores: torch.Tensor) -> object:
        return self.last_bn(scores)


class WithoutHead(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Identity()


class WithoutActivation(Net):
    """Scores, and a place for an activation that was left empty."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.Identity()

    def end(self, scores: torch.Tensor) -> object:
        return self.activation(scores)


class Pooled(Net):
    def __init__(self) -> None:
        super().__init__()
        del self.fc

    def forward(self, images: torch.Tensor) -> object:
        return self.conv(images).mean((2, 3))


class ConvolutionalHead(Net):
    """As SqueezeNet: a score for every place, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(8, 5, 1)

    def body(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(maps)

    def end(self, scores: torch.Tensor) -> object:
        return F.adaptive_avg_pool2d(scores, 1).flatten(1)


class OnePlaceHead(ConvolutionalHead):
    """A convolution at one place is a linear layer; `.squeeze()` takes the row axis with it where there is one row."""

    def body(self, maps: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(torch.relu(maps), 1)

    def end(self, scores: torch.Tensor) -> object:
        return scores.squeeze()


class Undecided(Net):
    """A branch that depends on the numbers: no exporter takes it."""

    def end(self, scores: torch.Tensor) -> object:
        return F.softmax(scores if scores.sum() > 0 else scores * 2, dim=1)


class BatchNorm(Net):
    """W6: normalised by what is in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8, track_running_stats=False)

    def body(self, maps: torch.Tensor) -> torch.Tensor:
        return super().body(self.norm(maps))


class MeanOfRows(Net):
    def end(self, scores: torch.Tensor) -> object:
        return scores - 0.1 * scores.mean(0)


class RowsAttend(Net):
    def end(self, scores: torch.Tensor) -> object:
        return torch.softmax(scores @ scores.T, dim=1) @ scores


class SeededInside(Net):
    """Dropout with the same seed every time: the same answer to the same batch, and rows still differ in company."""

    def end(self, scores: torch.Tensor) -> object:
        torch.manual_seed(3)
        return F.dropout(scores, 0.3, training=True)


class AlwaysDropping(Net):
    def end(self, scores: torch.Tensor) -> object:
        return F.dropout(scores, 0.2)


class Noisy(Net):
    def end(self, scores: torch.Tensor) -> object:
        return scores + 0.01 * torch.randn_like(scores)


class Remembers(Net):
    """A state that is carried from call to call, and back again after two."""

    def __init__(self) -> None:
        super().__init__()
        self.sign = 1.0

    def end(self, scores: torch.Tensor) -> object:
        self.sign = -self.sign
        return scores * self.sign


class NeedsCompany(Net):
    """`BatchNorm1d` over what is in the batch: one row has no deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5, track_running_stats=False)

    def end(self, scores: torch.Tensor) -> object:
        return self.norm(scores)


class Broken(Net):
    def end(self, scores: torch.Tensor) -> object:
        return scores / 0.0 - scores / 0.0


class ScoresAndFeatures(Net):
    def end(self, scores: torch.Tensor) -> object:
        return scores, torch.cat([scores, scores], 1)


class ScoresAndProbabilities(Net):
    def end(self, scores: torch.Tensor) -> object:
        return {"logits": scores, "scores": {"softmax": F.softmax(scores, 1)}}


class OneInADict(Net):
    def end(self, scores: torch.Tensor) -> object:
        return {"loss": None, "logits": scores}


class NoTensor(Net):
    def end(self, scores: torch.Tensor) -> object:
        return "cat"
