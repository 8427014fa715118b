"""Activation checkpointing: what runs again in the backward pass bounds gradients as it did the first time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import dplip
from dplip.errors import MixedExamplesError
from dplip.losses import CrossEntropy

X, Y = torch.randn(40, 5, 8), torch.arange(40) % 2
IDS = torch.arange(40 * 5).reshape(40, 5) % 20
LOSS = CrossEntropy()
Run = Callable[..., Any]


def again(function: Run, *args: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False)


def once(function: Run, *args: Any) -> Any:
    return function(*args)


LAYERS: dict[str, Callable[[], Any]] = {
    "a": lambda: nn.Linear(8, 8),
    "n": lambda: nn.LayerNorm(8),
    "t": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0),
    "r": lambda: nn.GRU(8, 8),
    "e": lambda: nn.Embedding(20, 8),
    "w": lambda: nn.Parameter(torch.randn(8, 8)),
    "p": lambda: nn.Parameter(torch.randn(8)),
    "d": lambda: nn.Dropout(0.5),
    "o": lambda: nn.Linear(8, 2),
}
TABLE = torch.arange(25).reshape(5, 5) % 20

# The layers of each model, and its code; each asks where the examples are, which no shape would tell.
CASES: dict[str, tuple[str, Callable[[Any, Run, Tensor], Tensor]]] = {
    "tokens first": ("a", lambda m, run, x: run(m.a, x.transpose(0, 1)).tanh().mean(0)),
    "rows of tokens": (
        "an",
        lambda m, run, x: run(lambda x: m.n(m.a(x)).tanh(), x.flatten(0, 1)).view(len(x), 5, 8).mean(1),
    ),
    "an encoder": ("t", lambda m, run, x: run(lambda x: m.t(x.transpose(0, 1)), x).mean(0)),
    "recurrent": ("r", lambda m, run, x: run(lambda x: m.r(x.transpose(0, 1))[0], x).mean(0)),
    "words": ("ae", lambda m, run, ids: run(lambda ids: m.a(m.e(ids.T)).tanh(), ids).mean(0)),
    "positions": ("ae", lambda m, run, x: run(lambda x: m.a(x + m.e(TABLE[0])).tanh(), x).mean(1)),
    "relative positions": (
        "ae",
        lambda m, run, x: run(lambda x: (x @ x.mT + m.e(TABLE).mean(-1)).softmax(-1) @ m.a(x), x).mean(1),
    ),
    "a product": ("wp", lambda m, run, x: run(lambda x: (m.w @ x.mean(1).T).T.tanh() * m.p, x)),
    "one in another": (
        "anp",
        lambda m, run, x: run(lambda x: m.n(run(lambda x: m.a(x.transpose(0, 1)), x) * m.p).tanh(), x).mean(0),
    ),
    "masks": ("ad", lambda m, run, x: run(lambda x: m.d(m.a(x.transpose(0, 1)).tanh()), x).mean(0)),
    "of norms alone": ("ad", lambda m, run, x: run(lambda x: m.d(m.a(m.a(x))), x).mean(1)),
}


class Model(nn.Module):
    def __init__(self, layers: str, code: Callable[[Any, Run, Tensor], Tensor], run: Run) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in layers + "o":
            setattr(self, name, LAYERS[name]())
        self.code, self.run = code, run

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.o(self.code(self, self.run, x))
        return out


def private(model: nn.Module, data: Tensor = X) -> Any:
    return dplip.PrivacyEngine().make_private(
        module=dplip.nn.bound_gradients(model),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(data, Y), 8),
        criterion=LOSS,
        noise_multiplier=1.0,
        seed=0,
    )


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_steps_are_those_without_checkpoints(name):
    layers, code = CASES[name]
    found = []
    for run in (once, again):
        model, optimizer, loader = private(Model(layers, code, run), IDS if name == "words" else X)
        for x, y in loader:  # batches as large as the sequences are long, or the values wide, among others
            optimizer.zero_grad()
            LOSS(model(x), y).backward()
            optimizer.step()
        found.append([optimizer.sensitivities().total, *(p.detach() for p in model.parameters())])
    assert found[0][0] == found[1][0]
    assert "d" in layers or all(torch.equal(p, q) for p, q in zip(found[0][1:], found[1][1:], strict=True))


def test_code_that_does_otherwise_the_second_time_is_refused():
    def fickle(m: Any, run: Run, x: Tensor) -> Tensor:
        def block(x: Tensor) -> Tensor:
            second = torch._C._current_graph_task_id() != -1
            return m.a(x.transpose(0, 1)[: 4 if second else 5])

        y: Tensor = run(block, x).mean(0)  # and then what no trace has a rule for
        return y.cumsum(1)

    with pytest.raises(MixedExamplesError, match=r"ran again.*shape \(4, \d, 8\), where it had \(5, \d, 8\).*counters"):
        private(Model("a", fickle, again))
