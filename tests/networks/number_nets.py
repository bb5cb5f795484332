"""Networks over numbers, as a user would write them."""

import torch
from torch import nn


class Tagger(nn.Module):  # (steps, rows, 2), as an LSTM takes it unless batch_first=True is said
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(2, 4), nn.Linear(4, 3)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.lstm(steps)[0])
        return found


class Last(Tagger):
    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        return super().forward(steps)[-1]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.TransformerEncoderLayer(4, 2, 8, 0.0), nn.Linear(4, 3)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.layer(steps))
        return found


class OverTheRows(nn.Module):  # its rows depend on each other, and so do its steps
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(steps)
        return (found - found.mean(0)) * found.mean(1, keepdim=True)


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.max() > 100:
            rows = rows / 255
        found: torch.Tensor = self.layer(rows)
        return found


class Columns(nn.Module):
    """Three columns: two looked up in tables of unlike sizes, and a year between them that is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(10, 3), nn.Embedding(5, 3)
        self.last = nn.Linear(3, 1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.first(rows[:, 0]) * self.second(rows[:, 2])) + rows[:, 1:2] / 1000
        return found


class Rating(nn.Module):
    """Of a user for an item, by their numbers, and by what else is known."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(10, 4), nn.Embedding(20, 4)
        self.last = nn.Linear(2, 1)

    def forward(self, user: torch.Tensor, item: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = (self.users(user) * self.items(item)).sum(-1, keepdim=True) + self.last(known)
        return found


class Shifted(nn.Module):
    """A table whose first place is for -1, which stands for what is missing."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.table(rows[:, 0] + 1)
        return found


class Masked(nn.Module):
    """Attention to those steps that a mask of true and false says; one of numbers would be added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        attended = nn.functional.scaled_dot_product_attention(steps, steps, steps, attn_mask=mask[:, None])
        found: torch.Tensor = self.last(attended.mean(1))
        return found


class Filled(Masked):
    def forward(self, steps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super().forward(steps.masked_fill(~mask[..., None], 0), mask)
