"""Losses: the declared bound of the logit gradient holds for every output and target."""

import math

import pytest
import torch
from helpers.losses import (
    CASES,
    RESCALINGS,
    build,
    every_case,
    every_rescaling,
    logit_gradient,
    norms_of_rows,
    ordinary,
    targets_for,
    worst_outputs,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dplip.losses import (
    CrossEntropy,
)


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
    entries=st.lists(st.floats(width=32), min_size=15, max_size=15),
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
    *("clipped_mse_image", "smooth_l1", "smoothed", "weighed", "weighed_and_smoothed", "ignoring", "soft"),
    *("soft_smoothed", "pixels", "pixels_summed", "pixels_ignored", "tokens", "tokens_summed", "tokens_shifted"),
    *("tokens_shifted_ignored", "soft_tokens", "labels", "labels_summed", "labels_weighed", "positives_weighed"),
    *("heads", "heads_own", "elbo", "own"),
]


@pytest.mark.parametrize("case", TIGHT)
def test_the_declared_l2_norm_is_attained(case):
    outputs, targets = worst_outputs(case)
    attained = norms_of_rows(logit_gradient(build(case), outputs, targets))[2].max()
    assert float(attained) >= 0.99 * build(case).gradient_norms(CASES[case][2]).norm(2)


@every_case
def test_weights_on_the_examples_do_not_lead_out_of_the_declared_norms(case):
    loss = build(case)
    outputs, targets = worst_outputs(case)
    z = outputs.clone().requires_grad_()
    weights = torch.logspace(-3, 6, len(z))
    (weights * loss(z, targets, reduction="none")).sum().backward()
    assert z.grad is not None
    for p, attained in norms_of_rows(z.grad).items():
        assert float(attained.max()) <= loss.gradient_norms(CASES[case][2]).norm(p)


@every_case
def test_max_gradient_shortens_what_is_longer_and_leaves_the_rest(case):
    outputs, targets = ordinary(case)
    plain = logit_gradient(build(case), outputs, targets).reshape(len(outputs), -1)
    scaled = logit_gradient(build(case, "max_gradient"), outputs, targets).reshape(len(outputs), -1)
    size = plain.norm(dim=1, keepdim=True)
    torch.testing.assert_close(scaled, plain * (0.3 / size).clamp_max(1), rtol=1e-5, atol=1e-6)


def test_max_gradient_larger_than_the_loss_needs_does_not_loosen_its_bound():
    assert CrossEntropy(max_gradient=100.0).gradient_norms((10,)).l2 == pytest.approx(math.sqrt(2))


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
