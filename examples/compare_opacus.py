"""Compare dplip's presets with clipped DP-SGD by Opacus: the same data, budget, Poisson sampling and accountant.

usage: python examples/compare_opacus.py --data fashion-mnist --epsilon 3 [1 ...] [--seeds 3] [--data-dir DIR]

Opacus trains the small tanh network of Papernot et al., and a tanh MLP of the certified preset's width, with clipping;
dplip trains its presets, without. Each run is a process of its own, and one that is in --out already is not run again.
Written to --out: one JSON file a run, all of them in compare.json, the table in compare.md, and the picture compare.png
(extra ``plot``). Runs are seeded, so they are repeatable and not private. The test images judge the finished models and
choose nothing.
To choose Opacus's settings: --held-out judges on a tenth of the training images, --set replaces settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import dplip
from dplip.certificates import certified_accuracy, correct_radii
from dplip.data import Data, holdout, load
from dplip.models import preset
from dplip.models.presets import MODELS
from dplip.training.evaluation import RADII

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
from suite import peak_memory

KINDS = {"l2": "dplip, certified", "scattering": "dplip, accuracy"}
CURVE = [i / 100 for i in range(101)]
"""The l2 radii of the picture, in raw pixels of [0, 1]."""
MODES = ("hooks", "ghost")
PROBES = 6
"""Steps of either of Opacus's modes that are timed to find the faster one; the first is not counted."""


@dataclasses.dataclass(frozen=True)
class Clipped:
    """The settings of clipped DP-SGD; the learning rate is for mean gradients, as in Opacus."""

    batch_size: int
    lr: float
    epochs: int
    max_grad_norm: float = 0.1
    momentum: float = 0.9


IMAGES = Clipped(2048, 4.0, 40)  # of Tramer and Boneh, arXiv 2011.11660, and the best, or all but, held out
CLIPPED = {"digits": Clipped(256, 1.0, 40), "mnist": IMAGES, "fashion-mnist": IMAGES, "cifar10": IMAGES}
QUICK = {"digits": Clipped(256, 1.0, 5)}


def tanh_cnn(input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The tanh network that clipped DP-SGD is tuned on (Papernot et al., arXiv 2007.14191), for the image's size.

    Colour images get the same one: that paper's larger network takes 17 seconds a step of 1,024 on one core.
    """
    channels, size, _ = input_shape
    first, second = ((8, 3), 4) if size >= 28 else ((3, 1), 2)
    features: list[nn.Module] = [
        nn.Conv2d(channels, 16, first[0], stride=2, padding=first[1]),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, second, stride=2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1) if size >= 28 else nn.Identity(),
        nn.Flatten(),
    ]
    units = nn.Sequential(*features)(torch.zeros(1, *input_shape)).shape[1]
    return nn.Sequential(*features, nn.Linear(units, 32), nn.Tanh(), nn.Linear(32, classes))


def tanh_mlp(input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """One hidden layer of 128 units, as the certified presets have."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), 128), nn.Tanh(), nn.Linear(128, classes))


NETWORKS = {"cnn": tanh_cnn, "mlp": tanh_mlp}


def train_clipped(
    data: Data,
    network: str,
    settings: Clipped,
    epsilon: float,
    delta: float,
    seed: int,
    mode: str,
    steps: int | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train by Opacus as its users do; ``steps``: stop early, to time a step."""
    from opacus import PrivacyEngine

    torch.manual_seed(seed)
    model = NETWORKS[network](data.input_shape, data.num_classes)
    engine = PrivacyEngine(accountant="rdp")
    private = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum),
        criterion=nn.CrossEntropyLoss(),
        data_loader=DataLoader(data.train, batch_size=settings.batch_size),
        target_epsilon=epsilon,
        target_delta=delta,
        epochs=settings.epochs,
        max_grad_norm=settings.max_grad_norm,
        grad_sample_mode=mode,
    )
    module, optimizer, *criterion, loader = private
    loss = criterion[0] if criterion else nn.CrossEntropyLoss()
    planned = settings.epochs * len(loader) if steps is None else steps
    times: list[float] = []
    started = time.perf_counter()
    module.train()
    while len(times) < planned:
        for x, y in loader:
            optimizer.zero_grad()
            loss(module(x), y).backward()
            optimizer.step()
            times.append(time.perf_counter() - started)
            started = time.perf_counter()
            if len(times) == planned:
                break
    bare = NETWORKS[network](
        data.input_shape, data.num_classes
    )  # without Opacus's hooks, which dplip refuses to look past
    bare.load_state_dict(model.state_dict())
    return bare, {
        "epsilon": engine.get_epsilon(delta),
        "noise_multiplier": optimizer.noise_multiplier,
        "sample_rate": loader.sample_rate,
        "steps": planned,
        "seconds": sum(times),
        "seconds_per_step": statistics.median(times[1:] or times),
        "peak_mb": peak_memory(),
    }


def train_preset(data: Data, kind: str, epsilon: float, delta: float, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Train a preset of dplip, as ``dplip train`` does."""
    torch.manual_seed(seed)
    trainer = preset(data.name, kind).trainer(
        data, target_epsilon=epsilon, target_delta=delta, seed=seed, progress=False
    )
    started = time.perf_counter()
    trainer.fit()
    seconds, event = time.perf_counter() - started, trainer.optimizer.event
    return trainer.model, {
        "epsilon": trainer.get_epsilon(),
        "noise_multiplier": event.noise_multiplier,
        "sample_rate": event.sample_rate,
        "steps": trainer.steps,
        "seconds": seconds,
        "seconds_per_step": seconds / trainer.steps,
        "peak_mb": peak_memory(),
    }


def judge(model: nn.Module, data: Dataset[Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Clean and certified accuracy; a stock network is certified by the Lipschitz bound of its weights."""
    radii: Tensor = correct_radii(model, data)
    return {
        "certified": certified_accuracy(radii, RADII),
        "curve": certified_accuracy(radii, CURVE),
        "lipschitz": dplip.lipschitz(model.eval(), shape),
    }


def run(arguments: argparse.Namespace, method: str, epsilon: float, seed: int) -> dict[str, Any]:
    """One run in this process: ``method`` is NETWORK-MODE, NETWORK-MODE-time, or a kind of preset."""
    data = load(arguments.data, arguments.data_dir)
    if arguments.held_out:
        train, test = holdout(data.train, 0.1, seed=0)
        data = dataclasses.replace(data, train=train, test=test)
    if arguments.quick:
        test = TensorDataset(*(part[:200] for part in data.test.tensors))
        data = dataclasses.replace(data, test=test)
    name, *mode = method.split("-")
    if mode:
        settings = clipped(arguments)
        steps = PROBES if mode[1:] else None
        model, figures = train_clipped(data, name, settings, epsilon, arguments.delta, seed, mode[0], steps)
        figures["settings"] = dataclasses.asdict(settings)
    else:
        model, figures = train_preset(data, name, epsilon, arguments.delta, seed)
        figures["settings"] = dataclasses.asdict(preset(data.name, name))
    if not mode[1:]:
        figures |= judge(model, data.test, data.input_shape)
    return {"method": method, "target_epsilon": epsilon, "seed": seed, "threads": torch.get_num_threads(), **figures}


def clipped(arguments: argparse.Namespace) -> Clipped:
    settings = (QUICK if arguments.quick else CLIPPED)[arguments.data]
    fields = {f.name: type(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    given = dict(pair.split("=") for pair in arguments.set)
    return dataclasses.replace(settings, **{name: fields[name](value) for name, value in given.items()})


def separate(arguments: argparse.Namespace, method: str, epsilon: float, seed: int) -> dict[str, Any]:
    """The same in a process of its own, or read from its file, if it is there already."""
    file = arguments.out / f"{method}-{epsilon:g}-{seed}.json"
    if not file.exists():
        command = [sys.executable, __file__, *sys.argv[1:], "--run", method, f"{epsilon:g}", str(seed)]
        file.write_text(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return json.loads(file.read_text())


def spread(values: list[float], scale: float, digits: int) -> str:
    deviation = f" ± {scale * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * statistics.mean(values):.{digits}f}{deviation}"


def table(groups: dict[tuple[str, float], list[dict[str, Any]]]) -> str:
    """One Markdown row for each method and epsilon; mean and standard deviation over the seeds."""
    lines = [
        "| method | epsilon | accuracy | certified at 36/255 | 72/255 | 108/255 | Lipschitz bound | steps | ms a step "
        "| seconds in all | peak memory, MB |",
        "| " + " | ".join(["---"] * 11) + " |",
    ]
    for (method, _), runs in groups.items():
        accuracy = [spread([r["certified"][i] for r in runs], 100, 1) for i in range(len(RADII))]
        median = {k: statistics.median(r[k] for r in runs) for k in ("seconds_per_step", "seconds", "peak_mb")}
        cells = [label(method), f"{max(r['epsilon'] for r in runs):.2f}", *accuracy]
        cells += [f"{statistics.mean(r['lipschitz'] for r in runs):.3g}", str(runs[0]["steps"])]
        cells += [f"{1000 * median['seconds_per_step']:.0f}", f"{median['seconds']:.0f}", f"{median['peak_mb']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def label(method: str) -> str:
    network, _, mode = method.partition("-")
    return KINDS.get(method, f"Opacus, tanh {network.upper()} ({mode})")


def picture(groups: dict[tuple[str, float], list[dict[str, Any]]], path: Path) -> None:
    """Certified accuracy against radius, and accuracy against epsilon if there are several; means over the seeds."""
    from matplotlib.figure import Figure

    epsilons = sorted({epsilon for _, epsilon in groups})
    panels = 1 + (len(epsilons) > 1)
    figure = Figure(figsize=(5 * panels, 3.5), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for method in dict.fromkeys(method for method, _ in groups):
        curves = [r["curve"] for r in groups[method, epsilons[-1]]]
        axes[0].plot(CURVE, [statistics.mean(at) for at in zip(*curves, strict=True)], label=label(method))
        if panels > 1:
            means = [statistics.mean(r["certified"][0] for r in groups[method, e]) for e in epsilons]
            axes[1].plot(epsilons, means, marker="o", label=label(method))
            axes[1].set(xlabel="epsilon", ylabel="accuracy", xlim=(0, None))
    axes[0].set(xlabel="radius (l2, raw pixels in [0, 1])", ylabel="certified accuracy", ylim=(0, 1), xlim=(0, 1))
    axes[0].set_title(f"epsilon {epsilons[-1]:g}", fontsize="medium")
    for one in axes:
        one.grid(alpha=0.3)
        one.legend()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=CLIPPED, default="fashion-mnist")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[3.0])
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-dir")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--quick", action="store_true", help="digits, few steps: to see that all of it works")
    parser.add_argument("--held-out", action="store_true", help="judge on a tenth of the training images")
    parser.add_argument("--methods", nargs="+", choices=(*NETWORKS, *KINDS), default=[*NETWORKS, *KINDS])
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="other settings of Opacus")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.data = "digits"
    if not all(e > 0 and math.isfinite(e) for e in arguments.epsilon) or arguments.seeds < 1:
        parser.error("give finite epsilons > 0, and at least one seed")
    if arguments.run:
        method, epsilon, seed = arguments.run
        print(json.dumps(run(arguments, method, float(epsilon), int(seed))))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    methods, probes = [], []
    for network in [name for name in NETWORKS if name in arguments.methods]:
        tried = [separate(arguments, f"{network}-{mode}-time", arguments.epsilon[0], 0) for mode in MODES]
        fastest = min(tried, key=lambda probe: probe["seconds_per_step"])
        methods.append(fastest["method"][: -len("-time")])
        probes += tried
    methods += [kind for kind in KINDS if kind in arguments.methods and arguments.data in MODELS.get(kind, {})]
    groups = {
        (method, epsilon): [separate(arguments, method, epsilon, seed) for seed in range(arguments.seeds)]
        for epsilon in arguments.epsilon
        for method in methods
    }
    modes = "; ".join(
        f"{label(p['method'][: -len('-time')])} {1000 * p['seconds_per_step']:.0f} ms a step, {p['peak_mb']:.0f} MB"
        for p in probes
    )
    text = table(groups) + (f"\n\nOpacus's modes over {PROBES - 1} steps: {modes}.\n" if probes else "\n")
    (arguments.out / "compare.md").write_text(text)
    runs = [one for group in groups.values() for one in group]
    result = {"data": arguments.data, "delta": arguments.delta, "held_out": arguments.held_out}
    (arguments.out / "compare.json").write_text(json.dumps({**result, "modes": probes, "runs": runs}, indent=1))
    picture(groups, arguments.out / "compare.png")
    print(text, end="")


if __name__ == "__main__":
    main()
