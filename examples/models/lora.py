"""LoRA adapters of peft on a BERT of transformers, trained privately, beside Opacus.

usage: pip install transformers peft; python examples/models/lora.py [--epsilon 8] [--epochs 10]

Nothing is downloaded: the weights of the BERT are random, and frozen. Its adapters and its classifier are trained, on
docstrings (shipped_text.py). The factors A are fixed, with orthonormal rows: noise on both factors has no bound in
their product (``--both`` trains both). At the end it is checked that the adapters moved: a run that trains nothing is
as accurate as chance, and no error says so.
"""

from __future__ import annotations

import os
from typing import Any

from beside import Task, beside, options
from shipped_text import LIBRARIES, WORDS, sentences, split
from torch import Tensor, nn

import dplip
from dplip.data import Padding

LENGTH = 24
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def adapted(both: bool) -> nn.Module:
    """A small BERT with adapters of rank 4 on queries and values."""
    try:
        from peft import LoraConfig, get_peft_model
        from transformers import BertConfig, BertForSequenceClassification
    except ImportError:
        raise SystemExit("lora.py needs transformers and peft: pip install transformers peft") from None

    size: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    }
    config = BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, num_labels=len(LIBRARIES), **size)
    lora = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"])
    model = get_peft_model(BertForSequenceClassification(config), lora)
    if not both:
        dplip.nn.freeze_lora_a(model)
    return model


def logits(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model(**inputs).logits, batch["labels"]


def adapters(model: nn.Module) -> dict[str, Tensor]:
    named = model.named_parameters()
    return {name: p.detach().clone() for name, p in named if "lora_" in name and p.requires_grad}


def main() -> None:
    parser = options(__doc__, epochs=10, lr=2e-2, epsilon=8.0)
    parser.add_argument("--both", action="store_true", help="train the factors A too")
    arguments = parser.parse_args()
    rows = [{"input_ids": ids, "labels": label} for ids, label in zip(*sentences(LENGTH), strict=True)]
    train, test = split(rows)
    collate = Padding(LENGTH, keys=["input_ids"])
    task = Task(lambda: adapted(arguments.both), train, test, dplip.losses.CrossEntropy(), 256, logits, collate)
    before = adapters(task.fresh())
    for library, model in beside(task, arguments).items():
        moved = [float((p - q).norm()) for p, q in zip(adapters(model).values(), before.values(), strict=True)]
        print(f"{library}: {sum(d > 0 for d in moved)} of {len(moved)} adapters moved, by {min(moved):.3f} at least")


if __name__ == "__main__":
    main()
