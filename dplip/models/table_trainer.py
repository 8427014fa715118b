"""The trainer of a model on a table, which reports in the units of the table's columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from dplip.certificates import certify_monotonic, correct_radii
from dplip.data import Schema, write_schema
from dplip.records.report import remove
from dplip.runtime.device import device_of
from dplip.runtime.mode import evaluation
from dplip.training import DPLipTrainer
from dplip.training.evaluation import Confusion, held_out

TABLE_RADII = (0.0, 0.01, 0.05, 0.1)
"""The l1 radii of a table's certificates, in parts of the public ranges of its columns."""


class TableTrainer(DPLipTrainer):
    """A trainer whose report also proves the model's directions, and whose folder also holds the schema.

    Args:
        model: a ``TabularInput``, and a network behind it.
        schema: the schema of the table.
        scale: targets of a regression were scaled to [-1/scale, 1/scale].
        others: those of :class:`DPLipTrainer`.
    """

    def __init__(self, model: nn.Sequential, *, schema: Schema, scale: float, **arguments: Any) -> None:
        super().__init__(model, **arguments)
        self.schema, self.scale = schema, scale

    def _measured(self, dataset: Dataset[Any] | None = None) -> tuple[dict[str, float], Confusion | None]:
        """The scores of the base class, with a regression's errors in its target's units, within its public range."""
        scores, confusion = super()._measured(dataset)
        if not self.regression:
            return scores, confusion
        error = scores["mse"] * (self.schema.target.half * self.scale) ** 2
        return {**scores, "mse": error, "rmse": math.sqrt(error)}, None

    def certified_accuracy(
        self, radii: Sequence[float] = TABLE_RADII, norm: float = 1, dataset: Dataset[Any] | None = None
    ) -> list[float]:
        """The certified accuracy of the base class, with radii in parts of the columns' public ranges."""
        return super().certified_accuracy(radii, norm, dataset)

    def _correct_radii(self, norm: float, dataset: Dataset[Any] | None = None) -> Tensor:
        return correct_radii(*in_public_ranges(self.model, held_out(dataset, self.eval_dataset)), norm)

    def report(self, radii: Sequence[float] | None = None, norm: float | None = None) -> dict[str, Any]:
        """The report of the base class, with the proved directions and the margin of the proof."""
        report = super().report(TABLE_RADII if radii is None else radii, norm)
        if not self.regression:
            report["certified"]["unit"] = "public range of a column"
        proof = certify_monotonic(self.model, self.schema.directions, self.schema.features)
        directions = {c.name: c.monotone for c in self.schema.columns if c.monotone}
        return {**report, "monotonicity": {"margin": proof.margin, "directions": directions}}

    def save(self, extra: Mapping[str, Any] | None = None) -> Path:
        """Write ``schema.json`` beside the report and the weights."""
        if self.output_dir is not None and self._process.group.rank == 0:
            remove(self.output_dir / "report.json")  # first: no report stands beside the schema of another run
            write_schema(self.output_dir / "schema.json", self.schema)
        return super().save(extra)


@torch.no_grad()
def in_public_ranges(model: nn.Module, data: Any) -> tuple[nn.Module, TensorDataset]:
    """The part of a model behind its ``TabularInput``, and the rows scaled to parts of their public ranges."""
    first, rest = model.children()
    x, y = data.tensors
    with evaluation(model):
        return rest, TensorDataset(first(x.to(device_of(model))).cpu(), y)
