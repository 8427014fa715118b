"""Steps of models with constant bounds: no operator norm, and projections every few steps."""

import pytest
import torch
from helpers.gated import X, Y, gated
from helpers.runs import private
from torch import nn

import dplip
from dplip import nn as dn
from dplip.errors import ConfigurationError


def test_a_step_with_constant_bounds_computes_no_operator_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    run = private(gated(), noise_multiplier=1.0)

    def refused(*_: object) -> float:
        raise AssertionError("an operator norm was computed")

    monkeypatch.setattr("dplip.norms.matrix.spectral_norm", refused)
    before = dict(run.optimizer.sensitivities())
    for p in run.model.parameters():
        p.data.mul_(100)
    run.step(X, Y)
    assert dict(run.optimizer.sensitivities()) == before and len(run.charged) == 1


def test_projection_every_few_steps() -> None:
    model = nn.Sequential(dn.BallProjection(3.0), dplip.nn.OrthogonalLinear(6, 4))
    run = private(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), project_every=3)
    apart = []
    for _ in range(6):
        run.step(X, Y)
        weight = model[1].weight.detach()
        apart.append(float((weight @ weight.T - torch.eye(4)).norm()))
    assert all(distance > 0.05 for distance in (apart[0], apart[1], apart[3], apart[4]))
    assert apart[2] < 0.05 and apart[5] < 0.05
    with pytest.raises(ConfigurationError, match="project_every"):
        private(model, project_every=0)
