"""Networks over token ids, and an encoder in the way of BERT, as a user would write them."""

import math

import torch
from torch import nn


class Bag(nn.Module):
    """A classifier over the mean of the vectors of its tokens, of any number."""

    def __init__(self, words: int = 40, classes: int = 3) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(words, 8, mode="mean")
        self.last = nn.Linear(8, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.table(tokens))
        return found


class Recurrent(nn.Module):
    """A classifier over the last state of an LSTM."""

    def __init__(self, words: int = 40, classes: int = 2) -> None:
        super().__init__()
        self.table = nn.Embedding(words, 8)
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.last = nn.Linear(16, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.lstm(self.table(tokens))[0][:, -1])
        return found


class Places(nn.Module):
    """A classifier for which it counts where in a row of six a token stands."""

    def __init__(self, words: int = 40, classes: int = 2) -> None:
        super().__init__()
        self.table = nn.Embedding(words, 4)
        self.last = nn.Linear(24, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.table(tokens).flatten(1))
        return found


class Masked(nn.Module):
    """A classifier over the mean of the tokens that count, as Hugging Face's exports take them."""

    def __init__(self, words: int = 40, classes: int = 3) -> None:
        super().__init__()
        self.table = nn.Embedding(words, 8)
        self.last = nn.Linear(8, classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        counted = attention_mask[..., None].float()
        found: torch.Tensor = self.last((self.table(input_ids) * counted).sum(1) / counted.sum(1))
        return found


class Layer(nn.Module):
    """One layer of the encoder."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm, self.last_norm = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.wide, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape

        def split(part: torch.Tensor) -> torch.Tensor:
            return part.reshape(rows, length, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = query @ key.transpose(2, 3) / math.sqrt(width / self.heads) + hidden
        mixed = (scores.softmax(3) @ value).transpose(1, 2).reshape(rows, length, width)
        x = self.norm(x + self.out(mixed))
        found: torch.Tensor = self.last_norm(x + self.narrow(nn.functional.gelu(self.wide(x))))
        return found


class Encoder(nn.Module):
    """Token ids, a mask and sentence numbers, int64 (rows, tokens), to a vector for every token."""

    def __init__(
        self, words: int = 40, width: int = 16, layers: int = 2, heads: int = 2, inner: int = 32, most: int = 64
    ) -> None:
        super().__init__()
        self.words, self.places, self.types = (
            nn.Embedding(words, width),
            nn.Embedding(most, width),
            nn.Embedding(2, width),
        )
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        places = torch.arange(input_ids.shape[1])
        x: torch.Tensor = self.norm(self.words(input_ids) + self.places(places) + self.types(token_type_ids))
        hidden = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        for layer in self.layers:
            x = layer(x, hidden)
        return x
