"""Cross-entropies of positions and labels: an example's own, in the layouts and options of torch."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.losses import CLASSES, WEIGHTS, logit_gradient, norms_of_rows

from dplip.errors import ConfigurationError
from dplip.losses import BinaryCrossEntropy, CrossEntropy


def one_by_one(z, y, **options):
    """torch's own mean, of each example alone."""
    return torch.stack([F.cross_entropy(a[None], b[None], **options) for a, b in zip(z, y, strict=True)])


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_an_example_has_the_value_that_torch_gives_it_alone(shape, smoothing):
    z, y = torch.randn(6, CLASSES, *shape), torch.randint(CLASSES, (6, *shape))
    loss = CrossEntropy(label_smoothing=smoothing)
    expected = one_by_one(z, y, label_smoothing=smoothing)
    torch.testing.assert_close(loss(z, y, reduction="none"), expected)
    last = CrossEntropy(label_smoothing=smoothing, classes_last=True)
    torch.testing.assert_close(last(z.movedim(1, -1), y, reduction="none"), expected)


def test_ignored_positions_do_not_count_and_an_example_without_others_sends_nothing():
    z, y = torch.randn(4, CLASSES, 5), torch.randint(CLASSES, (4, 5))
    y[0, 2:], y[1], y[2, 0] = -100, -100, -100
    loss = CrossEntropy(ignore_index=-100)
    values = loss(z, y, reduction="none")
    kept = [0, 2, 3]
    torch.testing.assert_close(values[kept], one_by_one(z[kept], y[kept]))
    assert float(values[1]) == 0
    for rescaled in (loss, CrossEntropy(ignore_index=-100, normalize=True)):
        gradient = logit_gradient(rescaled, z, y)
        assert gradient.isfinite().all() and not gradient[1].any() and not gradient[0, :, 2:].any()
        assert all(gradient[k].any() for k in kept)


def test_a_shifted_loss_is_that_of_causal_language_models():
    z, ids = torch.randn(3, 7, CLASSES), torch.randint(CLASSES, (3, 7))
    expected = torch.stack([F.cross_entropy(a[:-1], b[1:]) for a, b in zip(z, ids, strict=True)])
    loss = CrossEntropy(classes_last=True, shift=True)
    torch.testing.assert_close(loss(z, ids, reduction="none"), expected)
    assert not logit_gradient(loss, z, ids)[:, -1].any()
    ids[:, 4:] = -100  # padding
    expected = torch.stack([F.cross_entropy(a[:3], b[1:4]) for a, b in zip(z, ids, strict=True)])
    padded = CrossEntropy(classes_last=True, shift=True, ignore_index=-100)
    torch.testing.assert_close(padded(z, ids, reduction="none"), expected)


def test_soft_targets_of_single_classes_are_class_numbers():
    z, y = torch.randn(6, CLASSES, 3), torch.randint(CLASSES, (6, 3))
    soft = F.one_hot(y, CLASSES).movedim(-1, 1).double()
    torch.testing.assert_close(CrossEntropy(soft=True, weight=WEIGHTS)(z, soft), CrossEntropy(weight=WEIGHTS)(z, y))


def test_the_worst_class_has_the_norms_that_weights_and_smoothing_state():
    """Scores for a class j and a label y: what the proof says is attained, whatever the share and the weights."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        weight = torch.rand(CLASSES, generator=generator, dtype=torch.float64) ** 3
        share = float(torch.rand(1, generator=generator)) * 0.99
        loss = CrossEntropy(weight=weight, label_smoothing=share)
        pairs = torch.cartesian_prod(torch.arange(CLASSES), torch.arange(CLASSES))
        z = 1e4 * torch.eye(CLASSES, dtype=torch.float64)[pairs[:, 0]]
        attained = norms_of_rows(torch.func.grad(lambda t, y=pairs[:, 1], f=loss: f.per_example(t, y).sum())(z))
        for p, rows in attained.items():
            stated = float(loss.gradient_norms((CLASSES,)).norm(p))
            assert float(rows.max()) <= stated * (1 + 1e-9)
            least_is_top = int(weight.argmin()) == int(weight.argmax())
            assert float(rows.max()) >= stated * (1 - 1e-9) or least_is_top


@pytest.mark.parametrize("options", [{}, {"soft": True}, {"label_smoothing": 0.3}], ids=["plain", "soft", "smoothed"])
@pytest.mark.parametrize("positions", [1, 4])
def test_the_direction_of_a_gradient_stays_within_its_norms(options, positions):
    loss, shape = CrossEntropy(normalize=True, **options), (CLASSES, positions)
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(4000, *shape, generator=generator, dtype=torch.float64)
    z[0] = 0.0
    if loss.soft:
        y = (3 * torch.randn(z.shape, generator=generator, dtype=torch.float64)).softmax(1)
    else:
        y = torch.randint(CLASSES, (4000, positions), generator=generator)
        y[0] = 0
    rows = torch.func.grad(lambda t: loss.per_example(t, y).sum())(z).flatten(1)
    for p, attained in norms_of_rows(rows / rows.norm(dim=1, keepdim=True)).items():
        assert float(attained.max()) <= float(loss.gradient_norms(shape).norm(p)) * (1 + 1e-9)
    one = (rows / rows.norm(dim=1, keepdim=True))[0].abs().sum()
    if not options:
        assert float(one) >= float(loss.gradient_norms(shape).norm(1)) * (1 - 1e-9)


def test_labels_are_those_of_torch_with_its_weights():
    z, y = torch.randn(6, 3), torch.rand(6, 3)
    weight, positive = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([2.0, 0.5, 1.0])
    expected = torch.stack(
        [
            F.binary_cross_entropy_with_logits(a, b, weight, pos_weight=positive, reduction="sum")
            for a, b in zip(z, y, strict=True)
        ]
    )
    given: dict[str, Any] = {"weight": weight, "pos_weight": positive.tolist()}
    torch.testing.assert_close(BinaryCrossEntropy(within="sum", **given)(z, y, "none"), expected)
    torch.testing.assert_close(BinaryCrossEntropy(**given)(z, y, "none"), expected / 3)


@pytest.mark.parametrize("loss", [CrossEntropy(label_smoothing=0.1, classes_last=True), BinaryCrossEntropy()])
def test_positions_under_autocast_and_in_float64(loss):
    z = torch.randn(4, 3, CLASSES)
    y = loss.sample_targets(z)
    exact = logit_gradient(loss, z.double(), y)
    torch.testing.assert_close(logit_gradient(loss, z, y).double(), exact, rtol=1e-5, atol=1e-7)
    with torch.autocast("cpu", torch.bfloat16):
        rough = logit_gradient(loss, z.bfloat16(), y)
    torch.testing.assert_close(rough.double(), exact, rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    "options, z, y, named",
    [
        ({}, torch.zeros(4), torch.zeros(4).long(), r"\(batch, classes\)"),
        ({}, torch.zeros(2, 7, 5), torch.zeros(2, 7).long(), "change classes_last"),
        ({"classes_last": True}, torch.zeros(2, 5, 7), torch.zeros(2, 7).long(), "change classes_last"),
        ({}, torch.zeros(2, 5), torch.full((2, 5), 0.2), "soft=True"),
        ({"soft": True}, torch.zeros(2, 5), torch.zeros(2).long(), "probabilities"),
        ({"soft": True}, torch.zeros(2, 5), torch.full((2, 5), 0.3), "from 1"),
        ({"soft": True}, torch.zeros(2, 2), torch.tensor([[1.5, -0.5], [1.0, 0.0]]), "probabilities"),
        ({"soft": True}, torch.zeros(2, 2), torch.full((2, 2), math.nan), "probabilities"),
        ({}, torch.zeros(2, 5), torch.tensor([0, -100]), "ignore_index"),
        ({"ignore_index": -100}, torch.zeros(2, 5), torch.tensor([5, -100]), "labels are 0 to 4"),
        ({"shift": True}, torch.zeros(2, 5), torch.zeros(2).long(), "next one"),
        ({"shift": True}, torch.zeros(2, 5, 1), torch.zeros(2, 1).long(), "next one"),
        ({"weight": [1.0, 2.0]}, torch.zeros(2, 5), torch.zeros(2).long(), "one per class"),
        ({}, torch.zeros(2, 5).long(), torch.zeros(2).long(), "floating-point"),
        ({}, torch.zeros(2, 5), [0, 1], "list"),
        ({}, (torch.zeros(2, 5), torch.zeros(2, 5)), torch.zeros(2).long(), "Heads"),
        ({}, torch.zeros(2, 5), torch.tensor(1), r"shape \(\)"),
    ],
)
def test_positions_that_do_not_fit_are_refused(options, z, y, named):
    with pytest.raises(ConfigurationError, match=named):
        CrossEntropy(**options)(z, y)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CrossEntropy(label_smoothing=1.0),
        lambda: CrossEntropy(label_smoothing=math.nan),
        lambda: CrossEntropy(weight=[0.0, 0.0]),
        lambda: CrossEntropy(weight=[1.0, -1.0]),
        lambda: CrossEntropy(weight=[1.0, math.inf]),
        lambda: CrossEntropy(within="batch"),
        lambda: CrossEntropy(soft=True, ignore_index=-100),
        lambda: CrossEntropy(soft=True, shift=True),
        lambda: CrossEntropy(ignore_index=True),
        lambda: BinaryCrossEntropy(pos_weight=-1.0),
        lambda: BinaryCrossEntropy(weight=math.nan),
        lambda: BinaryCrossEntropy(within="none"),
        lambda: BinaryCrossEntropy(weight=[1.0, 2.0])(torch.zeros(2, 3), torch.zeros(2, 3)),
        lambda: BinaryCrossEntropy()(torch.zeros(2, 0), torch.zeros(2, 0)),
    ],
)
def test_options_that_give_no_bound_are_refused(make):
    with pytest.raises(ConfigurationError):
        make()


def test_measures_are_an_examples_own():
    z = torch.eye(3)[torch.tensor([[0, 1, 2, 2], [1, 1, 1, 1]])]  # predictions, (batch, positions, classes)
    y = torch.tensor([[0, 1, 1, -100], [-100] * 4])
    found = CrossEntropy(classes_last=True, ignore_index=-100).measures(z, y)["accuracy"]
    torch.testing.assert_close(found, torch.tensor([2 / 3, 0.0]).double())
    soft = CrossEntropy(soft=True).measures(z[:, :, 0], F.one_hot(torch.tensor([0, 3]), 4).float())["accuracy"]
    torch.testing.assert_close(soft, torch.tensor([1.0, 0.0]).double())
    causal = CrossEntropy(classes_last=True, shift=True).measures(z, torch.tensor([[2, 0, 1, 0], [2, 1, 1, 0]]))
    torch.testing.assert_close(causal["accuracy"], torch.tensor([2 / 3, 2 / 3]).double())
    labels = BinaryCrossEntropy().measures(torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[1, 0], [0, 1]]))
    torch.testing.assert_close(labels["accuracy"], torch.tensor([1.0, 0.5]).double())


def test_an_example_has_a_class_of_its_own_only_without_positions():
    assert CrossEntropy().classes((5,)) == CrossEntropy().classes(5) == 5 and CrossEntropy().classes((5, 2)) is None
    assert CrossEntropy(classes_last=True).classes((2, 5)) is None and CrossEntropy(soft=True).classes(5) is None
    assert BinaryCrossEntropy().classes(()) == BinaryCrossEntropy().classes(1) == 2
    assert BinaryCrossEntropy().classes((3,)) is None


def test_a_bound_that_is_zero_in_the_type_of_the_outputs_lets_nothing_through():
    z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert not logit_gradient(CrossEntropy(weight=[1e-300, 0.0, 0.0]), z, y).any()
    assert not logit_gradient(CrossEntropy(max_gradient=1e-300), z, y).any()
