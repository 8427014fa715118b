"""Enforced models: whatever their code, layers bound the gradient of each parameter, and examples do not mix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dplip.errors import ConfigurationError, DPLipError, MixedExamplesError, first_line
from dplip.nn.bounded.enforcing import CANCELLED, JointRadius
from dplip.nn.bounded.joint import joint_radius, measured
from dplip.nn.bounded.parameter import bounded
from dplip.norms.value_norms import is_real
from dplip.propagation.checks import bare
from dplip.propagation.guards import guards_of
from dplip.rules import refuse
from dplip.runtime.example import Call, Example
from dplip.runtime.mixing import mixes, seeded
from dplip.runtime.modules import modules_of, parameters_of
from dplip.runtime.random_state import random_states, undisturbed
from dplip.runtime.secret import Secret, lent
from dplip.runtime.values import tensors_in
from dplip.sensitivities.uses import Use, behind, bound_of_all, joint_radii_of, unbounded, uses_of
from dplip.separation import Rows, Template, Watch
from dplip.separation.signature import Signature

COUNTS = 5, 7
"""The numbers of public examples with which a model is tried: two tell what is proportional to the batch. Both are
seldom the size of something else."""

ROUNDED = 32 * CANCELLED * 2**-24
"""A gradient below this part of its bound may be what rounding leaves of terms that cancel, as of a bias in front of a
normalisation: a layer scales those of an example to at most ``CANCELLED`` radii."""


class EnforcedModel:
    """A model whose layers bound the gradients of all trained parameters, for any weights, loss and inputs.

    Args:
        model: the model, in training mode.
        example: what it is called with.

    Attributes:
        planned: per trained parameter, its uses in a pass over public examples.
        radii: the joint radii of its layers; None among them: some have a radius of their own.
        draws: whether the model draws random numbers.

    Raises:
        UnboundedOperationError: a trained parameter is used by something that bounds no gradient, or is not used.
        MixedExamplesError: an operator was seen to let one example's value depend on another.
        ConfigurationError: the model does not run on such examples, or not all of its layers share a joint radius.

    Guarantee: on every pass that :meth:`problem` has nothing to say of, one example's gradient of each parameter is at
    most the bound of its :meth:`uses`, that of all parameters at most their joint radius if they have one, and both are
    functions of that example alone. Assumptions: torch's operators do what
    their names say; code outside of torch makes no value of the batch into a number that it hands back.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.model, self.example = model, example
        self.planned: dict[str, Use] = {}
        self.radii: frozenset[JointRadius | None] = frozenset()
        self.plan()

    def plan(self) -> None:
        """Try the model on public examples, and take from their passes what later ones are held against."""
        _check(self.model)
        self._like = next((p for p in self.model.parameters() if p.is_floating_point()), torch.zeros(0))
        with undisturbed():
            outputs, _ = self._try(COUNTS[0], ())  # may fill caches
            self._lend(unbounded(outputs, self._names()))
            self._radii = self._present_radii()
            self._learn()
            self.draws = self._draws()
            self._require_separate()
        for name in self._names().values():
            if name not in self.planned:
                refuse(
                    name,
                    "a trainable parameter",
                    "is not used by the model's output.",
                    "Freeze it with requires_grad_(False).",
                )

    def _lend(self, names: Sequence[str]) -> None:
        """Let weights of bounded layers be used by other code too: by the layer's radius where they meet the examples.

        Layers whose radius follows the gradients keep theirs to themselves.
        """
        for name in names:
            path, _, weight = name.rpartition(".")
            layer: Any = self.model.get_submodule(path)
            if hasattr(layer, "radius") and getattr(layer, "slack", None) is None:
                bounded(getattr(layer, weight), layer.radius)

    def watch(self, call: Call) -> Watch:
        """A watch of a pass with this call, which refuses operators that mix examples."""
        self._before = guards_of(self.model)
        return self._watch(call)

    def problem(self, call: Call, watch: Watch, outputs: list[Tensor], uses: Mapping[str, Use]) -> str | None:
        """Why the bounds are not those of a pass that was watched and has these uses, as a sentence; None: they are."""
        outside = behind(self.example.tensors(call), self._names())
        if outside:
            return (
                f"an input was computed of the trained parameter {outside[0]}, outside of the model's forward, where "
                "examples may have mixed. Call the whole model on what the loader hands out."
            )
        for output in outputs:
            if watch.rows(output) != Rows(0):
                return (
                    f"an output of shape {tuple(output.shape)} is not one row for each example, as far as the "
                    "operators show. Return tensors with the batch as their first axis."
                )
        if self._alike(watch, outputs, uses):
            return None
        if self._before == guards_of(self.model):  # else the pass has left something behind, for public ones to find
            with undisturbed():
                # an attribute of the model may have changed, or the precision, or what inputs need gradients
                self._learn([t.requires_grad for t in self.example.tensors(call)])
            if self._alike(watch, outputs, uses):
                return None
        return (
            f"the model has run other operators or radii on a batch of {watch.examples} examples than it does on "
            f"{COUNTS[0]} and {COUNTS[1]} public ones, in a way that may depend on the batch (a branch, a number "
            "computed of its size, an attribute that forward sets, Python's random numbers). Let it do the same at "
            'every step; change attributes between steps; give torch.cdist compute_mode="donot_use_mm_for_euclid_dist".'
        )

    def _watch(self, call: Call) -> Watch:
        tensors = self.example.tensors(call)
        return Watch(tensors, len(tensors[0]), self.model)

    def _alike(self, watch: Watch, outputs: list[Tensor], uses: Mapping[str, Use]) -> bool:
        """Whether a pass is one of those over public examples, but for their number."""
        bounds = [{name: use.bound for name, use in each.items()} for each in (self.planned, uses)]
        alike = bounds[0] == bounds[1] and self.radii == self.joint(outputs)
        return alike and self._template.fits(watch.signature, watch.examples)

    def uses(self, outputs: list[Tensor]) -> dict[str, Use]:
        """Per trained parameter, its uses in the graph of these outputs."""
        return uses_of(outputs, self._names())

    def joint(self, outputs: list[Tensor]) -> frozenset[JointRadius | None]:
        """The joint radii in the graph of these outputs; empty: the model has none."""
        return frozenset() if joint_radius(self.model) is None else joint_radii_of(outputs)

    def current(self) -> bool:
        """Whether the trained parameters and the radii are those of the plan."""
        return self.planned.keys() == set(self._names().values()) and self._radii == self._present_radii()

    def rescale(self, factors: Mapping[str, float]) -> None:
        """The radii have changed by these factors, of the bound of each parameter, and nothing else has."""
        self.planned = {n: Use(use.bound * factors.get(n, 1.0), use.summation) for n, use in self.planned.items()}
        self._radii = self._present_radii()

    def _present_radii(self) -> list[Any]:
        held = [*modules_of(self.model).values(), *parameters_of(self.model).values()]
        return [vars(one)["radius"] for one in held if "radius" in vars(one)]

    def _names(self) -> dict[int, str]:
        return {id(p): name for name, p in parameters_of(self.model).items() if p.requires_grad}

    def _learn(self, gradients: Sequence[bool] = ()) -> None:
        """Take operators and uses from passes over two numbers of public examples; some inputs may need gradients."""
        passes = [(*self._try(count, gradients), count) for count in COUNTS]
        self._template = Template.of([(signature, count) for _, signature, count in passes])
        found = self.uses(passes[-1][0])
        self.planned = {name: found[name] for name in self._names().values() if name in found}
        self.radii = self.joint(passes[-1][0])
        bound_of_all(self.radii)  # refuses several

    def _try(self, count: int, gradients: Sequence[bool]) -> tuple[list[Tensor], Signature]:
        """The outputs and the operators of a pass over so many public examples."""
        call = self.example.batch(count, self._like)
        for t, needed in zip(self.example.tensors(call), gradients, strict=False):
            t.requires_grad_(needed)
        # As in a private pass, with the same operators for masks.
        with _plainly(self._like.device), lent(Secret(0), dropout=True), self._watch(call) as watch:
            outputs = floats(self._run(call))
        for output in outputs:
            if watch.rows(output) != Rows(0):
                raise MixedExamplesError(
                    f"the model: {count} examples gave an output of shape {tuple(output.shape)} that is not one row "
                    "for each. Return tensors with the batch as their first axis."
                )
        if not outputs:
            raise ConfigurationError(
                "the model: it returns no floating-point tensor. Return scores, or tuples and dicts of them."
            )
        return outputs, watch.signature

    def _run(self, call: Call) -> Any:
        try:
            with bare(self.model):
                return self.model(*call[0], **call[1])
        except DPLipError:
            raise
        except Exception as wrong:
            raise ConfigurationError(
                f"example={self.example}: the model does not run on a batch of such examples ({type(wrong).__name__}: "
                f"{first_line(wrong)}). Give example= what the model is called with, for one example."
            ) from None

    def _draws(self) -> bool:
        call = self.example.batch(COUNTS[1], self._like)
        before = random_states()
        with torch.no_grad():
            self._run(call)
        return random_states() != before

    def _require_separate(self) -> None:
        """Compare examples in several batches, by value and by gradient."""
        weights = [p for _, p in self.model.named_parameters() if p.requires_grad]

        def joined(*rows: Tensor) -> Tensor:
            call = self.example.with_tensors(list(rows))
            with self._watch(call):  # by which layers know where the examples are
                outputs = floats(measured(self.model, self._run(call)))
            return torch.cat([output.flatten(1) for output in outputs], 1)

        rows = self.example.tensors(self.example.batch(COUNTS[0], self._like))
        with _plainly(self._like.device), torch.autocast(self._like.device.type, enabled=False):
            rounding = [ROUNDED * self.planned[n].bound if n in self.planned else 0.0 for n in self._names().values()]
            if mixes(joined, rows, weights, alone=not self.draws, rounding=rounding):
                raise MixedExamplesError(
                    "the model: its output or gradient for one example depends on the others. Treat each by itself."
                )


def floats(output: Any) -> list[Tensor]:
    """The floating-point tensors of a model's output, whatever holds them."""
    return [t for t in tensors_in(output) if t.is_floating_point()]


@contextmanager
def _plainly(device: torch.device) -> Iterator[None]:
    with seeded(device), torch.inference_mode(False), torch.enable_grad():
        yield


def _check(model: nn.Module) -> None:
    """Refuse what no operator would show."""
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigurationError("model: no parameter of it is trainable, so there is nothing to train. Thaw some.")
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            refuse(path, type(module).__name__, "has no weights yet.", "Run the model once, on a public batch.")
        if vars(module).get("_compiled_call_impl") is not None or type(module).__name__ == "OptimizedModule":
            refuse(path, type(module).__name__, "is compiled, and its operators are not seen.", "Leave out compile().")
    for name, p in model.named_parameters():
        if p.requires_grad and not is_real(p):
            refuse(
                name,
                "a parameter",
                f"is of type {p.dtype}, {p.layout}, whose arithmetic the bounds do not cover.",
                "Train in float32: model.float(). (For speed, see half precision in docs/guarantees.md.)",
            )
