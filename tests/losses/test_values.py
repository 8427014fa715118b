"""Losses: value and gradient are those of the published formula, example by example."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.losses import (
    CASES,
    CLASSES,
    RESCALED,
    build,
    every_case,
    every_rescaling,
    logit_gradient,
    ordinary,
    worst_outputs,
)
from torch import Tensor

from dplip.errors import ConfigurationError
from dplip.losses import (
    HKR,
    BinaryCrossEntropy,
    ClippedHinge,
    Cosine,
    CrossEntropy,
    Hinge,
    Huber,
    MulticlassKR,
    SmoothL1,
)
from dplip.losses.base import FLOOR


def of_classes(
    z: Tensor,
    y: Tensor,
    temperature: float = 1.0,
    weight: list[float] | None = None,
    label_smoothing: float = 0.0,
    soft: bool = False,
    ignore_index: int = -1,
    within: str = "mean",
    classes_last: bool = False,
    shift: bool = False,
) -> tuple[Tensor, Tensor]:
    """Value and gradient of a cross-entropy: outputs and targets are brought to (batch, positions, classes)."""
    axis = -1 if classes_last else 1
    moved = z.movedim(axis, -1)
    scores = moved.flatten(1, -2) if z.ndim > 2 else moved[:, None]
    if soft:
        q, counted = y.double().movedim(axis, -1).reshape(scores.shape), torch.ones(scores.shape[:2])
    else:
        labels = y.reshape(scores.shape[:2])
        if shift:
            labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], ignore_index)], 1)
        counted = (labels != ignore_index).double()
        q = torch.eye(CLASSES, dtype=torch.float64)[labels.clamp_min(0)]
    a = torch.tensor(weight or [1.0] * CLASSES) * ((1 - label_smoothing) * q + label_smoothing / CLASSES)
    share = counted if within == "sum" else counted / counted.sum(1, keepdim=True).clamp_min(1)
    value = -(a * (temperature * scores).log_softmax(-1)).sum(-1) / temperature
    gradient = (a.sum(-1, keepdim=True) * (temperature * scores).softmax(-1) - a) * share[:, :, None]
    return (value * share).sum(1), gradient.reshape(moved.shape).movedim(-1, axis)


def of_labels(
    z: Tensor,
    y: Tensor,
    temperature: float = 1.0,
    weight: Any = 1.0,
    pos_weight: Any = 1.0,
    within: str = "mean",
) -> tuple[Tensor, Tensor]:
    scores, y, (w, c) = (
        z.reshape(len(z), -1) * temperature,
        y.reshape(len(z), -1).double(),
        map(torch.as_tensor, (weight, pos_weight)),
    )
    value = w * (c * y * F.softplus(-scores) + (1 - y) * F.softplus(scores)) / temperature
    gradient = w * ((1 - y) * scores.sigmoid() - c * y * (-scores).sigmoid())
    share = 1 if within == "sum" else scores.shape[1]
    return value.sum(1) / share, gradient.reshape(z.shape) / share


def within_norm(rows: Tensor, limit: float) -> Tensor:
    return rows * (limit / rows.norm(dim=1, keepdim=True)).clamp_max(1.0)


def of_several(case: str, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of the losses of several outputs, and of the function of one's own."""
    if case == "own":
        return (z - y).pow(4).sum(1) / 4, within_norm((z - y).pow(3), 2.0)
    if case == "elbo":
        r, m, v = z[:, :4] - y, z[:, 4:6], z[:, 6:]
        length = r.norm(dim=1)
        value = torch.where(length <= 0.7, length.square() / 2, 0.7 * (length - 0.35))
        divergence = (m.square() + v.exp() - 1 - v).sum(1) / 2
        parts = within_norm(r, 0.7), m / 2, (v.exp() - 1) / 4
        return value + divergence / 2, within_norm(torch.cat(parts, 1), 2.0)
    own, r = torch.eye(3).double()[y[:, 0].long() % 3], z[:, 3:] - y[:, 1:]
    p = z[:, :3].softmax(1)
    huber = torch.where(r.abs() <= 0.7, r.square() / 2, 0.7 * (r.abs() - 0.35)).sum(1)
    classes = within_norm(p - own, CASES[case][1].get("own", 2.0))
    value = 2 * -(own * p.log()).sum(1) + huber / 2
    return value, torch.cat([2 * classes, r.clamp(-0.7, 0.7) / 2], 1)


def formula(case: str, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Value and logit gradient of every example from the published formula, in float64, without autograd."""
    kind, arguments, _, _ = CASES[case]
    z, rows = z.double(), torch.arange(len(z))
    if kind is CrossEntropy:
        return of_classes(z, y, **arguments)
    if kind is BinaryCrossEntropy:
        return of_labels(z, y, **arguments)
    if case in (*RESCALED, "heads"):
        return of_several(case, z, y.double())
    if kind is Hinge and z.shape[1:] == (1,):
        sign, margin = 2 * y.double() - 1, arguments.get("margin", 1.0)
        inside = margin - sign * z > 0
        return (margin - sign * z).clamp_min(0)[:, 0], -sign * inside
    if kind is ClippedHinge:
        threshold, weight = arguments.get("threshold", 0.6), arguments.get("cross_entropy", 0.1)
        t, own = arguments.get("temperature", 1.0), torch.eye(CLASSES, dtype=torch.float64)[y]
        rival = torch.where(own > 0, -math.inf, z).argmax(1)
        gap = (z[rows, rival] - z[rows, y]) / threshold + 1
        slope = ((gap > 0) & (gap < 1)).double()[:, None] / threshold
        hinge = slope * (torch.eye(CLASSES, dtype=torch.float64)[rival] - own)
        value = gap.clamp(0, 1) - weight * (t * z).log_softmax(1)[rows, y]
        return value, hinge + weight * t * ((t * z).softmax(1) - own)
    if kind in (Hinge, HKR, MulticlassKR):
        value, gradient = torch.zeros(len(z)).double(), torch.zeros_like(z)
        alpha = {Hinge: 1.0, HKR: arguments.get("alpha"), MulticlassKR: 0.0}[kind]
        pi = torch.tensor(arguments.get("class_weights", [1 / CLASSES] * CLASSES)).double()
        for i, label in enumerate(y.tolist()):
            others = [j for j in range(CLASSES) if j != label]
            nearest = max(others, key=z[i].__getitem__)
            gap = arguments.get("margin", 1.0) - z[i, label] + z[i, nearest]
            if alpha and gap > 0:
                value[i] += alpha * gap
                gradient[i, label] -= alpha
                gradient[i, nearest] += alpha
            if kind is not Hinge:
                slopes = 1 / (1 - pi)
                slopes[label] = -1 / pi[label]
                value[i] += (slopes * z[i]).sum() / CLASSES
                gradient[i] += slopes / CLASSES
        return value, gradient
    if kind is Cosine:
        floor, length = arguments.get("floor", 1.0), z.norm(dim=1)
        own, direction = torch.eye(CLASSES).double()[y], z / length[:, None]
        turning = own - (own * direction).sum(1, keepdim=True) * direction
        gradient = torch.where((length > floor)[:, None], -turning / length[:, None], -own / floor)
        return 1 - z[rows, y] / length.clamp_min(floor), gradient
    delta, r = arguments.get("delta", 1.0), (z - y.double()).reshape(len(z), -1)
    if kind in (Huber, SmoothL1):
        small, unit = r.abs() <= delta, delta if kind is SmoothL1 else 1.0
        value = torch.where(small, r.square() / 2, delta * (r.abs() - delta / 2)).sum(1)
        return value / unit, r.clamp(-delta, delta).reshape(z.shape) / unit
    length = r.norm(dim=1)
    value = torch.where(length <= delta, length.square() / 2, delta * (length - delta / 2))
    return value, (r * (delta / length).clamp_max(1.0)[:, None]).reshape(z.shape)


@every_case
def test_value_and_gradient_are_those_of_the_published_formula(case):
    loss = build(case)
    outputs, targets = ordinary(case)
    value, gradient = formula(case, outputs, targets)
    torch.testing.assert_close(loss(outputs, targets, reduction="none").double(), value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logit_gradient(loss, outputs, targets).double(), gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case not in RESCALED])
def test_a_plain_loss_is_never_rescaled_not_even_at_its_largest_gradient(case):
    """A declared bound that is too small would show here: the gate would bend the gradient of the formula."""
    loss = build(case)
    outputs, targets = worst_outputs(case)
    small = outputs.reshape(len(outputs), -1).abs().amax(1) <= 1e6  # beyond, float32 itself departs from the formula
    outputs, targets = outputs[small], targets[small]
    z = outputs.clone().requires_grad_()
    loss.per_example(z, targets).sum().backward()
    torch.testing.assert_close(logit_gradient(loss, outputs, targets), z.grad, rtol=3e-6, atol=1e-9)


@every_case
def test_the_sum_is_the_sum_of_the_examples(case):
    outputs, targets = ordinary(case)
    loss = build(case)
    each = loss(outputs, targets, reduction="none")
    assert each.shape == (len(outputs),)
    torch.testing.assert_close(loss(outputs, targets), each.sum())
    assert loss(outputs, targets).ndim == 0


@pytest.mark.parametrize("reduction", ["mean", "avg", None])
def test_a_mean_over_the_batch_is_refused(reduction):
    with pytest.raises(ConfigurationError, match="leak"):
        CrossEntropy()(torch.zeros(2, 3), torch.tensor([0, 1]), reduction=reduction)


@every_case
@every_rescaling
def test_an_example_is_treated_alike_whatever_else_is_in_the_batch(case, rescaling):
    """Regression of a published loss that divided by the class counts of the batch."""
    loss = build(case, rescaling)
    outputs, targets = ordinary(case)
    if CASES[case][3] == "label":
        targets[1:] = (targets[0] + 1) % CLASSES  # the first example is the only one of its class
    alone = logit_gradient(loss, outputs[:1], targets[:1])
    together = logit_gradient(loss, outputs, targets)
    torch.testing.assert_close(alone, together[:1])
    outputs[1:] = math.nan
    torch.testing.assert_close(alone, logit_gradient(loss, outputs, targets)[:1])
    values = loss(outputs, targets, reduction="none")
    torch.testing.assert_close(loss(outputs[:1], targets[:1]), values[0])


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith(("kr", "hkr", "hinge", "clipped_hinge"))])
@every_rescaling
def test_an_example_whose_gradient_is_nan_sends_nothing_back(case, rescaling):
    outputs, targets = ordinary(case)
    outputs[3] = math.nan
    assert not logit_gradient(build(case, rescaling), outputs, targets)[3].any()


@pytest.mark.parametrize("upstream", [math.nan, math.inf])
def test_a_broken_factor_on_the_loss_sends_nothing_back(upstream):
    outputs, targets = ordinary("cross_entropy")
    assert not logit_gradient(CrossEntropy(), outputs, targets, upstream).any()


@every_case
def test_no_examples_give_a_loss_of_zero_and_no_gradient(case):
    outputs, targets = ordinary(case)
    z = outputs[:0].clone().requires_grad_()
    value = build(case)(z, targets[:0])
    value.backward()
    assert float(value.detach()) == 0
    assert z.grad is not None and z.grad.shape == z.shape


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 32.0])
def test_temperature_divides_the_cross_entropy_of_the_scaled_scores(temperature):
    z, y = ordinary("cross_entropy")
    scaled = CrossEntropy()(temperature * z, y) / temperature
    torch.testing.assert_close(CrossEntropy(temperature)(z, y), scaled)
    p = (temperature * z).softmax(1)
    torch.testing.assert_close(
        logit_gradient(CrossEntropy(temperature), z, y), p - torch.eye(CLASSES)[y], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("temperature", [0.01, 1.0, 1000.0])
def test_the_bound_of_cross_entropy_does_not_depend_on_the_temperature(temperature):
    norms = CrossEntropy(temperature).gradient_norms((10,))
    assert (norms.l1, norms.l2, norms.linf) == (2, pytest.approx(math.sqrt(2)), 1)  # type: ignore[comparison-overlap]


def test_normalize_brings_a_gradient_to_norm_one_and_shrinks_it_linearly_below_the_floor():
    # Binary cross-entropy with target 0 has gradient sigmoid(z): any norm in (0, 1) is reached.
    wanted = torch.tensor([1e-6, 1e-3, 0.02, 0.049, 0.051, 0.3, 0.9], dtype=torch.float64)
    gradient = logit_gradient(BinaryCrossEntropy(normalize=True), wanted.logit(), torch.zeros(len(wanted)))
    torch.testing.assert_close(gradient, (wanted / FLOOR).clamp_max(1), rtol=1e-5, atol=0)


@every_case
def test_normalize_keeps_the_direction_of_every_gradient(case):
    outputs, targets = ordinary(case)
    plain = logit_gradient(build(case), outputs, targets).reshape(len(outputs), -1)
    scaled = logit_gradient(build(case, "normalize"), outputs, targets).reshape(len(outputs), -1)
    size = plain.norm(dim=1, keepdim=True)
    torch.testing.assert_close(scaled, plain / size.clamp_min(FLOOR), rtol=1e-5, atol=1e-6)
