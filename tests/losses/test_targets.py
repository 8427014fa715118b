"""Targets and parameters of losses: which are taken, and which are refused."""

import copy
import math
import pickle

import pytest
import torch
from helpers.losses import CASES, Joint, build, logit_gradient

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
    with pytest.raises(ConfigurationError, match="one target for each score"):
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
    made = {build(case) for case in CASES}
    tested = {type(loss.loss if isinstance(loss, Joint) else loss) for loss in made}
    assert public - {dplip.losses.Loss} == tested


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_of_a_loss_watches_for_no_optimizer(copier):
    loss = CrossEntropy(4.0, normalize=True)
    loss.monitor = object()  # type: ignore[assignment]
    assert copier(loss).monitor is None
    assert copier(loss).temperature == 4.0
