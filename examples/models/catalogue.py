"""Models of torchvision, transformers, timm and peft, unmodified: which train privately, and what they need.

usage: pip install torchvision transformers timm peft; python examples/models/catalogue.py [--only NAME]

Each is a small configuration with random weights (nothing is downloaded), made private by ``dplip.nn.bound_gradients``
and ``make_private``, and takes two steps. One Markdown row a model: what is done to it first, its trained parameters,
the sensitivity (the root of the number of uses, with every radius 1), or why it is refused. This makes the table of
docs/models.md.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import dplip
from dplip.errors import DPLipError

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.simplefilter("ignore")
try:
    import peft
    import timm
    import torchvision.models as vision
    import transformers as hub
except ImportError as missing:
    raise SystemExit(f"catalogue.py ({missing}): pip install torchvision transformers timm peft") from None

COUNT, WORDS = 40, 50
LOSS = dplip.losses.CrossEntropy(temperature=4.0, normalize=True)
IMAGES, LABELS = torch.rand(COUNT, 3, 32, 32), torch.arange(COUNT) % 2
IDS = torch.randint(3, WORDS, (COUNT, 12))
MASKS = (torch.arange(12) < 5 + torch.arange(COUNT)[:, None] % 7).long()

Row = tuple[str, Callable[[], nn.Module], list[dict[str, Any]]]


def images(name: str) -> list[dict[str, Any]]:
    return [{name: x, "labels": int(y)} for x, y in zip(IMAGES, LABELS, strict=True)]


def texts() -> list[dict[str, Any]]:
    rows = zip(IDS, MASKS, LABELS, strict=True)
    return [{"input_ids": ids, "attention_mask": mask, "labels": int(y)} for ids, mask, y in rows]


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(min(8, channels), channels)


def fixed(model: nn.Module) -> nn.Module:
    return dplip.fix(model)[0]


SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def bert() -> nn.Module:
    return hub.BertForSequenceClassification(hub.BertConfig(vocab_size=WORDS, **SIZES))


def gpt2() -> nn.Module:
    sizes: dict[str, Any] = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return hub.GPT2ForSequenceClassification(hub.GPT2Config(vocab_size=WORDS, pad_token_id=0, **sizes))


def llama() -> nn.Module:
    config = hub.LlamaConfig(vocab_size=WORDS, num_key_value_heads=1, pad_token_id=0, **SIZES)
    return hub.LlamaForSequenceClassification(config)


def mixtral() -> nn.Module:
    config = hub.MixtralConfig(vocab_size=WORDS, num_key_value_heads=1, num_local_experts=4, pad_token_id=0, **SIZES)
    model = hub.MixtralForSequenceClassification(config)
    model.set_experts_implementation("batched_mm")
    return model


class Averaged(nn.Module):
    """The mean of a state space model's states, and a head."""

    def __init__(self) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "intermediate_size": 32}
        self.trunk, self.head = hub.MambaModel(hub.MambaConfig(vocab_size=WORDS, **sizes)), nn.Linear(16, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.trunk(input_ids, attention_mask=attention_mask).last_hidden_state * attention_mask[..., None]
        scores: Tensor = self.head(states.sum(1) / attention_mask.sum(1, keepdim=True))
        return scores


def vit() -> nn.Module:
    return hub.ViTForImageClassification(hub.ViTConfig(image_size=32, patch_size=8, **SIZES))


def lora(model: nn.Module, *targets: str, **settings: Any) -> nn.Module:
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=list(targets), **settings)
    adapted = peft.get_peft_model(model, config)
    dplip.nn.freeze_lora_a(adapted)
    return adapted


def small_timm(name: str, **settings: Any) -> nn.Module:
    return timm.create_model(name, num_classes=2, **settings)


BATCHED = '`set_experts_implementation("batched_mm")`'
FIX, NORM, PLAIN, FREEZE = "`dplip.fix(model)`", "`norm_layer=` GroupNorm", "nothing", "`freeze_lora_a(model)`"
TINY_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
MODELS: dict[str, Row] = {
    "torchvision resnet18": (NORM, lambda: vision.resnet18(num_classes=2, norm_layer=group_norm), images("x")),
    "torchvision resnet18, BatchNorm": (FIX, lambda: fixed(vision.resnet18(num_classes=2)), images("x")),
    "torchvision mobilenet_v3_small": (FIX, lambda: fixed(vision.mobilenet_v3_small(num_classes=2)), images("x")),
    "torchvision efficientnet_b0": (FIX, lambda: fixed(vision.efficientnet_b0(num_classes=2)), images("x")),
    "torchvision densenet (small)": (
        FIX,
        lambda: fixed(vision.DenseNet(8, (2, 2), 16, num_classes=2)),
        images("x"),
    ),
    "torchvision convnext_tiny": (PLAIN, lambda: vision.convnext_tiny(num_classes=2), images("x")),
    "torchvision VisionTransformer": (
        PLAIN,
        lambda: vision.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=2),
        images("x"),
    ),
    "torchvision SwinTransformer (small)": (
        PLAIN,
        lambda: vision.SwinTransformer([2, 2], 8, [2, 2], [2, 2], [4, 4], num_classes=2),
        images("x"),
    ),
    "timm vit_tiny": (PLAIN, lambda: small_timm("vit_tiny_patch16_224", **TINY_VIT), images("x")),
    "timm resnet18": (FIX, lambda: fixed(small_timm("resnet18")), images("x")),
    "timm mixer": (
        PLAIN,
        lambda: small_timm("mixer_s16_224", img_size=32),
        images("x"),
    ),
    "transformers BERT": (PLAIN, bert, texts()),
    "transformers DistilBERT": (
        PLAIN,
        lambda: hub.DistilBertForSequenceClassification(
            hub.DistilBertConfig(vocab_size=WORDS, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
        ),
        texts(),
    ),
    "transformers RoBERTa": (
        PLAIN,
        lambda: hub.RobertaForSequenceClassification(hub.RobertaConfig(vocab_size=WORDS, **SIZES)),
        texts(),
    ),
    "transformers GPT-2": (PLAIN, gpt2, texts()),
    "transformers Llama": (PLAIN, llama, texts()),
    "transformers Mixtral": (BATCHED, mixtral, texts()),
    "transformers Mamba": (PLAIN, Averaged, texts()),
    "transformers ViT": (PLAIN, vit, images("pixel_values")),
    "peft LoRA on BERT": (FREEZE, lambda: lora(bert(), "query", "value"), texts()),
    "peft DoRA on BERT": (FREEZE, lambda: lora(bert(), "query", "value", use_dora=True), texts()),
    "peft LoRA on GPT-2": (FREEZE, lambda: lora(gpt2(), "c_attn", fan_in_fan_out=True), texts()),
    "peft LoRA on Llama": (FREEZE, lambda: lora(llama(), "q_proj", "v_proj"), texts()),
    "peft LoRA on ViT": (
        FREEZE,
        lambda: lora(vit(), "q_proj", "v_proj", modules_to_save=["classifier"]),
        images("pixel_values"),
    ),
}


def trained(make: Callable[[], nn.Module], data: list[dict[str, Any]]) -> tuple[int, float]:
    """Two private steps; the number of trained parameters, and the sensitivity."""
    model = dplip.nn.bound_gradients(make()).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    model, optimizer, loader = dplip.PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(parameters, lr=0.1),
        data_loader=DataLoader(data, 10),  # type: ignore[arg-type]
        criterion=LOSS,
        noise_multiplier=1.0,
    )
    batches = iter(loader)
    for _ in range(2):
        batch = next(batches)
        optimizer.zero_grad()
        LOSS(scores(model, batch), batch["labels"]).backward()
        optimizer.step()
    return sum(p.numel() for p in parameters), float(optimizer.sensitivities().total)


def scores(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    output = model(**{name: value for name, value in batch.items() if name != "labels"})
    return getattr(output, "logits", output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models whose name holds this")
    wanted = parser.parse_args().only
    print("| model | before `bound_gradients` | | trained numbers | sensitivity |\n| --- | --- | --- | --- | --- |")
    for name, (before, make, data) in MODELS.items():
        if wanted not in name:
            continue
        try:
            numbers, sensitivity = trained(make, data)
            print(f"| {name} | {before} | trains | {numbers} | {sensitivity:.1f} |", flush=True)
        except (DPLipError, RuntimeError) as refused:
            print(f"| {name} | {before} | refused: {' '.join(str(refused).split())[:300]} | | |", flush=True)


if __name__ == "__main__":
    main()
