"""Models whose examples meet in the forward pass: statistics, pairs, attention, sums."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from helpers.zoo.cases import IMAGE, PAIR, SEQUENCE, SQUARE, Case, case
from torch import Tensor, nn

VALUES: dict[str, Case] = {}


def mixes(*args: Any, **options: Any) -> Any:
    return case(VALUES, *args, **options)


# Statistics of the batch


@mixes()
def the_mean_is_subtracted(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h - h.mean(0))


@mixes()
def the_mean_over_all_axes_is_subtracted(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h - h.mean())


@mixes()
def the_mean_without_a_gradient_is_subtracted(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h - h.detach().mean(0, keepdim=True))


@mixes()
def the_raw_inputs_are_standardised(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a((x - x.mean(0)) / (x.std(0) + 1e-3)))


@mixes()
def the_inputs_are_scaled_by_their_largest(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = x / x.abs().max()
    return m.head(m.a(x))


@mixes(parts={"norm": nn.BatchNorm1d(8)})
def batch_norm(m: Any, x: Tensor) -> Tensor:
    return m.head(m.norm(m.a(x)).relu())


@mixes(parts={"norm": nn.BatchNorm1d(8, affine=False, track_running_stats=False)})
def batch_norm_without_weights_and_statistics(m: Any, x: Tensor) -> Tensor:
    return m.head(m.norm(m.a(x)).relu())


@mixes(IMAGE, {"norm": nn.BatchNorm2d(8, momentum=None)})
def batch_norm_of_images(m: Any, x: Tensor) -> Tensor:
    return m.head(m.norm(m.a(x)).relu().mean((2, 3)))


@mixes(IMAGE, {"mean": torch.zeros(8), "var": torch.ones(8)})
def batch_norm_as_a_function(m: Any, x: Tensor) -> Tensor:
    return m.head(F.batch_norm(m.a(x), m.mean, m.var, training=True).mean((2, 3)))


@mixes(IMAGE, {"norm": nn.BatchNorm2d(8)})
def batch_norm_that_evaluates_but_learns_its_scale_and_renews_its_statistics(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    with torch.no_grad():
        m.norm.running_mean.lerp_(h.mean((0, 2, 3)), 0.1)
    return m.head(F.batch_norm(h, m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias).mean((2, 3)))


@mixes(IMAGE)
def ghost_batch_norm(m: Any, x: Tensor) -> Tensor:
    parts = [F.batch_norm(c, None, None, training=True) for c in m.a(x).chunk(2)]
    return m.head(torch.cat(parts).mean((2, 3)))


@mixes(IMAGE)
def instance_norm_over_examples_as_channels(m: Any, x: Tensor) -> Tensor:
    h = F.instance_norm(m.a(x).transpose(0, 1).flatten(1, 2)[None])  # (1, 8, B * 8, 8)
    return m.head(h.reshape(8, len(x), 8, 8).transpose(0, 1).mean((2, 3)))


@mixes()
def layer_norm_of_the_transposed(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).T
    return m.head(F.layer_norm(h, (len(x),)).T)


@mixes()
def layer_norm_over_everything(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(F.layer_norm(h, h.shape))


@mixes(IMAGE)
def group_norm_of_the_transposed(m: Any, x: Tensor) -> Tensor:
    return m.head(F.group_norm(m.a(x).transpose(0, 1), 1).transpose(0, 1).mean((2, 3)))


@mixes()
def normalised_along_the_batch(m: Any, x: Tensor) -> Tensor:
    return m.head(F.normalize(m.a(x), dim=0))


@mixes()
def softmax_along_the_batch(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).softmax(0))


@mixes(SEQUENCE)
def softmax_without_an_axis(m: Any, x: Tensor) -> Tensor:
    return m.head(F.softmax(m.a(x)).mean(1))


@mixes()
def log_sum_exp_of_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h - torch.logsumexp(h, 0))


@mixes()
def whitening_by_the_covariance(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h @ torch.linalg.inv(h.T @ h / len(h) + torch.eye(8)))


@mixes()
def torch_cov(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h @ torch.cov(h.T))


@mixes()
def projected_on_the_first_principal_component(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    v = torch.linalg.svd(h, full_matrices=False)[2][:1]
    return m.head(h - h @ v.T @ v)


@mixes()
def orthogonalised_by_qr(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.linalg.qr(F.pad(m.a(x), (0, 0, 0, 8)))[0][: len(x)])


@mixes()
def divided_by_the_spectral_norm_of_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h / (1e-3 + torch.linalg.matrix_norm(h.detach(), 2)))


@mixes(parts={"u": torch.ones(6)})
def a_power_iteration_with_data(m: Any, x: Tensor) -> Tensor:
    u = F.normalize(x.T @ (x @ m.u), dim=0)
    return m.head(m.a(x - (x @ u)[:, None] * u))


@mixes()
def clipped_to_a_quantile(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(torch.minimum(h, h.detach().quantile(0.9, dim=0)))


@mixes()
def median_of_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h - h.median(0).values)


@mixes(parts={"centres": torch.randn(4, 8)})
def k_means_with_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    near = torch.cdist(h, m.centres).softmax(1)
    centres = near.T @ h / (near.sum(0)[:, None] + 1e-3)
    return m.head(h - near @ centres)


@mixes()
def sinkhorn(m: Any, x: Tensor) -> Tensor:
    p = m.a(x).exp()
    for _ in range(2):
        p = p / p.sum(0)
        p = p / p.sum(1, keepdim=True)
    return m.head(p)


@mixes(PAIR)
def optimal_for_the_other_tower(m: Any, x: Tensor, y: Tensor) -> Tensor:
    g, h = m.a(x), m.a(y)
    return m.head(g @ torch.linalg.pinv(h) @ h)


# Pairs


@mixes()
def contrastive_similarities(m: Any, x: Tensor) -> Tensor:
    z = F.normalize(m.a(x), dim=1)
    return m.head((z @ z.T / 0.1).softmax(1) @ z)


@mixes(PAIR)
def clip_of_two_towers(m: Any, x: Tensor, y: Tensor) -> Tensor:
    scores = m.a(x) @ m.a(y).T
    return m.head(m.a(x)) * scores.softmax(1).diagonal()[:, None]


@mixes()
def distances_to_the_others(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h * torch.exp(-torch.cdist(h, h).sum(1, keepdim=True)))


@mixes()
def the_neighbour_as_a_negative(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(h - h.roll(1, 0))


@mixes()
def mixup(m: Any, x: Tensor) -> Tensor:
    share = torch.rand(())
    return m.head(m.a(share * x + (1 - share) * x.flip(0)))


@mixes()
def mixup_with_a_random_order(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(0.8 * h + 0.2 * h[torch.randperm(len(h))])


@mixes(IMAGE)
def cutmix(m: Any, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, 2:4, 2:4] = x[torch.randperm(len(x))][:, :, 2:4, 2:4]
    return m.head(m.a(x).mean((2, 3)))


@mixes(IMAGE)
def manifold_shift_of_channels_over_frames(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    h = torch.cat([h[:, :4].roll(1, 0), h[:, 4:]], 1)
    return m.head(h.mean((2, 3)))


@mixes()
def style_of_another_example(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head((h - h.mean(1, keepdim=True)) * h.std(1, keepdim=True).flip(0))


# Attention and recurrence along the wrong axis


@mixes(SEQUENCE, {"attention": nn.MultiheadAttention(8, 2)})
def attention_that_is_not_batch_first(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(m.attention(h, h, h, need_weights=False)[0].mean(1))


@mixes(SEQUENCE, {"attention": nn.MultiheadAttention(8, 2)})
def attention_that_is_not_batch_first_with_weights(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(m.attention(h, h, h)[0].mean(1))


@mixes(SEQUENCE, {"inner": nn.TransformerEncoderLayer(8, 2, 16, 0.0)})
def transformer_that_is_not_batch_first(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x)).mean(1))


@mixes(SQUARE, {"inner": nn.TransformerEncoderLayer(8, 2, 16, 0.0)}, batch=40)
def transformer_that_is_not_batch_first_where_sizes_coincide(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x)).mean(1))


@mixes(parts={"attention": nn.MultiheadAttention(8, 2, batch_first=True)})
def attention_of_vectors_as_one_sequence(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(m.attention(h, h, h)[0])


@mixes(parts={"inner": nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)})
def transformer_of_vectors_with_a_new_axis_in_front(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x)[None])[0])


@mixes(SEQUENCE)
def scaled_dot_products_over_examples(m: Any, x: Tensor) -> Tensor:
    q = m.a(x).transpose(0, 1)
    return m.head(F.scaled_dot_product_attention(q, q, q).mean(0))


@mixes(SEQUENCE)
def heads_split_with_the_batch_inside(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    q = h.reshape(2, -1, 5, 4)  # meant (B, T, heads, width)
    out = F.scaled_dot_product_attention(q.transpose(0, 2), q.transpose(0, 2), q.transpose(0, 2))
    return m.head(out.transpose(0, 2).reshape(len(x), 5, 8).mean(1))


@mixes(SEQUENCE, {"inner": nn.LSTM(8, 8)})
def lstm_that_is_not_batch_first(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x))[0][:, -1])


@mixes(SEQUENCE, {"inner": nn.GRU(8, 8, batch_first=True)})
def gru_whose_last_state_is_taken_along_the_batch(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x))[0][-1].expand(len(x), 5, 8).mean(1))


@mixes(parts={"inner": nn.RNN(8, 8, batch_first=True)})
def rnn_of_vectors_as_one_sequence(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x))[0])


@mixes(parts={"cell": nn.GRUCell(8, 8)})
def a_cell_that_goes_from_example_to_example(m: Any, x: Tensor) -> Tensor:
    h, out = torch.zeros(1, 8), []
    for row in m.a(x).split(1):
        h = m.cell(row, h)
        out.append(h)
    return m.head(torch.cat(out))


@mixes(parts={"inner": nn.LSTM(8, 4, batch_first=True, bidirectional=True)})
def bidirectional_lstm_with_a_new_axis_in_front(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x).unsqueeze(0))[0].squeeze(0))


@mixes(parts={"inner": nn.Conv1d(8, 8, 3, padding=1)})
def convolution_over_examples(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x).T).T)


@mixes(IMAGE, {"inner": nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))})
def convolution_over_a_video_of_the_batch(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).transpose(0, 1)[None]
    return m.head(m.inner(h)[0].transpose(0, 1).mean((2, 3)))


@mixes()
def pooling_over_examples(m: Any, x: Tensor) -> Tensor:
    return m.head(F.max_pool1d(m.a(x).T[None], 3, 1, 1)[0].T)


@mixes()
def interpolated_between_examples(m: Any, x: Tensor) -> Tensor:
    fewer = F.interpolate(m.a(x).T[None], len(x) // 2 + 1, mode="linear")
    return m.head(F.interpolate(fewer, len(x), mode="linear")[0].T)


@mixes()
def cumulated_over_examples(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).cumsum(0))


@mixes()
def the_largest_so_far(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).cummax(0).values)


@mixes()
def differences_of_neighbours(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(torch.diff(h, dim=0, prepend=h[:1]))


@mixes()
def spectrum_over_examples(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.fft.fft(m.a(x), dim=0).abs())


@mixes(SEQUENCE)
def fourier_mixing_over_two_axes(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.fft.fft2(m.a(x), dim=(0, 1)).real.mean(1))  # FNet, one axis too far


# Sums over the batch by name


@mixes()
def einsum_over_examples(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(torch.einsum("bd,be,ce->cd", h, h, h) / 10)


@mixes(SEQUENCE)
def einsum_with_a_letter_wrong(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    scores = torch.einsum("bqd,ckd->bqk", h, h)
    return m.head(torch.einsum("bqk,bkd->bqd", scores.softmax(-1), h).mean(1))


@mixes(SEQUENCE)
def tensordot_over_examples(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    gram = torch.tensordot(h, h, dims=([0, 1], [0, 1]))
    return m.head(torch.tanh(h @ gram).mean(1))


@mixes()
def outer_products_of_all_pairs(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head((h[:, None] * h[None]).tanh().mean(1))


@mixes(SEQUENCE)
def linear_attention_whose_memory_is_shared(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    flat = h.reshape(-1, 8)
    return m.head((h @ (flat.T @ flat).tanh()).mean(1))
