"""Losses: the declared bound of the logit gradient holds for every output and target, and costs nothing inside it."""

import copy
import math
import pickle
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dplip
from dplip.errors import ConfigurationError
from dplip.losses import (
    HKR,
    BinaryCrossEntropy,
    ClippedHinge,
    ClippedMSE,
    Cosine,
    CrossEntropy,
    Hinge,
    Huber,
    MulticlassKR,
)
from dplip.losses.base import FLOOR

torch.set_num_threads(1)

CLASSES = 5
FREQUENCIES = [0.05, 0.1, 0.15, 0.3, 0.4]

# name: (loss class, its own arguments, shape of one output, kind of target)
CASES = {
    "cross_entropy": (CrossEntropy, {}, (CLASSES,), "label"),
    "cross_entropy_hot": (CrossEntropy, {"temperature": 32.0}, (CLASSES,), "label"),
    "cross_entropy_cold": (CrossEntropy, {"temperature": 0.1}, (CLASSES,), "label"),
    "binary_cross_entropy": (BinaryCrossEntropy, {}, (1,), "binary"),
    "binary_cross_entropy_flat": (BinaryCrossEntropy, {}, (), "binary"),
    "binary_cross_entropy_hot": (BinaryCrossEntropy, {"temperature": 16.0}, (1,), "binary"),
    "hinge": (Hinge, {}, (CLASSES,), "label"),
    "hinge_wide": (Hinge, {"margin": 5.0}, (CLASSES,), "label"),
    "hinge_binary": (Hinge, {}, (1,), "binary"),
    "clipped_hinge": (ClippedHinge, {}, (CLASSES,), "label"),
    "clipped_hinge_alone": (ClippedHinge, {"threshold": 2.0, "cross_entropy": 0.0}, (CLASSES,), "label"),
    "clipped_hinge_hot": (ClippedHinge, {"cross_entropy": 0.5, "temperature": 4.0}, (CLASSES,), "label"),
    "kr": (MulticlassKR, {}, (CLASSES,), "label"),
    "kr_imbalanced": (MulticlassKR, {"class_weights": FREQUENCIES}, (CLASSES,), "label"),
    "hkr": (HKR, {"alpha": 3.0}, (CLASSES,), "label"),
    "hkr_imbalanced": (HKR, {"alpha": 0.5, "class_weights": FREQUENCIES}, (CLASSES,), "label"),
    "cosine": (Cosine, {}, (CLASSES,), "label"),
    "cosine_small_floor": (Cosine, {"floor": 0.2}, (CLASSES,), "label"),
    "huber": (Huber, {"delta": 0.7}, (3,), "value"),
    "huber_image": (Huber, {}, (2, 2, 2), "value"),
    "huber_scalar": (Huber, {}, (), "value"),
    "clipped_mse": (ClippedMSE, {"delta": 0.7}, (3,), "value"),
    "clipped_mse_scalar": (ClippedMSE, {}, (1,), "value"),
}
RESCALINGS = {
    "plain": {},
    "max_gradient": {"max_gradient": 0.3},
    "normalize": {"normalize": True},
    "normalize_and_max_gradient": {"normalize": True, "max_gradient": 0.3},
}
every_case = pytest.mark.parametrize("case", CASES)
every_rescaling = pytest.mark.parametrize("rescaling", RESCALINGS)


def build(case: str, rescaling: str = "plain"):
    kind, arguments, _, _ = CASES[case]
    return kind(**arguments, **RESCALINGS[rescaling])


def targets_for(case: str, batch: int, generator: torch.Generator) -> Tensor:
    _, _, shape, kind = CASES[case]
    if kind == "label":
        return torch.randint(0, CLASSES, (batch,), generator=generator)
    if kind == "binary":
        return torch.randint(0, 2, (batch, *shape), generator=generator)
    return torch.randn(batch, *shape, generator=generator)


@cache
def worst_outputs(case: str) -> tuple[Tensor, Tensor]:
    """Outputs that reach every corner of a loss: zero, ties, all scales up to overflow, one-sided, NaN, infinity."""
    _, _, shape, kind = CASES[case]
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.0, 1e-30, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e6, 1e18, 1e30, 3e38])
    z = torch.randn(200, len(scales), *shape, generator=generator).clamp(-1, 1)
    z = (z * scales.reshape(-1, *[1] * len(shape))).flatten(0, 1)
    ties = z.sign() * z.abs().max()
    corners = torch.randint(-1, 2, (400, *shape), generator=generator).float()
    broken = corners.clone()
    marks = torch.tensor([math.nan, math.inf, -math.inf])
    which = torch.randint(0, 4, broken.shape, generator=generator)
    broken = torch.where(which > 0, marks[(which - 1).clamp_min(0)], broken)
    outputs = torch.cat([z, ties, corners, 50 * corners, 1e5 * corners, broken])
    targets = targets_for(case, len(outputs), generator)
    if kind == "value":  # residuals on both sides of the bend
        targets[: len(z)] = z + torch.randn(z.shape, generator=generator)
        targets = targets.nan_to_num(0.0, 0.0, 0.0)
    return outputs, targets


def logit_gradient(loss, outputs: Tensor, targets: Tensor, factor: float = 1.0) -> Tensor:
    z = outputs.clone().requires_grad_()
    (factor * loss(z, targets)).backward()
    assert z.grad is not None
    return z.grad


def norms_of_rows(gradient: Tensor) -> dict[float, Tensor]:
    rows = gradient.double().reshape(len(gradient), -1)
    return {p: torch.linalg.vector_norm(rows, p, 1) for p in (1, 2, math.inf)}


def formula(case: str, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Value and logit gradient of every example from the published formula, in float64, without autograd."""
    kind, arguments, _, _ = CASES[case]
    z, rows = z.double(), torch.arange(len(z))
    if kind is CrossEntropy:
        t = arguments.get("temperature", 1.0)
        p = (t * z).softmax(1)
        return -(t * z).log_softmax(1)[rows, y] / t, p - torch.eye(CLASSES).double()[y]
    if kind is BinaryCrossEntropy:
        t, flat = arguments.get("temperature", 1.0), z.reshape(-1)
        sign = 1 - 2 * y.reshape(-1).double()
        return torch.nn.functional.softplus(sign * t * flat) / t, (sign * (sign * t * flat).sigmoid()).reshape(z.shape)
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
            rival = max(others, key=lambda j, i=i: z[i, j])
            gap = arguments.get("margin", 1.0) - z[i, label] + z[i, rival]
            if alpha and gap > 0:
                value[i] += alpha * gap
                gradient[i, label] -= alpha
                gradient[i, rival] += alpha
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
    if kind is Huber:
        small = r.abs() <= delta
        value = torch.where(small, r.square() / 2, delta * (r.abs() - delta / 2)).sum(1)
        return value, r.clamp(-delta, delta).reshape(z.shape)
    length = r.norm(dim=1)
    value = torch.where(length <= delta, length.square() / 2, delta * (length - delta / 2))
    return value, (r * (delta / length).clamp_max(1.0)[:, None]).reshape(z.shape)


def ordinary(case: str, batch: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    _, _, shape, _ = CASES[case]
    return 0.8 * torch.randn(batch, *shape, generator=generator), targets_for(case, batch, generator)


@every_case
@every_rescaling
def test_no_output_and_target_exceed_the_declared_norms(case, rescaling):
    loss = build(case, rescaling)
    outputs, targets = worst_outputs(case)
    declared = loss.gradient_norms(CASES[case][2])
    for factor in (1.0, -1.0, 10.0, 1e30):
        gradient = logit_gradient(loss, outputs, targets, factor)
        assert gradient.isfinite().all()
        for p, attained in norms_of_rows(gradient).items():
            assert float(attained.max()) <= declared.norm(p)


@settings(deadline=None, max_examples=100)
@given(
    case=st.sampled_from(list(CASES)),
    rescaling=st.sampled_from(list(RESCALINGS)),
    entries=st.lists(st.floats(width=32), min_size=8, max_size=8),
    seed=st.integers(0, 2**16),
)
def test_whatever_the_entries_are_the_declared_norms_hold(case, rescaling, entries, seed):
    loss, shape = build(case, rescaling), CASES[case][2]
    outputs = torch.tensor(entries)[: math.prod(shape)].reshape(1, *shape)
    targets = targets_for(case, 1, torch.Generator().manual_seed(seed))
    gradient = logit_gradient(loss, outputs, targets)
    for p, attained in norms_of_rows(gradient).items():
        assert float(attained) <= loss.gradient_norms(shape).norm(p)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_outputs_obey_the_declared_norms_up_to_their_own_rounding(case, dtype):
    outputs, targets = (t[-2400:] for t in worst_outputs(case))
    declared = build(case).gradient_norms(CASES[case][2])
    rounding = 1 + 2 * torch.finfo(dtype).eps
    for p, attained in norms_of_rows(logit_gradient(build(case), outputs.to(dtype), targets)).items():
        assert float(attained.max()) <= declared.norm(p) * rounding


TIGHT = [
    *("cross_entropy", "cross_entropy_hot", "cross_entropy_cold", "binary_cross_entropy", "hinge", "hinge_binary"),
    *(
        "clipped_hinge_alone",
        "kr",
        "kr_imbalanced",
        "huber",
        "huber_image",
        "clipped_mse",
        "cosine",
        "cosine_small_floor",
    ),
]


@pytest.mark.parametrize("case", TIGHT)
def test_the_declared_l2_norm_is_attained(case):
    outputs, targets = worst_outputs(case)
    attained = norms_of_rows(logit_gradient(build(case), outputs, targets))[2].max()
    assert float(attained) >= 0.9 * build(case).gradient_norms(CASES[case][2]).norm(2)


@every_case
def test_value_and_gradient_are_those_of_the_published_formula(case):
    loss = build(case)
    outputs, targets = ordinary(case)
    value, gradient = formula(case, outputs, targets)
    torch.testing.assert_close(loss(outputs, targets, reduction="none").double(), value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logit_gradient(loss, outputs, targets).double(), gradient, rtol=1e-5, atol=1e-6)


@every_case
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


@every_case
def test_weights_on_the_examples_do_not_lead_out_of_the_declared_norms(case):
    loss = build(case)
    outputs, targets = worst_outputs(case)
    z = outputs.clone().requires_grad_()
    weights = torch.logspace(-3, 6, len(z))
    (weights * loss(z, targets, reduction="none")).sum().backward()
    for p, attained in norms_of_rows(z.grad).items():
        assert float(attained.max()) <= loss.gradient_norms(CASES[case][2]).norm(p)


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
    assert (norms.l1, norms.l2, norms.linf) == (2, pytest.approx(math.sqrt(2)), 1)


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


@every_case
def test_max_gradient_shortens_what_is_longer_and_leaves_the_rest(case):
    outputs, targets = ordinary(case)
    plain = logit_gradient(build(case), outputs, targets).reshape(len(outputs), -1)
    scaled = logit_gradient(build(case, "max_gradient"), outputs, targets).reshape(len(outputs), -1)
    size = plain.norm(dim=1, keepdim=True)
    torch.testing.assert_close(scaled, plain * (0.3 / size).clamp_max(1), rtol=1e-5, atol=1e-6)


def test_max_gradient_larger_than_the_loss_needs_does_not_loosen_its_bound():
    assert CrossEntropy(max_gradient=100.0).gradient_norms((10,)).l2 == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_binary_cross_entropy_takes_one_score_in_either_shape(shape):
    z, y = torch.randn(6), torch.tensor([0, 1, 1, 0, 1, 0])
    value = BinaryCrossEntropy()(z.reshape(6, *shape), y)
    torch.testing.assert_close(value, BinaryCrossEntropy()(z, y.float().reshape(6, *shape)))
    torch.testing.assert_close(value, torch.nn.functional.softplus((1 - 2 * y) * z).sum())


def test_soft_binary_targets_are_taken():
    z = torch.randn(4)
    gradient = logit_gradient(BinaryCrossEntropy(), z, torch.full((4,), 0.25))
    torch.testing.assert_close(gradient, z.sigmoid() - 0.25)


LABEL_LOSSES = [CrossEntropy, Hinge, ClippedHinge, MulticlassKR, HKR, Cosine]


@pytest.mark.parametrize("kind", LABEL_LOSSES)
@pytest.mark.parametrize(
    "outputs, targets, named",
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "labels are 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), "labels are 0 to 2"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "class numbers"),
        (torch.zeros(2, 3), torch.eye(3)[:2].long(), "class numbers"),
        (torch.zeros(2, 3), torch.tensor([[0], [1]]), "class numbers"),
        (torch.zeros(2, 3, 4), torch.tensor([0, 1]), r"\(batch, classes\)"),
        (torch.zeros(2, 3), torch.tensor([0, 1, 2]), "one target per example"),
    ],
    ids=["too large", "negative", "float", "one-hot", "column", "three axes", "other length"],
)
def test_labels_that_are_not_class_numbers_are_refused(kind, outputs, targets, named):
    with pytest.raises(ConfigurationError, match=named):
        kind()(outputs, targets)


@pytest.mark.parametrize("kind", LABEL_LOSSES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_class_numbers_may_be_of_any_whole_type(kind, dtype):
    z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    torch.testing.assert_close(kind()(z, y.to(dtype)), kind()(z, y))


@pytest.mark.parametrize("kind, wrong", [(BinaryCrossEntropy, 1.5), (Hinge, 0.5), (Hinge, -1), (Hinge, 2)])
def test_binary_targets_out_of_range_are_refused(kind, wrong):
    with pytest.raises(ConfigurationError, match="target"):
        kind()(torch.zeros(2, 1), torch.tensor([0, wrong]))


@pytest.mark.parametrize("kind", [BinaryCrossEntropy, Huber, ClippedMSE])
def test_targets_that_are_not_numbers_are_refused(kind):
    with pytest.raises(ConfigurationError, match="target"):
        kind()(torch.zeros(2, 1), torch.tensor([0.0, math.nan]))


def test_binary_cross_entropy_refuses_several_scores():
    with pytest.raises(ConfigurationError, match="one score"):
        BinaryCrossEntropy()(torch.zeros(2, 3), torch.zeros(2))


@pytest.mark.parametrize("kind", [Huber, ClippedMSE])
def test_regression_refuses_targets_of_another_shape(kind):
    with pytest.raises(ConfigurationError, match="equal shapes"):
        kind()(torch.zeros(2, 3), torch.zeros(2, 2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: CrossEntropy(temperature=0),
        lambda: CrossEntropy(temperature=math.nan),
        lambda: BinaryCrossEntropy(temperature=-1),
        lambda: CrossEntropy(temperature=math.inf),
        lambda: CrossEntropy(max_gradient=0),
        lambda: CrossEntropy(max_gradient=math.nan),
        lambda: CrossEntropy(max_gradient=math.inf),
        lambda: Hinge(margin=math.nan),
        lambda: ClippedHinge(threshold=0),
        lambda: ClippedHinge(cross_entropy=-1),
        lambda: ClippedHinge(temperature=math.inf),
        lambda: HKR(alpha=-1),
        lambda: HKR(alpha=math.inf),
        lambda: Cosine(floor=0),
        lambda: Huber(delta=-1),
        lambda: ClippedMSE(delta=math.inf),
        lambda: MulticlassKR([0.5, 0.2]),
        lambda: MulticlassKR([1.5, -0.5]),
        lambda: MulticlassKR([0.5, 0.5])(torch.zeros(1, 3), torch.tensor([0])),
    ],
)
def test_parameters_of_a_loss_that_give_no_bound_are_refused(make):
    with pytest.raises(ConfigurationError):
        make()


def test_class_frequencies_are_the_declared_ones_and_not_those_of_the_batch():
    z = torch.randn(3, 2)
    y = torch.tensor([0, 0, 1])
    gradient = logit_gradient(MulticlassKR([0.25, 0.75]), z, y)
    expected = torch.tensor([[-4.0, 4.0], [-4.0, 4.0], [4 / 3, -4 / 3]]) / 2
    torch.testing.assert_close(gradient, expected)


def test_every_public_loss_is_in_these_tests():
    public = {
        value
        for value in vars(dplip.losses).values()
        if isinstance(value, type) and issubclass(value, dplip.losses.Loss) and not value.__name__.startswith("_")
    }
    assert public - {dplip.losses.Loss} == {kind for kind, *_ in CASES.values()}


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_of_a_loss_watches_for_no_optimizer(copier):
    loss = CrossEntropy(4.0, normalize=True)
    loss.witness = object()
    assert copier(loss).witness is None
    assert copier(loss).temperature == 4.0


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_the_direction_of_a_cross_entropy_gradient_has_a_smaller_l1_norm_than_that_of_any_vector(classes: int) -> None:
    loss = CrossEntropy(normalize=True)
    stated = loss.gradient_norms((classes,))
    assert stated.l1 < math.sqrt(classes) * (1 - 1e-9) or classes == 2
    generator = torch.Generator().manual_seed(0)
    outputs = 3 * torch.randn(500, classes, generator=generator, dtype=torch.float64)
    outputs[0] = 0.0  # the others are even: the worst case
    gradient = logit_gradient(CrossEntropy(), outputs, torch.zeros(500, dtype=torch.int64))
    direction = gradient / torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    for p in (1, math.inf):
        norms = torch.linalg.vector_norm(direction, p, dim=1)
        assert float(norms.max()) <= float(stated.norm(p)) * (1 + 1e-9)
        assert float(norms[0]) >= float(stated.norm(p)) * (1 - 1e-9)
