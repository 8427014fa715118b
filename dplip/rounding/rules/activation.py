"""Rounding rules of elementwise functions, softmax, Householder reflections and splines."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from dplip import nn as dn
from dplip.norms import Norms
from dplip.rounding.registry import Roundings, T, rounding


def _clamped(subject: Any, input: Norms, *ends: Any, **named: Any) -> Roundings:
    return Roundings(output=2.0, back=2.0, diagonal=True)  # the ends of the interval are rounded


rounding(nn.ReLU6, F.relu6, nn.Hardtanh, F.hardtanh, dn.Clamp, torch.clamp, T.clamp, torch.clip, T.clip)(_clamped)


def _scaled(subject: Any, input: Norms, *rest: Any, **named: Any) -> Roundings:
    """The roundings of entries times a rounded number, such as a slope."""
    return Roundings(output=4.0, back=4.0, diagonal=True)


rounding(nn.LeakyReLU, F.leaky_relu, nn.PReLU, dn.BoundedPReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d)(_scaled)
rounding(F.dropout, F.dropout1d, F.dropout2d)(_scaled)


def _smooth(subject: Any, input: Norms, *rest: Any, **named: Any) -> Roundings:
    """The roundings of elementary functions: some units of the value, of the argument and of 1."""
    return Roundings(16.0, 16.0, Norms(input.shape, linf=16.0), back=64.0, diagonal=True)


def _bounded(subject: Any, input: Norms, *rest: Any, **named: Any) -> Roundings:
    return replace(_smooth(subject, input), terms=0.0)


rounding(nn.Tanhshrink, F.tanhshrink, nn.Softshrink, nn.Hardswish, F.hardswish, nn.LogSigmoid, F.logsigmoid)(_smooth)
rounding(nn.SiLU, F.silu, nn.Mish, F.mish, nn.SELU, F.selu, nn.ELU, F.elu, nn.CELU, nn.GELU, F.gelu)(_smooth)
rounding(nn.Tanh, F.tanh, torch.tanh, T.tanh, nn.Softsign, F.softsign, torch.sin, T.sin, torch.cos, T.cos)(_bounded)
rounding(nn.Sigmoid, F.sigmoid, torch.sigmoid, T.sigmoid, nn.Hardsigmoid, F.hardsigmoid)(_bounded)


@rounding(nn.Softplus)
def softplus(module: nn.Softplus, x: Norms) -> Roundings:
    return functional_softplus(module, x, module.beta, module.threshold)


@rounding(F.softplus)
def functional_softplus(subject: Any, input: Norms, beta: float = 1.0, threshold: float = 20.0) -> Roundings:
    # Both the computed and the exact function jump at the threshold.
    return replace(_smooth(subject, input), apart=2 * math.exp(-threshold) / abs(beta))


@rounding(nn.Softmax)
def softmax(module: nn.Softmax, x: Norms) -> Roundings:
    return functional_softmax(module, x, module.dim)


@rounding(F.softmax, torch.softmax, T.softmax)
def functional_softmax(subject: Any, input: Norms, dim: Any = None, *rest: Any, **named: Any) -> Roundings:
    # exp(-t) is off by t exp(-t) <= 1 units from the rounding of t, and a sum of n positive terms by n units.
    return Roundings(output=input.size + 32.0, more=Norms(input.shape, linf=4.0), back=4.0 * input.size + 32)


@rounding(dn.LogCompression)
def log_compression(module: dn.LogCompression, x: Norms) -> Roundings:
    return Roundings(output=16.0, back=16.0, diagonal=True)


@rounding(dn.Householder)
def householder(module: dn.Householder, x: Norms) -> Roundings:
    return Roundings(terms=16.0, output=4.0, back=16.0)


@rounding(dn.LinearSpline, dn.CoefficientSpline)
def spline(module: Any, x: Norms) -> Roundings:
    # The value is intercept + slope x from a float32 table. Within a few roundings of a knot, in units of the range,
    # the neighbouring piece may be taken. Beyond the range the slopes are the tails'.
    with torch.no_grad():
        intercept, slope = module.pieces()
    size = (float(intercept.abs().max()) + 2 * float(slope.abs().max()) * module.range) / module.scale()
    tails = 16.0 if bool(module.tails.any()) else 0.0
    return Roundings(tails, 4.0, Norms(x.shape, linf=16 * size), back=16.0, diagonal=True)
