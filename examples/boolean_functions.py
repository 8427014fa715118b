"""What standard l-infinity-Lipschitz networks cannot compute, and order statistics can: the theory as numbers.

usage: python examples/boolean_functions.py [--plot FILE.png] [--steps 300]

A *standard* network: affine layers whose rows have l1 norm at most 1, and elementwise 1-Lipschitz activations.

Lemma (flip sums). For pairs (a_i, b_i) with sum_i |a_i - b_i| <= 1 in every coordinate, a standard f has
sum_i |f(a_i) - f(b_i)| <= 1. Proof: for an affine row sum_i |w (a_i - b_i)| <= sum_j |w_j| 1 <= 1, so the outputs of a
layer form such pairs again; an activation shrinks differences; induct over layers.

For the function "at least k of d bits are set", take a_i with k - 1 ones off place i, and b_i = a_i + e_i. Then a
standard classifier certifies at most 1 / (2d) at one of these points, and misses the k-th largest entry by at least
1/2 - 1/(2d); the k-th largest entry itself, one SortNet neuron, certifies 1/2.
Source: Zhang, Jiang, He and Wang, 2022 (arXiv 2210.01787), sections 3 and 4; the constants are derived here.
"""

from __future__ import annotations

import argparse
import itertools

import torch
from torch import Tensor, nn

import dplip
from dplip.models.sortnet import exponent_at
from dplip.nn import LInfDistance
from dplip.nn.linf.distance import ranked_distance

inf = float("inf")


def flip_pairs(d: int, k: int) -> tuple[Tensor, Tensor]:
    """d pairs of points that differ in one bit each: k - 1 and k ones."""
    a = torch.zeros(d, d)
    for i in range(d):
        a[i, [(i + j) % d for j in range(1, k)]] = 1
    return a, a + torch.eye(d)


def flip_sum(scores: Tensor, flipped: Tensor) -> float:
    """``sum_i |f(a_i) - f(b_i)|``, the largest over outputs."""
    return float((scores - flipped).detach().abs().reshape(len(scores), -1).sum(0).max())


def kth_largest(x: Tensor, k: int) -> Tensor:
    """One SortNet neuron with omega = e_k and all weights at -2: the k-th largest entry of x in [0, 1]^d, exactly."""
    omega = torch.zeros(k, dtype=x.dtype)
    omega[-1] = 1.0
    return ranked_distance(x, torch.full((1, x.shape[1]), -2.0, dtype=x.dtype), omega)[:, 0] - 2.0


def sorted_entry(x: Tensor, k: int) -> Tensor:
    """The k-th largest entry of each row, by sorting."""
    return x.sort(1, descending=True).values[:, k - 1]


def kth_largest_by_distances(x: Tensor, k: int, far: float = 2.0) -> Tensor:
    """The same by two layers of l-infinity distances: the maximum over all k-subsets of the minimum in them."""
    d = x.shape[1]
    subsets = list(itertools.combinations(range(d), k))
    hidden = LInfDistance(d, len(subsets), bias=False).to(x.dtype)
    hidden.weight.data.fill_(0.5)  # |x - 1/2| <= 1/2 never wins against far - x
    for row, subset in enumerate(subsets):
        hidden.weight.data[row, list(subset)] = far
    score = LInfDistance(len(subsets), 1, bias=False).to(x.dtype)
    score.weight.data.fill_(3 * far)
    # hidden = far - min over the subset; |hidden - 3 far| = 2 far + min, whose maximum is 2 far + the k-th largest.
    return (score(hidden(x))[:, 0] - 2 * far).detach()


def best_standard(x: Tensor, k: int) -> Tensor:
    """The scores (f_0, f_1) of the best standard classifier of "at least k of d": their gap is 2 mean(x) - (2k-1)/d."""
    half = x.mean(1) - (2 * k - 1) / (2 * x.shape[1])
    return torch.stack((-half, half), 1)


def margin_radius(scores: Tensor, labels: Tensor) -> float:
    """The least l-infinity radius that a margin certifies for scores that are each 1-Lipschitz; below 0: a mistake."""
    gap = scores[:, 1] - scores[:, 0]
    return float((gap * (2 * labels - 1)).min() / 2)


def approximation_error(d: int, k: int) -> float:
    """The error of the best shift of mean(x) for the k-th largest, on all bits that tell: 1/2 - 1/(2d)."""
    a, b = flip_pairs(d, k)
    x = torch.cat((a, b, torch.zeros(1, d), torch.ones(1, d)))
    gap = kth_largest(x, k) - x.mean(1)
    return float((gap.max() - gap.min()) / 2)


class Steps(nn.Sequential):
    """A standard network whose rows are kept in the l1 ball."""

    def __init__(self, d: int, width: int, outputs: int = 2) -> None:
        layers = [nn.Linear(d, width), nn.Linear(width, width), nn.Linear(width, outputs)]
        for layer in layers:
            nn.init.uniform_(layer.weight, 0.0, 1.0)  # rows of one sign: nothing cancels, and no unit is dead
            nn.init.zeros_(layer.bias)
            dplip.constrain(layer, "weight", dplip.RowL1Ball(1.0))
        super().__init__(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def distance_net(d: int, width: int) -> nn.Sequential:
    """Two layers of l-infinity distances."""
    return nn.Sequential(LInfDistance(d, width), LInfDistance(width, 2, negate=True))


def any_bit(d: int) -> tuple[Tensor, Tensor]:
    """The points of k = 1, where the two networks are trained: no bit, or one, with their labels."""
    return torch.cat((torch.zeros(1, d), torch.eye(d))), torch.cat((torch.zeros(1), torch.ones(d))).long()


def train(model: nn.Module, x: Tensor, y: Tensor, target: float, steps: int) -> float:
    """The least radius certified over all points, after fitting the margin that is possible; 0 after any mistake."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(steps):
        dplip.nn.relax(model, exponent_at(step / steps, 0.7))
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / steps)
        z = model(x)
        gap = (z[:, 1] - z[:, 0]) * (2 * y - 1)
        loss = torch.relu(target - gap)
        optimizer.zero_grad()
        (loss[y == 0].mean() + loss[y == 1].mean()).backward()
        optimizer.step()
        dplip.project(model)
    dplip.nn.relax(model, inf)
    right = bool((model(x).argmax(1) == y).all())
    return float(dplip.certify(model, x, norm=inf).min()) if right else 0.0


def table(sizes: tuple[int, ...] = (2, 8, 16)) -> list[dict[str, float]]:
    """Per d, with k = d/2 (1 for d = 2): what is predicted, and what is measured."""
    rows = []
    for d in sizes:
        k = max(1, d // 2)
        a, b = flip_pairs(d, k)
        x, y = torch.cat((a, b)), torch.cat((torch.zeros(d), torch.ones(d))).long()
        order = 2 * kth_largest(x, k) - 1
        rows.append(
            {
                "d": d,
                "k": k,
                "flip_sum_order_statistic": flip_sum(kth_largest(a, k), kth_largest(b, k)),
                "flip_sum_standard": max(flip_sum(n(a), n(b)) for n in (Steps(d, 16) for _ in range(20))),
                "radius_standard": margin_radius(best_standard(x, k), y),
                "radius_order_statistic": margin_radius(torch.stack((-order / 2, order / 2), 1), y),
                "error_standard": approximation_error(d, k),
                "error_order_statistic": float((kth_largest(x, k) - sorted_entry(x, k)).abs().max()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", help="draw the radii here")
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows = table()
    trained = []
    for row in rows:
        d, k = int(row["d"]), int(row["k"])
        x, y = any_bit(d)
        kinds = {"standard": (Steps, 1 / d), "distance": (distance_net, 1.0)}
        found = {
            name: max(train(net(d, 16), x, y, target, arguments.steps) for _ in range(6))
            for name, (net, target) in kinds.items()
        }
        trained.append(found)
        print(
            f"d {d:>2}, k {k}: flip sum {row['flip_sum_standard']:.3f} (standard, at most 1) against "
            f"{row['flip_sum_order_statistic']:.0f}; robust radius at most {1 / (2 * d):.4f}, attained "
            f"{row['radius_standard']:.4f}, trained {found['standard']:.4f}, against "
            f"{row['radius_order_statistic']:.4f}, trained {found['distance']:.4f}; "
            f"error at least {0.5 - 0.5 / d:.4f}, attained {row['error_standard']:.4f}, against "
            f"{row['error_order_statistic']:.0e}"
        )
    if arguments.plot:
        draw(rows, trained, arguments.plot)


def draw(rows: list[dict[str, float]], trained: list[dict[str, float]], path: str) -> None:
    """Robust radius against the number of bits."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    d = [row["d"] for row in rows]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(d, [1 / (2 * n) for n in d], "--", color="tab:red", label="bound of every standard network, 1/(2d)")
    axes.plot(d, [row["radius_standard"] for row in rows], "o", color="tab:red", label="the best standard network")
    axes.plot(d, [t["standard"] for t in trained], "x", color="tab:red", label="a trained standard network")
    axes.plot(d, [row["radius_order_statistic"] for row in rows], "o-", color="tab:blue", label="an order statistic")
    axes.plot(d, [t["distance"] for t in trained], "x", color="tab:blue", label="a trained l-infinity-distance network")
    axes.set(xlabel="bits d", ylabel="least certified l-infinity radius", ylim=(0, 0.55), xticks=d)
    axes.set_title("At least k of d bits are set: k = d/2, and 1 where trained")
    axes.legend(frameon=False, loc="center right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    print(f"picture {path}")


if __name__ == "__main__":
    main()
