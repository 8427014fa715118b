"""The clipped hinge stays within its bounds."""

from math import inf

import pytest
import torch
from helpers.linf_models import LOSS

from dplip.errors import ConfigurationError
from dplip.losses import ClippedHinge


def test_the_clipped_hinge_stays_within_its_bounds():
    torch.manual_seed(0)
    for scale in (0.01, 0.3, 3.0, 1e4):
        z = (scale * torch.randn(200, 5)).requires_grad_()
        z.data[:20] = z.data[:20].mean()  # ties
        y = torch.randint(5, (200,))
        values = LOSS.per_example(z, y)
        rows = torch.autograd.grad(values.sum(), z)[0]
        norms = LOSS.logit_gradient((5,))
        for p, bound in ((1, norms.l1), (2, norms.l2), (inf, norms.linf)):
            assert float(torch.linalg.vector_norm(rows, p, 1).max()) <= float(bound) * (1 + 1e-6)
    z = torch.tensor([[1.0, 0.0, 0.0]])
    only = ClippedHinge(threshold=0.5, cross_entropy=0.0)
    assert float(only(z, torch.tensor([0]))) == 0.0 and float(only(z, torch.tensor([1]))) == 1.0
    with pytest.raises(ConfigurationError, match="rival"):
        only(torch.zeros(2, 1), torch.tensor([0, 0]))
