"""Models without a trace, whose layers bound their own gradients, with data that they train on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import dplip
from dplip.losses import ELBO, BinaryCrossEntropy, CrossEntropy, Heads, Huber, Loss

SIZE = 40


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.a(x)) * self.b(x))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.numbers, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, image: Tensor, numbers: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        return {"logits": self.head(self.image(image).relu().mean((2, 3)) * torch.tanh(self.numbers(numbers)) * scale)}


class Words(nn.Module):
    """A bag of words with positions, whose padded places count for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 6), nn.Parameter(torch.randn(7, 6) / 5)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.places) * mask[..., None]
        return self.head(x.sum(1) / mask.sum(1, keepdim=True).clamp_min(1))


class Encoder(nn.Module):
    """A transformer whose sequences come first, as torch has it by default."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        self.words, self.inner, self.head = nn.Embedding(20, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 20)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.inner(self.words(ids).transpose(0, 1)).transpose(0, 1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x)[0][:, -1])


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(9, 8), nn.Linear(4, 9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.down(x.flatten(1)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.up(z).reshape(x.shape), mean, log_variance


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.kind, self.size = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        h = h * torch.tanh(h)
        return {"kind": self.kind(h), "size": self.size(h)}


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Gated() for _ in range(2)])
        self.join, self.scale = nn.Linear(3, 6), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.join(checkpoint(self.blocks[0], x, use_reentrant=False))
        y: Tensor = checkpoint(lambda x: torch.tanh(self.scale * self.blocks[1](x)), x, use_reentrant=False)
        return y


class Tied(nn.Module):
    """The words' vectors serve as the head too."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = nn.Embedding(20, 6), nn.Linear(6, 6)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.words(ids)
        return F.linear(self.inner(h * torch.sigmoid(h)), self.words.weight)


@dataclass
class Case:
    """A model, its loss, and a function that draws the items of its data set."""

    model: Callable[[], nn.Module]
    loss: Loss
    item: Callable[[int], Any]


def _label(i: int) -> int:
    return i % 3


def _words(i: int) -> Any:
    length = 1 + i % 7
    return (torch.arange(7) * i % 20) * (torch.arange(7) < length), (torch.arange(7) < length).float()


CASES = {
    "a product": Case(Gated, CrossEntropy(), lambda i: (torch.randn(6), _label(i))),
    "two inputs": Case(TwoInputs, CrossEntropy(), lambda i: ((torch.randn(1, 5, 5), torch.randn(5)), _label(i))),
    "a dictionary": Case(
        TwoInputs,
        CrossEntropy(),
        lambda i: {"image": torch.randn(1, 5, 5), "numbers": torch.randn(5), "name": "x", "labels": _label(i)},
    ),
    "words": Case(Words, CrossEntropy(), lambda i: (*_words(i), _label(i))),
    "sequence first": Case(
        Encoder,
        CrossEntropy(classes_last=True, shift=True, ignore_index=-100),
        lambda i: ((torch.arange(6) * (i + 1)) % 20, (torch.arange(6) * (i + 1)) % 20),
    ),
    "recurrent": Case(Recurrent, CrossEntropy(), lambda i: (torch.randn(6, 5), _label(i))),
    "noise inside": Case(VAE, ELBO(Huber(), 2.0), lambda i: (x := torch.rand(1, 3, 3), x)),
    "two heads": Case(
        TwoHeads,
        Heads({"kind": CrossEntropy(), "size": (Huber(), 0.5)}),
        lambda i: {"x": torch.randn(6), "labels": {"kind": torch.tensor(_label(i)), "size": torch.randn(1)}},
    ),
    "checkpoints": Case(Checkpointed, CrossEntropy(), lambda i: (torch.randn(6), _label(i))),
    "tied": Case(
        Tied,
        CrossEntropy(classes_last=True),
        lambda i: ((torch.arange(5) + i) % 20, (torch.arange(5) + i + 1) % 20),
    ),
    "several labels": Case(Gated, BinaryCrossEntropy(), lambda i: (torch.randn(6), (torch.randn(3) > 0).float())),
}


def items(case: Case, count: int = SIZE, seed: int = 0) -> list[Any]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [case.item(i) for i in range(count)]


def private(model: nn.Module, loss: Loss, data: list[Any], batch_size: int = 10, **options: Any) -> Any:
    """``make_private`` of a model whose layers have been made to bound their gradients."""
    dplip.nn.bound_gradients(model.train(), options.pop("radius", 1.0))
    dataset: Any = data
    return dplip.PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(dataset, batch_size, collate_fn=options.pop("collate_fn", None)),
        criterion=loss,
        noise_multiplier=options.pop("noise_multiplier", 1.0),
        **options,
    )
