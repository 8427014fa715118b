"""What new users type, with models and data of their own: each trains, or is refused in words that lead on."""

import warnings
from collections.abc import Callable
from typing import Any

import pandas
import pytest
import torch
from opacus.utils.batch_memory_manager import BatchMemoryManager
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import dplip
from dplip.data import Padding
from dplip.errors import DPLipError

SIZE = 40
X, Y = torch.rand(SIZE, 8), torch.arange(SIZE) % 2
SEQUENCES = torch.rand(SIZE, 5, 8)
IMAGES = torch.rand(SIZE, 3, 16, 16)
IDS = torch.randint(0, 50, (SIZE, 12))
LOSS = dplip.losses.CrossEntropy(temperature=4.0, normalize=True)


class Model(nn.Module):
    """A module of layers and a function."""

    def __init__(self, function: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        return self.function(self, *inputs, **named)


def mlp(outputs: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, outputs))


def private(model: nn.Module, data: Any, loss: Any = LOSS, collate: Any = None, **keywords: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(data, 10, collate_fn=collate)
    keywords = {"criterion": loss, "noise_multiplier": 1.0, **keywords}
    return dplip.PrivacyEngine().make_private(module=model, optimizer=optimizer, data_loader=loader, **keywords)


def recurrent(kind: Any) -> Model:
    return Model(lambda m, x: m.o(m.r(x)[0][:, -1]), r=kind(8, 8, batch_first=True), o=nn.Linear(8, 2))


def encoder() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


def residual(affine: bool) -> Model:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.n(m.c(x))
        y += x.mean(1, keepdim=True)  # as torchvision's ResNet adds
        return m.o(m.relu(y).mean((2, 3)))

    layers = {"c": nn.Conv2d(3, 4, 3, 1, 1, bias=False), "n": nn.GroupNorm(2, 4, affine=affine), "o": nn.Linear(4, 2)}
    return Model(forward, relu=nn.ReLU(inplace=True), **layers)


def patches() -> Model:
    """A vision transformer, with a class token and positions as bare parameters, and an assertion on its input."""

    def forward(m: Any, x: Tensor) -> Tensor:
        torch._assert(x.shape[2] == 16, "wrong size")
        tokens = m.p(x).flatten(2).mT
        tokens = torch.cat([m.token.expand(len(x), -1, -1), tokens], 1) + m.positions
        return m.o(m.t(tokens)[:, 0])

    bare = {"token": nn.Parameter(torch.zeros(1, 1, 8)), "positions": nn.Parameter(torch.randn(1, 5, 8))}
    return Model(forward, p=nn.Conv2d(3, 8, 8, 8), t=encoder(), o=nn.Linear(8, 2), **bare)


def adapter() -> Model:
    """A frozen layer, with LoRA by hand."""

    def forward(m: Any, ids: Tensor) -> Any:
        x = m.e(ids)
        return m.o((m.w(x) + m.b(m.a(x))).mean(1))

    factors = {"a": nn.Linear(8, 2, bias=False), "b": nn.Linear(2, 8, bias=False)}
    frozen = {"e": nn.Embedding(50, 8).requires_grad_(False), "w": nn.Linear(8, 8).requires_grad_(False)}
    return Model(forward, o=nn.Linear(8, 2), **factors, **frozen)


def frozen_norm() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model[1].eval().requires_grad_(False)
    return model


def decoder() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 36), nn.Unflatten(1, (4, 3, 3)), nn.ConvTranspose2d(4, 1, 2), nn.Flatten())


def masked() -> Model:
    def forward(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        return m.o((m.t(x, src_key_padding_mask=mask == 0) * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True))

    return Model(forward, t=encoder(), o=nn.Linear(8, 2))


def both(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return m.o(torch.cat([a, b], 1))


def two_inputs() -> Model:
    return Model(both, o=nn.Linear(16, 2))


def by_name() -> nn.Module:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.o = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(x)

    return Named()


PAIRS = TensorDataset(X, Y)
WORDS = TensorDataset(IDS, Y)
MEAN_WORD = {"e": nn.Embedding(50, 8), "o": nn.Linear(8, 2)}
LENGTHS = [(SEQUENCES[i, : 1 + i % 5], int(Y[i])) for i in range(SIZE)]
ROWS = [{"x": X[i], "labels": int(Y[i])} for i in range(SIZE)]
BINARY = dplip.losses.BinaryCrossEntropy()

SPECTRAL = torch.nn.utils.parametrizations.spectral_norm

TRAINS: dict[str, tuple[Callable[[], nn.Module], Any, dict[str, Any]]] = {
    "Conv1d": (
        lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(12, 2)),
        TensorDataset(X[:, None], Y),
        {},
    ),
    "Embedding": (lambda: Model(lambda m, x: m.o(m.e(x).mean(1)), **MEAN_WORD), WORDS, {}),
    "EmbeddingBag": (lambda: nn.Sequential(nn.EmbeddingBag(50, 8), nn.Linear(8, 2)), WORDS, {}),
    "LSTM": (lambda: recurrent(nn.LSTM), TensorDataset(SEQUENCES, Y), {}),
    "GRU": (lambda: recurrent(nn.GRU), TensorDataset(SEQUENCES, Y), {}),
    "TransformerEncoder": (
        lambda: Model(lambda m, x: m.o(m.t(x).mean(1)), t=nn.TransformerEncoder(encoder(), 1), o=nn.Linear(8, 2)),
        TensorDataset(SEQUENCES, Y),
        {},
    ),
    "MultiheadAttention": (
        lambda: Model(
            lambda m, x: m.o(m.a(x, x, x)[0].mean(1)),
            a=nn.MultiheadAttention(8, 2, batch_first=True),
            o=nn.Linear(8, 2),
        ),
        TensorDataset(SEQUENCES, Y),
        {},
    ),
    "a gate": (
        lambda: Model(
            lambda m, x: m.o(m.a(x).sigmoid() * m.b(x)), a=nn.Linear(8, 8), b=nn.Linear(8, 8), o=nn.Linear(8, 2)
        ),
        PAIRS,
        {},
    ),
    "a frozen embedding": (
        lambda: nn.Sequential(dplip.nn.Frozen(nn.Sequential(nn.Embedding(50, 8), nn.Flatten())), nn.Linear(96, 2)),
        WORDS,
        {},
    ),
    "a residual network": (lambda: residual(True), TensorDataset(IMAGES, Y), {}),
    "its norms without scales": (lambda: residual(False), TensorDataset(IMAGES, Y), {}),
    "a vision transformer": (patches, TensorDataset(IMAGES, Y), {}),
    "LoRA": (adapter, WORDS, {}),
    "a decoder": (decoder, TensorDataset(X, torch.rand(SIZE, 16)), {"loss": dplip.losses.ClippedMSE()}),
    "noise in the model": (lambda: Model(lambda m, x: m.m(x + torch.randn_like(x)), m=mlp()), PAIRS, {}),
    "BatchNorm that is frozen": (frozen_norm, PAIRS, {}),
    "activation checkpointing": (
        lambda: Model(lambda m, x: m.o(checkpoint(m.a, x, use_reentrant=False)), a=nn.Linear(8, 8), o=nn.Linear(8, 2)),
        PAIRS,
        {},
    ),
    "two inputs": (two_inputs, TensorDataset(X, X.flip(0), Y), {}),
    "two inputs as one": (two_inputs, [((X[i], X[-1 - i]), 1) for i in range(SIZE)], {}),
    "dictionaries": (by_name, ROWS, {}),
    "several labels": (lambda: mlp(5), TensorDataset(X, (X[:, :5] > 0.5).float()), {"loss": BINARY}),
    "class weights": (mlp, PAIRS, {"loss": dplip.losses.CrossEntropy(weight=[1.0, 2.0], label_smoothing=0.1)}),
    "a dictionary out": (lambda: Model(lambda m, x: {"logits": m.o(x)}, o=nn.Linear(8, 2)), PAIRS, {}),
    "a pair out": (lambda: Model(lambda m, x: (x, m.o(x)), o=nn.Linear(8, 2)), PAIRS, {"output": 1}),
    "lengths by padding": (masked, LENGTHS, {"collate": Padding(5)}),
    "a scale of one's own": (
        lambda: Model(lambda m, x: m.o(x * m.w), o=nn.Linear(8, 2), w=nn.Parameter(torch.ones(8))),
        PAIRS,
        {},
    ),
    "a parameter by itself": (
        lambda: Model(lambda m, x: m.o(x) + m.w.norm(), o=nn.Linear(8, 2), w=nn.Parameter(torch.ones(3))),
        PAIRS,
        {},
    ),
    "a parametrization": (lambda: nn.Sequential(SPECTRAL(nn.Linear(8, 8)), nn.Linear(8, 2)), PAIRS, {}),
    "lengths without masks": (
        lambda: Model(lambda m, x: m.o(x.mean(1)), o=nn.Linear(8, 2)),
        LENGTHS,
        {"collate": Padding(5, mask=False)},
    ),
    "an unpacker": (two_inputs, ROWS, {"unpack": lambda b: ((b["x"], b["x"].flip(1)), {}, b["labels"])}),
}


@pytest.mark.parametrize("name", TRAINS)
def test_it_trains(name):
    make, data, keywords = TRAINS[name]
    model = dplip.nn.bound_gradients(make())
    before = {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}
    loss = keywords.get("loss", LOSS)
    model, optimizer, loader = private(model, data, **keywords)
    batch = next(iter(loader))
    unpack = keywords.get("unpack") or unpacked
    args, named, targets = unpack(batch)
    outputs = model(*args, **named)
    outputs = outputs[keywords["output"]] if "output" in keywords else outputs
    outputs = outputs["logits"] if isinstance(outputs, dict) else outputs
    loss(outputs, targets).backward()
    optimizer.step()
    assert 0.8 < optimizer.sensitivities().total / len(before) ** 0.5 < 1.01  # one use of each, of radius 1
    assert not [k for k, p in model.named_parameters() if k in before and torch.equal(p, before[k])]


def unpacked(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    if isinstance(batch, dict):
        return (), {"x": batch["x"]}, batch["labels"]
    *inputs, targets = batch
    one = inputs[0] if len(inputs) == 1 else inputs
    return (tuple(one) if isinstance(one, list | tuple) else (one,)), {}, targets


def bounded(**keywords: Any) -> Callable[[], Any]:
    return lambda: private(dplip.nn.bound_gradients(mlp()), PAIRS, **keywords)


def on(data: Any, **keywords: Any) -> Callable[[], Any]:
    return lambda: private(dplip.nn.bound_gradients(mlp()), data, **keywords)


def of(function: Callable[..., Any], data: Any = PAIRS, **layers: Any) -> Callable[[], Any]:
    return lambda: private(dplip.nn.bound_gradients(Model(function, **(layers or {"o": nn.Linear(8, 2)}))), data)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


def diverged() -> nn.Module:
    model = nn.Sequential(dplip.nn.BallProjection(1.0), *mlp().children())
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
    return model


ATTENTION = {"a": nn.MultiheadAttention(8, 2), "o": nn.Linear(8, 2)}

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no criterion": (bounded(loss=None), r"criterion=dplip\.losses\.CrossEntropy"),
    "clipping": (bounded(max_grad_norm=1.0), r"dplip\.nn\.bound_gradients\(model, radius=1\.0\)"),
    "torch's loss": (bounded(loss=nn.CrossEntropyLoss()), r"one of dplip\.losses"),
    "nothing bounded": (lambda: private(mlp(), PAIRS), r"dplip\.nn\.bound_gradients\(model\)"),
    "nothing bounded behind a frozen embedding": (
        lambda: private(nn.Sequential(dplip.nn.Frozen(nn.Embedding(50, 8)), nn.Flatten(), nn.Linear(96, 2)), WORDS),
        r"dplip\.nn\.bound_gradients\(model\)",
    ),
    "BatchNorm": (
        lambda: private(
            dplip.nn.bound_gradients(nn.Sequential(nn.BatchNorm1d(8, affine=False), nn.Linear(8, 2))), PAIRS
        ),
        r"0 \(BatchNorm1d\).*GroupNorm",
    ),
    "a mean over the batch": (of(lambda m, x: m.o(x - x.mean(0))), r"mean computes across the batch.*x\.mean\(dim=1\)"),
    "a branch": (of(lambda m, x: m.o(x) if x.sum() > 0 else -m.o(x)), r"sum computes.*torch\.where in place of if"),
    "a number": (of(lambda m, x: m.o(x) * x.max().item()), r"max computes over all entries"),
    "attention over the batch": (
        of(lambda m, x: m.o(m.a(x, x, x)[0].mean(1)), TensorDataset(SEQUENCES, Y), **ATTENTION),
        r"a \(BoundedMultiheadAttention\).*different examples meet",
    ),
    "an unused layer": (
        of(lambda m, x: m.o(x), o=nn.Linear(8, 2), u=nn.Linear(8, 2)),
        r"u\.weight.*requires_grad_\(False\)",
    ),
    "an argument too many": (on(TensorDataset(X, X, Y)), r"takes 2 positional arguments.*unpack="),
    "an argument too few": (of(both), r"missing 1 required.*unpack="),
    "one example many times": (on([(X[0], 1)] * SIZE), r"39 of its 40 entries .*Keep every example once"),
    "no labels": (on([{"x": x, "z": 1} for x in X]), r"keys \['x', 'z'\].*'labels'.*unpack="),
    "names of classes": (on([(x, "cat") for x in X]), r"not a pair.*of tensors or numbers"),
    "class numbers as floats": (on(TensorDataset(X, Y.float())), r"targets\.long\(\)"),
    "a class too many": (on(TensorDataset(X, Y + 1)), r"label 1=2 is not one class.* 0 to 1"),
    "labels, and a loss of one": (on(TensorDataset(X, (X[:, :2] > 0.5).float())), r"dplip\.losses\.BinaryCrossEntropy"),
    "whole numbers": (on(TensorDataset(IDS[:, :8], Y)), r"type of its weights; pixels as x\.float\(\) / 255"),
    "float64": (on(TensorDataset(X.double(), Y)), r"Give examples of the type of its weights"),
    "a mask of another length": (
        lambda: private(dplip.nn.bound_gradients(masked()), [((x, torch.ones(6)), 1) for x in SEQUENCES]),
        r"mask.*masks as long as the sequences",
    ),
    "several lengths": (on([(X[i, : 3 + i % 5], 1) for i in range(SIZE)]), r"dplip\.data\.Padding\(length\)"),
    "a table": (on(pandas.DataFrame(X.numpy())), r"table\.to_dict\('records'\)"),
    "a stream": (on(Stream()), r"map-style data set"),
    "a pair out": (of(lambda m, x: (m.o(x), x)), r"outputs\.logits, outputs\[0\]; output=.*output=0"),
    "a mask that nobody takes": (
        lambda: private(
            dplip.nn.bound_gradients(Model(lambda m, x: m.o(x.mean(1)), o=nn.Linear(8, 2))), LENGTHS, collate=Padding(5)
        ),
        r"adds a mask.*dplip\.data\.Padding\(5, mask=False\)",
    ),
    "output= that computes": (
        lambda: private(
            dplip.nn.bound_gradients(Model(lambda m, x: {"a": m.o(x), "b": m.o(-x)}, o=nn.Linear(8, 2))),
            PAIRS,
            output=lambda out: out["a"] - out["b"],
        ),
        r"it computes a tensor of shape \(1, 2\).*lambda out: out\['scores'\].*forward",
    ),
    "a loop over examples": (
        of(lambda m, x: torch.stack([m.o(row) for row in x])),
        r"unbind takes single examples out of the batch.*treat all examples alike",
    ),
    "a loop, of norms": (
        lambda: dplip.sensitivity(
            Model(lambda m, x: torch.stack([m.o(row) for row in x]), o=nn.Linear(8, 2)), LOSS, (8,)
        ),
        r"line \d+ of test_newcomers\.py \(TraceError: Proxy object cannot be iterated\)\. .*without if, while, for",
    ),
    "ids as numbers": (
        lambda: dplip.sensitivity(
            Model(lambda m, x: m.o(m.e(x).mean(1)), e=nn.Embedding(50, 8), o=nn.Linear(8, 2)), LOSS, (12,)
        ),
        r"e: Embedding has no rule.*let the layers bound their own gradients.*dplip\.nn\.bound_gradients\(model\)",
    ),
    "weights that are no numbers": (
        lambda: dplip.sensitivity(diverged(), LOSS, (8,)),
        r"NaN or infinite.*training has diverged.*dplip\.nn\.bound_gradients",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_words_that_lead_on(name):
    run, words = REFUSED[name]
    with pytest.raises(DPLipError, match=f"(?s){words}"):
        run()


def test_a_trainer_refuses_a_table_in_the_same_words():
    model = dplip.nn.bound_gradients(mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(DPLipError, match=r"table\.to_dict\('records'\)"):
        dplip.DPLipTrainer(
            model, loss=LOSS, optimizer=optimizer, train_dataset=pandas.DataFrame(X.numpy()), noise_multiplier=1.0
        )


def test_a_closure_is_refused_in_words():
    _, optimizer, _ = bounded()()
    with pytest.raises(DPLipError, match=r"step\(\) without a closure"):
        optimizer.step(closure=lambda: None)


def test_a_batch_memory_manager_is_refused_in_words():
    _, optimizer, loader = bounded()()
    manager = BatchMemoryManager(data_loader=loader, max_physical_batch_size=9, optimizer=optimizer)
    with pytest.raises(AttributeError, match="max_physical_batch_size="), warnings.catch_warnings():
        manager.__enter__()


def test_what_is_fixed_trains():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(784, 2)
    model, changes = dplip.fix(nn.Sequential(*layers))
    assert changes == ["1: BatchNorm2d(4) -> GroupNorm(2, 4)", "2: ReLU(inplace=True) -> inplace=False"]
    private(dplip.nn.bound_gradients(model), TensorDataset(IMAGES, Y))
