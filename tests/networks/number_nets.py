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


class Places(nn.Module):
    """Numbers of a row from -1 on, each a place for another operation; PyTorch refuses those that there are not."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.table = nn.EmbeddingBag(5, 2), nn.Parameter(torch.randn(5, 2))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        places = rows + 1
        found = [
            self.bag(places[:, :1]),
            torch.index_select(self.table, 0, places[:, 1]),
            places.float().gather(1, places[:, 2:3]),
            torch.zeros_like(places).scatter(1, places[:, 3:4], 1),
            nn.functional.one_hot(places[:, 4], 5),
        ]
        return torch.cat(found, 1).float()


class Mixed(nn.Module):
    """Columns of categories and of numbers in one tensor, as a table of data has them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(7, 3), nn.Embedding(4, 2)
        self.last = nn.Linear(8, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        looked_up = self.first(rows[:, 0].long()), self.second(rows[:, 2].long())
        found: torch.Tensor = self.last(torch.cat([*looked_up, rows[:, 1:2], rows[:, 3:]], 1))
        return found


class Tokens(nn.Module):
    """A transformer over tokens, whose mask says with 1 which of them count. One of zeros has no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 4)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1)
        self.last = nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        kept = mask.bool()
        steps = self.encoder(self.words(tokens), src_key_padding_mask=~kept)
        found: torch.Tensor = self.last((steps * kept[..., None]).sum(1))
        return found


class Added(nn.Module):
    """Attention whose mask becomes a number that is added to the scores, as in Hugging Face's models."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(20, 4), nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        steps = self.words(tokens)
        scores = steps @ steps.transpose(1, 2) + (1.0 - mask[:, None].float()) * torch.finfo(torch.float32).min
        found: torch.Tensor = self.last((scores.softmax(-1) @ steps)[:, 0])
        return found


class LastOf(nn.Module):
    """The last of so many steps as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, steps: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        found = self.lstm(steps)[0]
        at = (length - 1).view(-1, 1, 1).expand(-1, 1, found.shape[2])
        answer: torch.Tensor = self.last(found.gather(1, at).squeeze(1))
        return answer


class Packed(LastOf):
    def forward(self, steps: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(steps, length.cpu(), batch_first=True, enforce_sorted=False)
        found: torch.Tensor = self.last(self.lstm(packed)[1][0][-1])
        return found


class Padded(nn.Module):
    """Tokens up to the zeros behind them; of zeros alone there is no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 2, padding_idx=0)
        self.lstm, self.last = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        length = (tokens != 0).sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(self.words(tokens), length, batch_first=True, enforce_sorted=False)
        found: torch.Tensor = self.last(self.lstm(packed)[1][0][-1])
        return found


class Flagged(nn.Module):
    """A flag of true and false beside a category and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds, self.last = nn.Embedding(5, 3), nn.Linear(2, 3)

    def forward(self, kind: torch.Tensor, flag: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.where(flag[:, None], self.kinds(kind), self.last(rows))


class Offsets(nn.Module):
    """All texts in a row, and where each begins: a batch that is no rows."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 3)

    def forward(self, tokens: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.bag(tokens, offsets)
        return found
