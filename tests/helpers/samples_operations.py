"""Samples of the rules of torch's operations: elementwise, dropout, arithmetic, shapes and pooling."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from helpers.sample import BOTH, IN, MAP, TOKENS, VECTOR, Sample, T, _name, called, calls, module
from torch import Tensor, nn

from dplip import nn as dn

ELEMENTWISE = [
    *called([F.relu, torch.relu, T.relu], tight=BOTH),
    *called([torch.abs, T.abs, abs], tight=BOTH),
    *called([F.relu6], tight=BOTH),
    *called([F.tanh, torch.tanh, T.tanh], tight=IN),
    *called([F.tanhshrink]),
    *called([F.softsign]),
    *called([torch.sin, T.sin], tight=IN),
    *called([torch.cos, T.cos], tight=BOTH),
    *called([F.sigmoid, torch.sigmoid, T.sigmoid], tight=IN),
    *called([F.hardsigmoid], tight=BOTH, rounding=1e-7),  # torch's own sixth is a float32
    *called([F.hardswish], tight=IN),
    *called([F.logsigmoid]),
    *called([F.silu], tight=IN),
    *called([F.mish], tight=IN),
    *called([F.selu], tight=IN),
    *called([F.gelu], tight=IN),
    *called([F.gelu], approximate="tanh", tight=IN),
    *called([F.leaky_relu], -2.0, tight=BOTH),
    *called([F.elu], 1.5, tight=IN),
    *called([F.softplus], 0.5),
    *called([F.hardtanh], -0.5, 4.0, tight=BOTH),
    *called([torch.clamp, T.clamp, torch.clip, T.clip], -0.5, 1.5, tight=IN),
    *called([torch.clamp], max=-1.0, tight=IN),
    *called([torch.clamp], min=2.0, max=-1.0),
    *called([F.softmax, torch.softmax, T.softmax], dim=-1, shape=TOKENS),
    *(module(m) for m in (nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.ELU(), nn.CELU(0.5), dn.Clamp(-2.0, 1.0))),
    *(module(m) for m in (nn.LeakyReLU(), nn.LeakyReLU(2.0), nn.LeakyReLU(-3.0), nn.PReLU(6))),
    *(module(m, tight=IN) for m in (nn.Tanh(), nn.Softshrink(), nn.Sigmoid(), nn.Hardswish(), nn.SiLU())),
    *(module(m, tight=IN) for m in (nn.Mish(), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.ELU(3.0), nn.ELU(-2.0))),
    *(module(m, tight=IN) for m in (nn.Softplus(beta=-2.0), nn.Hardtanh(0.5, 2.0), dn.Clamp(1.0, 4.0))),
    *(module(m, tight=()) for m in (nn.Tanhshrink(), nn.Softsign(), nn.LogSigmoid())),
    *(module(m, tight=()) for m in (nn.Softplus(), nn.Softplus(beta=0.2))),
    module(nn.PReLU(), tight=(*BOTH, "weight")),
    module(nn.Softmax(1), TOKENS, ()),
    Sample("Hardsigmoid", nn.Hardsigmoid, VECTOR, BOTH, rounding=1e-7),
]

DROPOUT = [
    *called([F.dropout], 0.25, tight=BOTH),
    *called([F.dropout], 0.25, training=False, tight=BOTH),
    *called([F.dropout1d], 0.25, shape=(6, 2), tight=BOTH),
    *called([F.dropout2d], 0.25, shape=(6, 2, 2), tight=BOTH),
    *(
        replace(module(m, shape, BOTH if m.p < 1 or not train else ()), name=f"{m} train={train}", train=train)
        for m, shape in (
            *((nn.Dropout(0.25), VECTOR), (nn.Dropout1d(0.25), (6, 2)), (nn.Dropout2d(0.25), (6, 2, 2))),
            *((nn.Dropout(0.0), VECTOR), (nn.Dropout(1.0), VECTOR)),
        )
        for train in (True, False)
    ),
]

ARITHMETIC = [
    calls("x + x", lambda x: x + x),
    calls("x - relu(-x)", lambda x: x - F.relu(-x)),
    calls("x + p", lambda x, p: x + p, (*BOTH, "p"), p=(3, 4)),
    calls("p - x, p broadcast", lambda x, p: p - x, (*BOTH, "p"), p=(4,)),
    calls("x + p, x broadcast", lambda x, p: x + p, (*BOTH, "p"), (3, 1), p=(1, 3, 4)),
    calls("x + mean", lambda x: x + x.mean(dim=1, keepdim=True)),
    calls("add(other, input)", lambda x: torch.add(other=x, input=x.mean(dim=1, keepdim=True), alpha=2.0)),
    calls("2 - x", lambda x: 2 - x),
    calls("x * p", lambda x, p: x * p, (*BOTH, "p"), p=(3, 4)),
    calls("x * p, p broadcast", lambda x, p: p * x, (*BOTH, "p"), p=(1, 4)),
    calls("x * p, p scalar", lambda x, p: x * p, (*BOTH, "p"), p=()),
    calls("x * p, x broadcast", lambda x, p: x * p, (*BOTH, "p"), (3, 1), p=(3, 4)),
    calls("x / 4", lambda x: x / 4),
    calls("-3 x", lambda x: -3 * x),
    calls("-x", lambda x: -x),
    *called([torch.add, T.add], 1.5, tight=BOTH),
    *called([torch.sub, torch.subtract, T.sub], 1.5, alpha=2.0, tight=BOTH),
    *called([torch.mul, torch.multiply, T.mul], -1.5, tight=BOTH),
    *called([torch.div, torch.divide, torch.true_divide, T.div], -1.5, tight=BOTH),
    *called([torch.neg, T.neg], tight=BOTH),
    *called([torch.sum, T.sum], dim=1, shape=MAP, tight=BOTH),
    *called([torch.sum, T.sum], (1, -1), True, shape=MAP, tight=BOTH),
    *called([torch.mean, T.mean], dim=(2, 3), shape=MAP, tight=BOTH),
    *called([torch.amax, T.amax], dim=(1, 2), shape=MAP, tight=BOTH),
    *called([torch.amin, T.amin], dim=(1, 2), shape=MAP),
    *(calls(_name(f), lambda x, f=f: f(x, x * 0.5), ()) for f in (torch.maximum, torch.minimum)),
    calls("Tensor.maximum", lambda x: x.maximum(-x), ()),
    calls("Tensor.minimum", lambda x: x.minimum(-x), ()),
]


def first(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0]


def both(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] + 2 * parts[1]


SHAPES = [
    *(module(m) for m in (nn.Identity(), nn.Unflatten(1, (2, 3)))),
    *(module(m, MAP) for m in (nn.Flatten(), nn.Flatten(2, -1), nn.PixelUnshuffle(2), nn.ZeroPad2d((1, 2, -1, 0)))),
    *(module(m, (4, 2, 2)) for m in (nn.PixelShuffle(2), nn.ChannelShuffle(2))),
    module(nn.ZeroPad1d(2), TOKENS),
    *called([T.view, T.reshape], -1, 32, shape=MAP, tight=BOTH),
    *called([torch.reshape], (-1, 4, 8), shape=MAP, tight=BOTH),
    *called([torch.flatten, T.flatten], 1, shape=MAP, tight=BOTH),
    *called([torch.unflatten, T.unflatten], 1, (3, 2), tight=BOTH),
    *called([torch.unsqueeze, T.unsqueeze], -1, tight=BOTH),
    *called([T.contiguous, T.clone, torch.clone, T.double], tight=BOTH),
    *called([T.float], then=lambda y: y.double(), tight=BOTH, rounding=1e-7),
    *called([F.pixel_shuffle, torch.pixel_shuffle], 2, shape=(4, 2, 2), tight=BOTH),
    *called([F.pixel_unshuffle, torch.pixel_unshuffle], 2, shape=MAP, tight=BOTH),
    *called([F.pad], (1, 0, -1, 2), shape=MAP, tight=BOTH),
    *called([torch.permute], (0, 2, 3, 1), shape=MAP, tight=BOTH),
    *called([T.permute], 0, 3, 1, 2, shape=MAP, tight=BOTH),
    *called([torch.transpose, T.transpose, torch.swapaxes, T.swapaxes], 1, -1, shape=MAP, tight=BOTH),
    *called([torch.flip, T.flip], (1, -1), shape=MAP, tight=BOTH),
    *called([torch.roll, T.roll], (2, -1), (2, -3), shape=MAP, tight=BOTH),
    calls("x.roll(1, 1)", lambda x: x.roll(shifts=1, dims=1), BOTH, MAP),
    calls("x.flip(-1)", lambda x: x.flip(-1), BOTH, MAP),
    *called([torch.squeeze, T.squeeze], 1, shape=(1, 4), tight=BOTH),
    *called([T.expand], -1, 3, 4, shape=(1, 4), tight=BOTH),
    *called([torch.narrow, T.narrow], 1, 0, 1, shape=MAP, tight=BOTH),
    *called([torch.select, T.select], 2, -1, shape=MAP, tight=BOTH),
    calls("x[:, 1:, ::2]", lambda x: x[:, 1:, ::2], BOTH, MAP),
    calls("x[..., None, 0]", lambda x: x[..., None, 0], BOTH, MAP),
    *(
        calls(_name(f), lambda x, f=f: f((x, 2 * x, -x), 1), ("output",))
        for f in (torch.cat, torch.concat, torch.concatenate, torch.stack)
    ),
    *called([torch.split, T.split, torch.chunk, T.chunk], 2, 1, shape=(4, 3), tight=BOTH, then=first),
    *called([torch.split, T.split, torch.chunk, T.chunk], 2, 1, shape=(4, 3), tight=IN, then=both),
    *called([torch.unbind, T.unbind], 1, shape=(2, 3), tight=IN, then=both),
]

POOLING = [
    *(module(m, (2, 6)) for m in (nn.MaxPool1d(2), nn.MaxPool1d(3, 1, 1, 1), nn.AvgPool1d(2))),
    *(module(m, (2, 6)) for m in (nn.AdaptiveAvgPool1d(2), nn.AdaptiveMaxPool1d(3))),
    *(module(m, MAP) for m in (nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(2, 1, dilation=2))),
    *(module(m, MAP) for m in (nn.AvgPool2d(2), nn.AdaptiveAvgPool2d((2, 1)), nn.AdaptiveMaxPool2d(2))),
    module(dn.ScaledL2NormPool2d(2), MAP),
    module(nn.AvgPool1d(3, 1, 1), (2, 6), ()),
    module(nn.AvgPool2d(3, 2, 1), MAP, ()),
    *called([F.max_pool1d, torch.max_pool1d], 2, 2, shape=(2, 6), tight=BOTH),
    *called([F.max_pool2d, torch.max_pool2d], 2, shape=MAP, tight=BOTH),
    *called([F.avg_pool1d], 3, shape=(2, 6), tight=BOTH),
    *called([F.avg_pool2d], (2, 1), shape=MAP, tight=BOTH),
    *called([F.adaptive_avg_pool1d, torch.adaptive_avg_pool1d], 3, shape=(2, 6), tight=BOTH),
    *called([F.adaptive_avg_pool2d], 2, shape=MAP, tight=BOTH),
]
