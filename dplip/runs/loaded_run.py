"""``load_run``: a finished run as an object that predicts, with a certified radius for each prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dplip.certificates import Certifier, predictions
from dplip.data import Schema, encode_features
from dplip.errors import ConfigurationError, DPLipError
from dplip.models.monotone import TabularPreset
from dplip.runs.export import export
from dplip.runs.predictions import Predictions
from dplip.runs.saved import new_model, read_run_report, recipe_of, schema_of, trained_model
from dplip.runtime.device import device_of
from dplip.runtime.mode import evaluation

PART = 512
"""The most inputs that are predicted at once."""


def load_run(folder: str | Path, model: Callable[[], nn.Module] | None = None) -> LoadedRun:
    """A finished run, read from its folder; no code in the folder runs, and no data set is needed.

    Args:
        folder: the ``output_dir`` of a trainer, or ``--out`` of ``dplip train``.
        model: makes a new model as that of the run; None: by the recipe of ``dplip train``.

    Raises:
        ConfigurationError: the folder is missing, holds no finished run, or one that another version wrote; or the
            weights are not those of the model.
        CheckpointError: the weights are damaged, or not those that the report is about.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigurationError(f"folder={str(folder)!r}: there is no such folder. Give that of a finished run.")
    report = read_run_report(folder)
    schema = schema_of(folder, report)
    make = partial(new_model, folder, report, schema) if model is None else model
    recipe = recipe_of(folder, report) if "run" in report else None
    scale = recipe.scale if isinstance(recipe, TabularPreset) else 1.0
    return LoadedRun(folder, report, trained_model(folder, report, make), schema, scale)


class LoadedRun:
    """A finished run.

    Args:
        scale: the targets of a regression were scaled to [-1/scale, 1/scale].

    Attributes:
        folder, report: where it is, and its report.
        model: the trained model, in evaluation mode.
        schema: that of the table that it was trained on; None: it was trained on something else.
    """

    def __init__(
        self, folder: Path, report: dict[str, Any], model: nn.Module, schema: Schema | None, scale: float
    ) -> None:
        self.folder, self.report, self.model, self.schema, self._scale = folder, report, model, schema, scale
        self._certifiers: dict[float, Certifier | str] = {}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input.

        Raises:
            ConfigurationError: the model takes something else than one tensor of floating-point numbers.
        """
        shape = self.report["input"]["shape"]
        if shape is None:
            raise ConfigurationError(
                "the model takes something else than one tensor of floating-point numbers. Call run.model itself, as "
                "in training."
            )
        return tuple(shape)

    @property
    def norm(self) -> float:
        """The norm of the certificates that the run was reported with."""
        return float(self.report["certified"]["norm"])

    @property
    def unit(self) -> str:
        """What a certified radius of 1 is."""
        return "the public range of a column" if self.schema is not None else "the model's own input units"

    @property
    def regression(self) -> bool:
        return self.schema is not None and self.schema.regression

    def certifier(self, norm: float | None = None) -> Certifier | str:
        """What certifies the predictions in a norm, kept with its slopes; or the reason why nothing does.

        For a table it takes rows scaled to parts of the public ranges, as the first layer of the model makes them.
        """
        norm = self.norm if norm is None else norm
        if norm not in self._certifiers:
            self._certifiers[norm] = self._new_certifier(norm)
        return self._certifiers[norm]

    def _new_certifier(self, norm: float) -> Certifier | str:
        if self.regression:
            return "a regression has no class that could be certified"
        try:
            certifier = Certifier(self.certified_part, self.input_shape, norm)
        except DPLipError as refused:
            if norm not in (1, 2, math.inf):
                raise
            return str(refused)
        steep = certifier.slopes.isinf().any() and certifier.boxes is None
        return "nothing bounds the slopes of the model's scores" if steep else certifier

    @property
    def certified_part(self) -> nn.Module:
        """The part of the model that certificates are for: all of it, or what follows the ranges of a table."""
        return self.model if self.schema is None else list(self.model.children())[1]

    def predict(self, x: Any, norm: float | None = None, *, radii: bool = True) -> Predictions:
        """The predictions for a batch of inputs.

        Args:
            x: a tensor or an array of floating-point numbers, (batch, ...), scaled as in training; for a table also a
                data frame with the columns of the schema. Numbers are rounded to the type of the weights first, and a
                radius is about the rounded input.
            norm: 1, 2 or inf, the norm of the radii; None: that of the run's report.
            radii: whether to certify, which takes longer.

        Raises:
            ConfigurationError: x has another shape or type, or holds NaN or infinity.

        Guarantee: as of :func:`dplip.certify`, for the radii.
        """
        inputs = self._inputs(x)
        norm = self.norm if norm is None else norm
        certifier = self.certifier(norm) if radii else "radii=False: none was asked for"
        scores, found = [], []
        with evaluation(self.model), torch.no_grad():
            for part in inputs.split(PART) if len(inputs) else ():
                scores.append(self.model(part).cpu())
                if isinstance(certifier, Certifier):
                    begun = part if self.schema is None else next(self.model.children())(part)
                    found += certifier.radii(begun, scores[-1].to(begun.device)).tolist()
        together = torch.cat(scores) if scores else torch.zeros(0)
        if isinstance(certifier, Certifier):
            return Predictions(self._labels(together), together, found, norm, self.unit, None)
        return Predictions(self._labels(together), together, [None] * len(inputs), norm, self.unit, certifier)

    def export(
        self, path: str | Path, norm: float | None = None, *, low: float = 0.0, high: float = 1.0, largest: float = 2.0
    ) -> Path:
        """Write the model for a service without dplip, and beside it as JSON what certifies its predictions.

        Args:
            path: a new file, ``NAME.pt2``, for ``torch.export.load``; the other is ``NAME.json``.
            norm: 1, 2 or inf, the norm of the radii; None: that of the run's report.
            low, high: the range of an input's entries; the certificate is for inputs within it.
            largest: the largest radius that a service may certify.

        Returns:
            The path of the JSON file.

        Raises:
            ConfigurationError: a file is there already, or torch.export does not take the model.

        Guarantee: for inputs in the range, the radius by the formula of :mod:`dplip.runs.export` is one within which no
        input gets another label from the exported model, as torch computes it in full precision.
        """
        return export(self, path, norm, low, high, largest)

    def _inputs(self, x: Any) -> Tensor:
        weight = next((p for p in self.model.parameters() if p.is_floating_point()), torch.zeros(()))
        if self.schema is not None and hasattr(x, "columns"):
            x = encode_features(x, self.schema, "x")
        if not isinstance(x, Tensor | np.ndarray):
            raise ConfigurationError(f"x is a {type(x).__name__}: give a tensor or an array of numbers (batch, ...).")
        shape = self.input_shape
        if tuple(x.shape[1:]) != shape or x.ndim == 0:
            hint = ". A single input needs an axis in front: x[None]" if tuple(x.shape) == shape else ""
            wanted = ", ".join(map(str, ("batch", *shape)))
            raise ConfigurationError(f"x of shape {tuple(x.shape)}: the model takes ({wanted}){hint}.")
        x = torch.from_numpy(np.ascontiguousarray(x)) if isinstance(x, np.ndarray) and x.dtype.kind in "fiub" else x
        if not (isinstance(x, Tensor) and x.is_floating_point()):
            raise ConfigurationError(
                f"x of {x.dtype}: give floating-point numbers, scaled as in training (bytes of pixels: x / 255)."
            )
        x = x.detach().to(device_of(self.model), weight.dtype)
        finite = x.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            raise ConfigurationError(
                f"x[{int(finite.int().argmin())}] holds NaN or infinity (and {int((~finite).sum()) - 1} other inputs "
                "do): correct them or leave them out."
            )
        return x

    def _labels(self, scores: Tensor) -> list[Any]:
        if self.schema is None:
            return list(predictions(scores).tolist()) if len(scores) else []
        target = self.schema.target
        if self.regression:
            values = target.middle + target.half * self._scale * scores.double().reshape(-1)
            return list(values.tolist())
        names = target.levels or (False, True)
        return [names[label] for label in predictions(scores).tolist()] if len(scores) else []
