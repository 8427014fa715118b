"""Certified operator norms against explicit operators: never below, and close where closeness is promised."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from laws import NAMES, induced, inf, jacobians
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor, nn

import dplip
from dplip import Norms
from dplip.norms import NormCache, convolution_norms, matrix_norms, spectral_norm
from dplip.norms.cache import active_cache
from dplip.propagation import Walk

FIELDS = {
    (1.0, 1.0): "one_one",
    (1.0, 2.0): "one_two",
    (1.0, inf): "one_inf",
    (2.0, 2.0): "two_two",
    (2.0, inf): "two_inf",
    (inf, inf): "inf_inf",
}


def true_norm(weight: Tensor) -> float:
    return float(torch.linalg.matrix_norm(weight.double(), 2))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------ matrices


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 1e-3])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 7), (7, 5), (40, 40), (3, 300)])
@pytest.mark.parametrize("kind", ["random", "orthogonal", "rank one", "equal", "sign", "one entry"])
def test_a_matrix_norm_is_exact_from_above(kind: str, shape: tuple[int, int], scale: float) -> None:
    w = torch.randn(shape, generator=seeded(0))
    if kind == "orthogonal":
        w = nn.init.orthogonal_(w)
    elif kind == "rank one":
        w = w[:, :1] * w[:1]
    elif kind == "equal":
        w = torch.ones_like(w)
    elif kind == "sign":
        w = w.sign()
    elif kind == "one entry":
        w = F.one_hot(torch.tensor(w.numel() - 1), w.numel()).reshape(shape).float()
    w = w * scale
    exact = true_norm(w)
    assert exact <= spectral_norm(w) <= exact * (1 + 1e-5)
    bounds = matrix_norms(w)
    for key, value in induced(w.double()).items():
        assert value <= getattr(bounds, FIELDS[key])
        if 1e-15 < scale < 1e15:  # beyond, squares are no float32
            assert getattr(bounds, FIELDS[key]) <= value * (1 + 1e-4)


def test_weights_that_are_zero_or_empty_or_not_finite() -> None:
    assert spectral_norm(torch.zeros(3, 4)) == 0.0
    assert matrix_norms(torch.zeros(3, 4)).two_two == 0.0
    assert matrix_norms(torch.zeros(0, 4)).two_two == 0.0
    assert convolution_norms(torch.zeros(2, 2, 3), (5,), (1,), [(1, 1)], (1,), 1).two_two == 0.0
    for bad in (math.nan, inf):
        weight = torch.ones(3, 4)
        weight[1, 1] = bad
        kernel = torch.ones(2, 2, 3)
        kernel[0, 1, 0] = bad
        for refused in (
            lambda w=weight: spectral_norm(w),
            lambda w=weight: matrix_norms(w),
            lambda k=kernel: convolution_norms(k, (5,), (1,), [(1, 1)], (1,), 1),
            lambda k=kernel: convolution_norms(k[..., :1], (5,), (1,), [(0, 0)], (1,), 1),
        ):
            with pytest.raises(dplip.ConfigurationError, match="finite"):
                refused()


# ------------------------------------------------------------------------------------------------ convolutions


def explicit(layer: nn.Conv1d | nn.Conv2d, size: Sequence[int]) -> Tensor:
    """The matrix (outputs x inputs) of a convolution without bias, by its action on the basis."""
    n = layer.in_channels * math.prod(size)
    return layer(torch.eye(n, dtype=torch.float64).reshape(n, layer.in_channels, *size)).detach().reshape(n, -1).T


def sides(layer: nn.Conv1d | nn.Conv2d) -> list[tuple[int, int]]:
    """Entries before and after each axis; an odd number of them has the larger half after."""
    if layer.padding == "same":
        spans = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [(span // 2, span - span // 2) for span in spans]
    return [(p, p) for p in layer.padding]


def bounds_of(layer: nn.Conv1d | nn.Conv2d, size: Sequence[int] | None) -> dplip.OperatorNorms:
    padding = sides(layer)
    circular = layer.padding_mode == "circular" and any(sum(p) for p in padding)
    return convolution_norms(layer.weight, size, layer.stride, padding, layer.dilation, layer.groups, circular)


def random_layer(seed: int) -> tuple[nn.Conv1d | nn.Conv2d, tuple[int, ...]]:
    """Any kernel, stride, padding, dilation, groups and padding mode that a convolution can be walked with."""
    g = seeded(seed)

    def pick(choices: Sequence[int]) -> int:
        return choices[int(torch.randint(len(choices), (), generator=g))]

    axes = pick([1, 2, 2])
    groups = pick([1, 1, 2])
    kernel, stride = tuple(pick([1, 2, 3, 4]) for _ in range(axes)), tuple(pick([1, 1, 2, 3]) for _ in range(axes))
    dilation = tuple(pick([1, 1, 2, 3]) for _ in range(axes))
    size = tuple(pick([3, 4, 5, 6] if axes == 2 else [4, 7, 10, 45, 50]) for _ in range(axes))
    same = pick([0, 0, 0, 1])
    mode = ("zeros", "circular")[pick([0, 0, 1])]
    spans = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if mode == "circular":
        stride = tuple(s if n % s == 0 else 1 for n, s in zip(size, stride, strict=True))
        padding: str | tuple[int, ...] = tuple(pick(range(span // 2 + 1)) for span in spans)
    else:
        padding = tuple(pick([0, 1, 2, span // 2]) for span in spans)
    if same:
        stride, padding = (1,) * axes, "same"
    reach = (
        spans
        if padding == "same" or mode == "circular"
        else [max(0, s - 2 * p) for s, p in zip(spans, padding, strict=True)]
    )
    size = tuple(max(n, r + 1) for n, r in zip(size, reach, strict=True))
    if mode == "circular":
        size = tuple(-(-n // s) * s for n, s in zip(size, stride, strict=True))
    channels = [groups * pick([1, 2]) for _ in range(2)]
    layer = (nn.Conv1d, nn.Conv2d)[axes - 1](
        *channels,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=False,
        padding_mode=mode,
    )
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=g))
        family = pick(range(4))
        if family == 1:
            layer.weight.copy_(layer.weight.sign())
        elif family == 2:
            layer.weight.fill_(1.0)
        elif family == 3:  # alternating taps: the norm is at the highest frequency
            taps = [torch.arange(k) for k in kernel]
            layer.weight.copy_(
                (-1.0) ** torch.stack(torch.meshgrid(*taps, indexing="ij")).sum(0).expand_as(layer.weight)
            )
    return layer.double(), size


@pytest.mark.parametrize("block", range(8))
def test_no_convolution_exceeds_its_bounds(block: int) -> None:
    """All six induced norms of 240 random convolutions, with the size of the input known and unknown."""
    for seed in range(30 * block, 30 * (block + 1)):
        layer, size = random_layer(seed)
        exact = induced(explicit(layer, size))
        known, unknown = bounds_of(layer, size), bounds_of(layer, None)
        for key, value in exact.items():
            where = (seed, key, layer, size)
            assert value <= getattr(known, FIELDS[key]) * (1 + 1e-9), where
            assert value <= getattr(unknown, FIELDS[key]) * (1 + 1e-9), where
            assert getattr(known, FIELDS[key]) == getattr(known.T, FIELDS[dual(key)])


def dual(key: tuple[float, float]) -> tuple[float, float]:
    other = {1.0: inf, 2.0: 2.0, inf: 1.0}
    return other[key[1]], other[key[0]]


@pytest.mark.parametrize("block", range(4))
def test_no_kernel_gradient_exceeds_its_bounds(block: int) -> None:
    """At one input the gradient is linear in the cotangent, and its induced norms are exact."""
    for seed in range(1000 + 6 * block, 1000 + 6 * (block + 1)):
        layer, size = random_layer(seed)
        layer.bias = nn.Parameter(torch.ones(layer.out_channels, dtype=torch.float64))
        shape = (layer.in_channels, *size)
        walk = Walk(layer, shape)
        noise = torch.randn(shape, generator=seeded(seed), dtype=torch.float64)
        for x in (noise, torch.ones_like(noise), F.one_hot(noise.argmax(), noise.numel()).double().reshape(shape)):
            output, pullback = walk(Norms.of(x))
            for what, jacobian in jacobians(layer, x).items():
                for (q, r), exact in induced(jacobian.T).items():
                    cotangent, parameters = pullback(Norms(output.shape, **{NAMES[q]: 1.0}))
                    assert exact <= {"input": cotangent, **parameters}[what].norm(r) * (1 + 1e-9), (seed, what, q, r)


@pytest.mark.parametrize("seed", range(10))
def test_a_circular_convolution_is_exact(seed: int) -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False).double()
    nn.init.normal_(layer.weight, generator=seeded(seed))
    for key, value in induced(explicit(layer, (4, 5))).items():
        assert value <= getattr(bounds_of(layer, (4, 5)), FIELDS[key]) <= value * (1 + 1e-4), key


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_one_bound_holds_at_every_size(stride: int) -> None:
    """The torus bound without a size covers zero padding at any size, and the largest sizes come close to it."""
    for seed, k in itertools.product(range(4), (2, 3, 4, 5)):
        layer = nn.Conv1d(2, 2, k, stride=stride, padding=k // 2, bias=False).double()
        nn.init.normal_(layer.weight, generator=seeded(seed))
        bound = bounds_of(layer, None).two_two
        exact = [true_norm(explicit(layer, (n,))) for n in (*range(1, 12), 64, 120)]
        assert max(exact) <= bound <= 1.03 * max(exact)


def largest_singular_value(layer: nn.Conv2d, size: tuple[int, int]) -> float:
    """By Lanczos iteration, from below, to four digits."""
    shape = (1, layer.in_channels, *size)

    def forward(x: object) -> object:
        return F.conv2d(torch.as_tensor(x).reshape(shape), layer.weight, padding=1).numpy().reshape(-1)

    def backward(y: object) -> object:
        y = torch.as_tensor(y).reshape(1, layer.out_channels, *size)
        return F.conv_transpose2d(y, layer.weight, padding=1).numpy().reshape(-1)

    dimensions = (layer.out_channels * math.prod(size), layer.in_channels * math.prod(size))
    operator = LinearOperator(dimensions, matvec=forward, rmatvec=backward, dtype="float64")
    with torch.no_grad():
        return float(svds(operator, k=1, tol=1e-4, return_singular_vectors=False, random_state=0)[0])


@pytest.mark.parametrize("channels", [8, 16])
@pytest.mark.parametrize("kind", ["random", "nearly orthogonal"])
def test_within_five_percent_at_the_size_of_an_image(kind: str, channels: int) -> None:
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).double()
    noise = torch.randn(layer.weight.shape, generator=seeded(0), dtype=torch.float64)
    with torch.no_grad():
        if kind == "random":
            layer.weight.copy_(noise)
        else:
            nn.init.dirac_(layer.weight)
            layer.weight.add_(0.02 * noise)
    exact = largest_singular_value(layer, (32, 32))
    assert exact <= bounds_of(layer, (32, 32)).two_two <= 1.05 * exact
    assert exact <= bounds_of(layer, None).two_two <= 1.05 * exact


def test_the_circular_norm_of_the_same_size_is_no_bound() -> None:
    """Kernel [-1, 2, -1] on five entries: 3.732 with zeros, 3.618 around a circle (operator-norms, section 4)."""
    layer = nn.Conv1d(1, 1, 3, padding=1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[-1.0, 2.0, -1.0]]]))
    around = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False).double()
    around.load_state_dict(layer.state_dict())
    zeros = true_norm(explicit(layer, (5,)))
    assert true_norm(explicit(around, (5,))) < 3.62 < 3.73 < zeros <= bounds_of(layer, (5,)).two_two


def test_groups_take_the_larger_norm_not_the_product() -> None:
    layer = nn.Conv1d(4, 4, 1, groups=4, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.1, 0.2, 0.3, 0.223]).reshape(4, 1, 1))
    assert 0.3 <= bounds_of(layer, (7,)).two_two <= 0.3 * (1 + 1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_kernels_of_any_scale(scale: float) -> None:
    layer = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    nn.init.normal_(layer.weight, generator=seeded(0))
    exact = scale * true_norm(explicit(layer.double(), (4, 4)))
    with torch.no_grad():
        layer.float().weight.mul_(scale)
    assert exact <= bounds_of(layer, (4, 4)).two_two * (1 + 1e-6)


# ------------------------------------------------------------------------------------------------ carried norms


def changes(weight: Tensor, step: int, generator: torch.Generator) -> None:
    """What may happen to a weight between two steps, behind the cache's back."""
    noise = torch.randn(weight.shape, generator=generator)
    kind = step % 7
    if kind == 0:
        weight.data.add_(1e-4 * noise)
    elif kind == 1:
        weight.data *= 1.003
    elif kind == 2:
        weight.data.reshape(-1)[0] = 5.0
    elif kind == 3:
        weight.data = 3 * noise  # another storage under the same parameter
    elif kind == 4:
        weight.data.copy_(noise[:, :1].expand(weight.shape) if weight.ndim == 2 else noise)
    elif kind == 5:
        weight.data.mul_(1e-3)
    else:
        weight.data.sub_(0.002 * weight.data)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e12])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_carried_norm_is_never_below_the_true_one(kind: str, scale: float) -> None:
    layer = nn.Linear(6, 5, bias=False) if kind == "linear" else nn.Conv1d(2, 3, 3, padding=1, bias=False)
    generator = seeded(0)
    with torch.no_grad():
        layer.weight.mul_(scale)
    for cache in (NormCache(), NormCache(0.0), NormCache(0.5)):
        for step in range(60):
            with cache:
                bounds = matrix_norms(layer.weight) if kind == "linear" else bounds_of(layer, (6,))
            plain = layer.weight.detach().double()
            exact = true_norm(plain if kind == "linear" else conv_matrix(plain))
            assert exact <= bounds.two_two * (1 + 1e-9), step
            unscaled = torch.nn.Parameter(layer.weight.detach() / scale)
            changes(unscaled, step, generator)
            layer.weight.data = unscaled.detach() * scale


def conv_matrix(weight: Tensor) -> Tensor:
    layer = nn.Conv1d(2, 3, 3, padding=1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    return explicit(layer, (6,))


def test_a_small_drift_costs_no_exact_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    exact = spectral_norm

    def counted(weight: Tensor) -> float:
        nonlocal calls
        calls += 1
        return exact(weight)

    monkeypatch.setattr("dplip.norms.matrix.spectral_norm", counted)
    layer = nn.Linear(20, 20, bias=False)
    generator = seeded(0)
    cache = NormCache()
    for _ in range(200):
        with cache:
            bound = matrix_norms(layer.weight).two_two
        assert bound <= 1.011 * true_norm(layer.weight)
        layer.weight.data.add_(1e-5 * torch.randn(20, 20, generator=generator))
    assert 1 <= calls <= 5
    for _ in range(3):  # without a cache, every norm is exact
        matrix_norms(layer.weight)
    assert calls <= 8


def test_a_cache_is_active_only_inside_its_block() -> None:
    outer, inner = NormCache(), NormCache()
    assert active_cache() is None
    with outer:
        with inner:
            assert active_cache() is inner
        assert active_cache() is outer
        with outer:
            assert active_cache() is outer
    assert active_cache() is None


def test_an_entry_is_not_taken_for_another_weight() -> None:
    """Identities are reused after a weight is gone; the values are compared, so that costs nothing but a miss."""
    cache = NormCache()
    for seed in range(50):
        weight = torch.randn(4, 4, generator=seeded(seed)) * (seed % 5 + 1)
        with cache:
            assert matrix_norms(weight).two_two >= true_norm(weight)
        del weight


# ------------------------------------------------------------------------------------------------ traps of lip-dp


def attained_gradient(model: nn.Module, name: str, x: Tensor, v: Tensor) -> float:
    model.zero_grad()
    (model(x[None])[0] * v).sum().backward()
    return float(torch.linalg.vector_norm(model.get_parameter(name).grad.double()))


def rounding(terms: int) -> float:
    """The slack that a bound carries for a float32 sum of so many terms, and 1e-5 for all else."""
    return terms * 2.0**-24 + 1e-5


def test_lip_dp_1_a_kernel_gradient_has_the_root_of_the_taps() -> None:
    """lip-dp, section 2, item 1: |dK| is up to sqrt(kh kw) |x| |v|, where a border-corrected factor is too small."""
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    n = 28
    bound = dplip.parameter_bounds(layer, (1, n, n), Norms((1, n, n), l2=1.0))["weight"]
    wave = torch.sin(math.pi * (torch.arange(n) + 1) / (n + 1))
    x = (wave[:, None] * wave)[None]
    x = x / x.norm()
    attained = attained_gradient(layer, "weight", x, x)
    kh2 = 1  # its factor of deel-lip, for a 3x3 kernel at stride 1
    factor = n * n / ((3 * n - kh2 * (kh2 + 1)) ** 2)
    assert math.sqrt(factor) * 3 < attained <= bound <= 3 * (1 + rounding(n * n))


def test_lip_dp_2_a_bias_gradient_sums_over_positions() -> None:
    """Item 2: one bias a channel is shared by H W positions, so its gradient reaches sqrt(H W) |v|, not |v|."""
    layer = nn.Conv2d(1, 2, 3, padding=1)
    bound = dplip.parameter_bounds(layer, (1, 28, 28), Norms((1, 28, 28), l2=1.0))["bias"]
    v = torch.ones(2, 28, 28)
    attained = attained_gradient(layer, "bias", torch.zeros(1, 28, 28), v / v.norm())
    assert 27.9 < attained <= bound <= 28 * (1 + rounding(28 * 28))
    tokens = dplip.parameter_bounds(nn.Linear(3, 2), (50, 3), Norms((50, 3), l2=1.0))["bias"]
    assert math.isclose(tokens, math.sqrt(50), rel_tol=1e-5)


def test_lip_dp_2_a_bias_adds_to_every_position_forward() -> None:
    layer = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(0.5)
    output, _ = dplip.propagate(layer, (1, 8, 8), Norms((1, 8, 8), l2=0.0))
    assert 4.0 <= output.l2 <= 4.0 * (1 + 1e-5)


def test_lip_dp_3_centring_never_mixes_examples() -> None:
    """Item 3: a mean over the batch couples examples; ours is over the axes of one example alone."""
    x = torch.randn(4, 3, 5, 5, generator=seeded(0), requires_grad=True)
    y = dplip.nn.Center()(x)
    (gradient,) = torch.autograd.grad(y[0].square().sum(), x)
    assert float(gradient[1:].abs().max()) == 0.0
    assert float(y.detach().flatten(1).sum(1).abs().max()) < 1e-4


def test_lip_dp_7_an_orthogonal_kernel_matrix_is_no_orthogonal_convolution() -> None:
    """Item 7: after the mean-field border correction, a box kernel still has norm 1.02; the bound must say so."""
    n, k = 14, 3
    layer = nn.Conv2d(1, 1, k, padding=1, bias=False).double()
    half = (k - 1) // 2
    with torch.no_grad():
        layer.weight.fill_(1 / k)  # unit Frobenius norm
        layer.weight.mul_(n / (k * n - half * (half + 1)))
    exact = true_norm(explicit(layer, (n, n)))
    assert 1.005 < exact <= bounds_of(layer, (n, n)).two_two


def test_lip_dp_9_no_power_iteration() -> None:
    """Item 9: a start without weight on the top singular vector leaves power iteration far below; a bound is not."""
    weight = torch.diag(torch.tensor([10.0, 1.0, 1.0, 1.0]))
    torch.manual_seed(0)
    lower = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4, bias=False), n_power_iterations=1)
    for seed in range(20):  # nearly degenerate: ten iterations from a random start do not find the largest value
        g = seeded(seed)
        u, _, v = torch.linalg.svd(torch.randn(60, 60, generator=g, dtype=torch.float64))
        w = (u * torch.linspace(1.0, 0.9, 60)) @ v
        x = torch.randn(60, generator=g, dtype=torch.float64)
        for _ in range(10):
            x = w.T @ (w @ x)
            x = x / x.norm()
        assert float((w @ x).norm()) < 0.9999 <= 1.0 <= spectral_norm(w)
    assert spectral_norm(weight) >= 10.0
    with pytest.raises(dplip.UnboundedOperationError, match="lower bound"):
        dplip.propagate(lower, (4,))
