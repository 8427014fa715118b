"""The time of a private step of enforced models, beside plain training and Opacus, as ratios in one run.

``python benchmarks/enforced.py`` needs transformers and peft. Each figure is the median of pairs, taken in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dplip
from dplip.losses import CrossEntropy

LENGTH, VOCABULARY, CLASSES = 128, 1000, 2


def llama() -> nn.Module:
    """A Llama-shaped classifier with LoRA adapters on queries, values and the first map of each MLP."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        pad_token_id=0,
        num_labels=CLASSES,
    )
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "up_proj"], task_type="SEQ_CLS")
    return get_peft_model(LlamaForSequenceClassification(config), lora)


def bert() -> nn.Module:
    """A BERT-shaped classifier, trained in full."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=CLASSES,
    )
    return BertForSequenceClassification(config)


class Logits(nn.Module):
    """The scores of a model of transformers, as Opacus's criterion takes them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.model(input_ids=ids).logits
        return scores


def data(size: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (size, LENGTH), generator=generator)
    return TensorDataset(ids, torch.randint(0, CLASSES, (size,), generator=generator))


def plain(model: nn.Module, batch: int) -> Callable[[], None]:
    ids, y = data(batch).tensors
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), y).backward()
        optimizer.step()

    return step


def private(model: nn.Module, batch: int) -> Callable[[], None]:
    dplip.nn.bound_gradients(model)
    optimizer: Any = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = CrossEntropy()
    model, optimizer, loader = dplip.PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data(batch), batch),  # every step takes all
        criterion=loss,
        noise_multiplier=1.0,
    )

    def step() -> None:
        ids, y = next(iter(loader))
        optimizer.zero_grad()
        loss(model(ids), y).backward()
        optimizer.step()

    return step


def ghost(model: nn.Module, batch: int) -> Callable[[], None]:
    from opacus import PrivacyEngine

    optimizer: Any = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    made: Any = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data(batch), batch),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        criterion=nn.CrossEntropyLoss(),
        grad_sample_mode="ghost",
        poisson_sampling=False,
    )
    module, optimizer, criterion, _ = made
    ids, y = data(batch).tensors

    def step() -> None:
        optimizer.zero_grad()
        criterion(module(ids), y).backward()
        optimizer.step()

    return step


def tried(
    kind: Callable[[nn.Module, int], Callable[[], None]], make: Callable[[], nn.Module], batch: int
) -> Callable[[], None] | None:
    """A kind of step that has run once; None, with a word of why, where it does not run."""
    torch.manual_seed(0)
    try:
        step = kind(Logits(make()).train(), batch)
        step()
    except Exception as wrong:
        print(f"{make.__name__}: {kind.__name__} does not run: {type(wrong).__name__}: {str(wrong)[:200]}")
        return None
    return step


def times(steps: list[Callable[[], None] | None], pairs: int) -> list[list[float]]:
    """Seconds of each kind of step, taken in turn; the first round is a warm-up."""
    found: list[list[float]] = [[] for _ in steps]
    for number in range(pairs + 1):
        for kind, step in zip(found, steps, strict=True):
            if step is None:
                continue
            start = time.perf_counter()
            step()
            if number:
                kind.append(time.perf_counter() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16, help="examples in a step")
    parser.add_argument("--pairs", type=int, default=7, help="rounds that are timed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'model':<8} {'plain, ms':>10} {'dplip/plain':>12} {'ghost/plain':>12}")
    for make in (llama, bert):
        steps = [tried(kind, make, options.batch) for kind in (plain, private, ghost)]
        base, *others = [statistics.median(t) if t else float("nan") for t in times(steps, options.pairs)]
        print(f"{make.__name__:<8} {base * 1e3:10.1f} " + " ".join(f"{t / base:12.2f}" for t in others))


if __name__ == "__main__":
    main()
