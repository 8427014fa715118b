"""How far the norms that bounded layers use lie above the exact ones, on a tanh CNN and on tokens.

usage: python benchmarks/looseness.py [--data-dir DIR] [--dataset digits] [--steps 200] [--examples 100]

Each network is trained without noise. Then, for each layer and parameter, medians over examples of: what the layer
takes the norm for, over the exact norm (an example is scaled to r times the quotient of the two, for r half its norm);
and the products of norms ``sqrt(m) |v| |x|``, of the bias ``sqrt(positions) |v|``, over the exact norm.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dplip.data import load
from dplip.nn import bound_gradients
from dplip.rules.convolution import most_reads


def cnn(side: int) -> nn.Sequential:
    pool = nn.AvgPool2d(2) if side > 8 else nn.Identity()
    body = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), pool, nn.Conv2d(16, 32, 3, padding=1), nn.Tanh(), pool),
        *(nn.Flatten(), nn.LazyLinear(32), nn.Tanh(), nn.Linear(32, 10)),
    )
    body(torch.zeros(1, 1, side, side))
    return body


def tokens(side: int) -> nn.Sequential:
    """The rows of an image as tokens."""
    mean = nn.Sequential(nn.Unflatten(1, (1, side)), nn.AvgPool2d((side, 1)), nn.Flatten())
    layers = (nn.Flatten(1, 2), nn.Linear(side, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), mean, nn.Linear(64, 10))
    return nn.Sequential(*layers)


def products(layer: Any, x: Tensor, v: Tensor) -> tuple[float, float]:
    """The products of norms that bound the gradients of weight and bias."""
    size, length = float(x.norm()), float(v.norm())
    if isinstance(layer, nn.Conv2d):
        padding = tuple((int(p), int(p)) for p in layer.padding)
        reads = most_reads(tuple(x.shape[2:]), layer.kernel_size, layer.stride, padding, layer.dilation)
        return math.sqrt(reads) * size * length, math.sqrt(math.prod(v.shape[2:])) * length
    return size * length, math.sqrt(math.prod(v.shape[1:-1])) * length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--examples", type=int, default=100)
    options = parser.parse_args()
    torch.manual_seed(0)
    data = load(options.dataset, options.data_dir)
    x, y = data.train.tensors
    for make in (cnn, tokens):
        model = make(x.shape[-1])
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        for _ in range(options.steps):
            rows = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        found: dict[str, list[tuple[float, float]]] = {}
        bound_gradients(model)
        layers = [(n, m) for n, m in model.named_modules() if hasattr(m, "radius")]
        for i in range(options.examples):
            measure(layers, model, x[i : i + 1], y[i : i + 1], found)
        for name, ratios in found.items():
            used, product = torch.tensor(ratios).median(0).values.tolist()
            print(f"{make.__name__:8s} {name:10s} taken / exact {used:.4f}   product of norms / exact {product:.2f}")


def measure(
    layers: list[tuple[str, Any]],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    found: dict[str, list[tuple[float, float]]],
) -> None:
    """The ratios of one example, of every layer."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str, given: Tensor, output: Tensor) -> None:
        output.register_hook(lambda v: seen.update({name: (given.detach(), v.detach())}))

    hooks = [m.register_forward_hook(lambda _, a, o, n=n: keep(n, a[0], o)) for n, m in layers]
    model.eval()
    F.cross_entropy(model(x), y).backward()
    for hook in hooks:
        hook.remove()
    for name, layer in layers:
        given, v = seen[name]
        for key, product in zip(("weight", "bias"), products(layer, given, v), strict=True):
            p = layer.get_parameter(key)
            exact = float(torch.autograd.grad(layer.eval()(given), p, v)[0].norm())
            layer.radius = max(exact / 2, 1e-12)
            reached = float(torch.autograd.grad(layer.train()(given), p, v)[0].norm())
            if exact > 1e-9:
                found.setdefault(f"{name}.{key}", []).append((layer.radius / reached, product / exact))


if __name__ == "__main__":
    main()
