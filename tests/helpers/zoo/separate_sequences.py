"""Models of sequences and words whose examples stay apart, as people train them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from helpers.zoo.cases import LENGTHS, SEQUENCE, WORDS, Case, case
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dplip.losses import CrossEntropy

SEQUENCES: dict[str, Case] = {}


def apart(*args: Any, **options: Any) -> Any:
    return case(SEQUENCES, *args, **options)


def masked(x: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]


# Recurrence and convolution over time


@apart(SEQUENCE, {"inner": nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True, dropout=0.1)})
def lstm(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x))[0].mean(1))


@apart(SEQUENCE, {"inner": nn.LSTM(8, 8)})
def lstm_with_time_first(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x).transpose(0, 1))[1][0][-1])


@apart(SEQUENCE, {"inner": nn.GRU(8, 8, batch_first=True)})
def gru_with_a_given_state(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x), torch.zeros(1, len(x), 8))[1].squeeze(0))


@apart(SEQUENCE, {"inner": nn.RNN(8, 8, batch_first=True), "start": nn.Parameter(torch.zeros(1, 1, 8))})
def rnn_with_a_learned_start(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x), m.start.expand(1, x.size(0), 8).contiguous())[0][:, -1])


@apart(SEQUENCE, {"cell": nn.LSTMCell(8, 8)})
def cells_in_a_loop(m: Any, x: Tensor) -> Tensor:
    state = x.new_zeros(len(x), 8), x.new_zeros(len(x), 8)
    found = []
    for step in m.a(x).unbind(1):
        state = m.cell(step, state)
        found.append(state[0])
    return m.head(torch.stack(found, 1).amax(1))


@apart(SEQUENCE, {"b": nn.Linear(8, 8)})
def a_scan_by_hand(m: Any, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape[0], 8)
    for t in range(x.shape[1]):
        h = torch.tanh(m.a(x[:, t]) + m.b(h))
    return m.head(h)


@apart(SEQUENCE, {"decay": nn.Parameter(torch.zeros(8))})
def a_state_space_by_cumulated_sums(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head((h * m.decay.sigmoid()).cumsum(1)[:, -1] / 5)


@apart(LENGTHS, {"inner": nn.GRU(8, 8, batch_first=True)})
def last_state_of_each_length(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    out = m.inner(m.a(x))[0]
    return m.head(out.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, 8)).squeeze(1))


@apart(LENGTHS, {"inner": nn.GRU(8, 8, batch_first=True)})
def last_state_by_two_indices(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    out = m.inner(m.a(x))[0]
    return m.head(out[torch.arange(len(x)), lengths - 1])


@apart(SEQUENCE, {"layers": nn.ModuleList([nn.Conv1d(8, 8, 3, dilation=2**i) for i in range(2)])})
def temporal_convolution(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).transpose(1, 2)
    for i, layer in enumerate(m.layers):
        h = h + layer(F.pad(h, (2 * 2**i, 0))).relu()
    return m.head(h[:, :, -1])


@apart(SEQUENCE, {"inner": nn.Conv1d(8, 16, 2), "skip": nn.Conv1d(8, 8, 1)})
def wavenet(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).transpose(1, 2)
    a, b = m.inner(F.pad(h, (1, 0))).chunk(2, 1)
    return m.head((h + m.skip(a.tanh() * b.sigmoid())).mean(-1))


# Attention


@apart(SEQUENCE, {"query": nn.Linear(8, 1)})
def attention_pooling(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head((m.query(h).softmax(1) * h).sum(1))


@apart(LENGTHS, {"query": nn.Linear(8, 1)})
def attention_pooling_with_a_mask(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    h = m.a(x)
    scores = m.query(h).squeeze(-1).masked_fill(~masked(x, lengths), float("-inf"))
    return m.head(torch.bmm(scores.softmax(-1).unsqueeze(1), h).squeeze(1))


@apart(SEQUENCE, {"attention": nn.MultiheadAttention(8, 2, batch_first=True)})
def multihead_attention(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head((h + m.attention(h, h, h, need_weights=False)[0]).mean(1))


@apart(SEQUENCE, {"attention": nn.MultiheadAttention(8, 2)})
def multihead_attention_with_time_first(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).transpose(0, 1)
    return m.head(m.attention(h, h, h)[0].mean(0))


@apart(LENGTHS, {"inner": nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)})
def transformer_with_padding(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    keep = masked(x, lengths)
    h = m.inner(m.a(x), src_key_padding_mask=~keep)
    return m.head((h * keep[..., None]).sum(1) / keep.sum(1, keepdim=True))


@apart(SEQUENCE, {"inner": nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.1), 2)})
def transformer_with_time_first(m: Any, x: Tensor) -> Tensor:
    return m.head(m.inner(m.a(x).permute(1, 0, 2)).mean(0))


@apart(SEQUENCE, {"inner": nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True)})
def transformer_decoder(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(m.inner(h[:, :3], h, tgt_mask=nn.Transformer.generate_square_subsequent_mask(3))[:, -1])


@apart(WORDS, {"head": nn.Linear(8, 20), "inner": nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)},
       loss=lambda: CrossEntropy(classes_last=True, shift=True), target=lambda item, i: item)  # fmt: skip
def causal_language_model(m: Any, x: Tensor) -> Tensor:
    mask = torch.triu(torch.full((6, 6), float("-inf")), diagonal=1)
    return m.head(m.inner(m.a(x), src_mask=mask, is_causal=True))


@apart(WORDS, {"inner": nn.Linear(8, 8), "head": nn.Identity()},
       loss=lambda: CrossEntropy(classes_last=True), target=lambda item, i: item)  # fmt: skip
def tied_language_model(m: Any, x: Tensor) -> Tensor:
    return F.linear(m.inner(m.a(x)).tanh(), m.a.weight)


@apart(SEQUENCE, {"qkv": nn.Linear(8, 24)})
def heads_by_view_and_transpose(m: Any, x: Tensor) -> Tensor:
    n, t, d = x.shape
    q, k, v = m.qkv(m.a(x)).view(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return m.head(out.transpose(1, 2).reshape(n, t, d).mean(1))


@apart(SEQUENCE, {"qkv": nn.Linear(8, 24)})
def heads_folded_into_the_batch(m: Any, x: Tensor) -> Tensor:
    n, t, d = x.shape
    q, k, v = (u.view(n, t, 2, 4).transpose(1, 2).reshape(n * 2, t, 4) for u in m.qkv(m.a(x)).split(d, -1))
    weights = torch.baddbmm(torch.zeros(n * 2, t, t), q, k.transpose(1, 2), beta=0, alpha=0.5).softmax(-1)
    return m.head(torch.bmm(weights, v).view(n, 2, t, 4).transpose(1, 2).reshape(n, t, d).mean(1))


@apart(SEQUENCE, {"qkv": nn.Linear(8, 24)})
def heads_by_einsum(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(m.a(x)).unflatten(-1, (3, 2, 4)).unbind(2)
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
    return m.head(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2).mean(1))


@apart(SEQUENCE, {"qkv": nn.Linear(8, 24), "bias": nn.Embedding(9, 2)})
def relative_places(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(m.a(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    places = torch.arange(5)
    bias = m.bias(places[:, None] - places[None] + 4).permute(2, 0, 1)
    return m.head(((q @ k.mT / 2 + bias).softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1))


@apart(SEQUENCE, {"qkv": nn.Linear(8, 24)})
def alibi(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(m.a(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    far = torch.arange(5)[None] - torch.arange(5)[:, None]
    slopes = 2.0 ** -torch.arange(1, 3)
    scores = q @ k.mT / 2 - slopes[:, None, None] * far.abs()
    scores = scores.masked_fill(far > 0, -torch.inf)
    return m.head((scores.softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1))


@apart(SEQUENCE, {"qkv": nn.Linear(8, 24)})
def rotary_places(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(m.a(x)).chunk(3, -1)
    angles = torch.arange(5)[:, None] * 100.0 ** (-torch.arange(0, 8, 2) / 8)
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)

    def turned(u: Tensor) -> Tensor:
        a, b = u.chunk(2, -1)
        return u * cos + torch.cat([-b, a], -1) * sin

    return m.head(((turned(q) @ turned(k).mT).softmax(-1) @ v).mean(1))


@apart(SEQUENCE, {"qkv": nn.Linear(8, 24)})
def rotary_places_by_complex_numbers(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(m.a(x)).chunk(3, -1)
    turn = torch.polar(torch.ones(5, 4), torch.arange(5.0)[:, None] / torch.arange(1.0, 5))
    q, k = (torch.view_as_real(torch.view_as_complex(u.unflatten(-1, (4, 2))) * turn).flatten(2) for u in (q, k))
    return m.head(((q @ k.mT).softmax(-1) @ v).mean(1))


@apart(SEQUENCE, {"qkv": nn.Linear(8, 24)})
def linear_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(m.a(x)).chunk(3, -1)
    return m.head((F.elu(q) @ (F.elu(k).transpose(1, 2) @ v) / 5).mean(1))


@apart(SEQUENCE, {"queries": nn.Parameter(torch.randn(2, 8)), "inner": nn.MultiheadAttention(8, 2, batch_first=True)})
def perceiver(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head(m.inner(m.queries.expand(len(x), -1, -1), h, h)[0].mean(1))


@apart(SEQUENCE)
def fourier_mixing(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.fft.fft2(m.a(x), dim=(1, 2)).real.mean(1))


@apart(SEQUENCE, {"gate": nn.Conv1d(8, 8, 5, padding=2, groups=8), "n": nn.LayerNorm(8)})
def gated_mlp_over_time(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.head((h * m.gate(m.n(h).mT).mT).mean(1))


@apart(SEQUENCE)
def positions_as_rows_and_back(m: Any, x: Tensor) -> Tensor:
    n, t, d = x.shape
    return m.head(m.a(x.reshape(n * t, d)).relu().reshape(n, t, -1).mean(1))


@apart(SEQUENCE)
def positions_as_rows_and_back_by_minus_one(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x.view(-1, 8)).tanh()).view(-1, 5, 3).mean(1)


@apart(SEQUENCE, {"r": nn.RMSNorm(8), "one": nn.Linear(8, 8), "two": nn.Linear(8, 8)})
def swish_gates_with_rms_norm(m: Any, x: Tensor) -> Tensor:
    h = m.r(m.a(x))
    return m.head((h + F.silu(m.one(h)) * m.two(h)).mean(1))


@apart(SEQUENCE, {"places": nn.Parameter(torch.randn(1, 5, 8))})
def learned_places(m: Any, x: Tensor) -> Tensor:
    return m.head((m.a(x) + m.places[:, : x.size(1)]).tanh().mean(1))


@apart(SEQUENCE, {"places": nn.Embedding(5, 8)})
def places_by_an_embedding(m: Any, x: Tensor) -> Tensor:
    return m.head((m.a(x) + m.places(torch.arange(5).expand(len(x), 5))).tanh().mean(1))


@apart(SEQUENCE)
def sinusoids(m: Any, x: Tensor) -> Tensor:
    place = torch.arange(x.size(1))[:, None]
    rate = torch.exp(torch.arange(0, 8, 2) * (-math.log(10000.0) / 8))
    table = torch.zeros(x.size(1), 8)
    table[:, 0::2], table[:, 1::2] = (place * rate).sin(), (place * rate).cos()
    return m.head((m.a(x) + table).tanh().mean(1))


@apart(SEQUENCE)
def a_word_dropped_from_each_example(m: Any, x: Tensor) -> Tensor:
    keep = torch.rand(x.shape[:2]) > 0.2
    return m.head((m.a(x) * keep.unsqueeze(-1)).sum(1) / keep.sum(1, keepdim=True).clamp(min=1))


# Words


@apart(WORDS)
def mean_of_words(m: Any, x: Tensor) -> Tensor:
    keep = (x != 0).float()
    return m.head((m.a(x) * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).clamp_min(1.0))


@apart(WORDS, {"a": nn.EmbeddingBag(20, 8, mode="mean")})
def embedding_bag(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x))


@apart(WORDS, {"a": nn.Embedding(20, 8, padding_idx=0)})
def fasttext_with_a_padding_word(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(x).sum(1) / 6)


@apart(WORDS, {"inner": nn.ModuleList([nn.Conv1d(8, 4, k) for k in (2, 3)])})
def text_cnn(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).transpose(1, 2)
    return m.head(torch.cat([F.max_pool1d(c(h), c(h).size(2)).squeeze(2) for c in m.inner], 1))


@apart(WORDS, {"a": nn.Linear(20, 8)})
def one_hot_words(m: Any, x: Tensor) -> Tensor:
    return m.head(m.a(F.one_hot(x, 20).float()).amax(1))


@apart(WORDS, {"a": nn.Linear(20, 8)})
def counts_of_words_in_each_example(m: Any, x: Tensor) -> Tensor:
    counts = torch.zeros(len(x), 20).scatter_add_(1, x, torch.ones_like(x, dtype=torch.float))
    return m.head(m.a(counts.log1p()))


@apart(WORDS, {"columns": nn.ModuleList([nn.Embedding(20, 2) for _ in range(6)]), "head": nn.Linear(20, 3)})
def embeddings_of_table_columns(m: Any, x: Tensor) -> Tensor:
    each = [column(x[:, i]) for i, column in enumerate(m.columns)]
    return m.head(torch.cat([*each, m.a(x).mean(1)], -1))


@apart(LENGTHS)
def mean_over_a_length(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    keep = masked(x, lengths)
    return m.head((m.a(x) * keep[..., None]).sum(1) / lengths[:, None])


@apart(LENGTHS)
def largest_over_a_length(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    return m.head(m.a(x).masked_fill(~masked(x, lengths)[..., None], -1e4).max(dim=1)[0])


@apart(LENGTHS, {"inner": nn.LSTM(8, 8, batch_first=True)})
def packed_sequences(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    packed = pack_padded_sequence(m.a(x), lengths, batch_first=True, enforce_sorted=False)
    out, _ = pad_packed_sequence(m.inner(packed)[0], batch_first=True, total_length=6)
    return m.head(out.sum(1) / lengths[:, None])


@apart(WORDS)
def shuffled_and_put_back(m: Any, x: Tensor) -> Tensor:
    order = torch.randperm(len(x))
    return m.head(m.a(x[order]).mean(1)[order.argsort()])


@apart(WORDS)
def one_example_after_another(m: Any, x: Tensor) -> Tensor:
    return torch.stack([m.head(m.a(row).mean(0)) for row in x])


@apart(WORDS, {"inner": nn.Linear(8, 8)})
def adaptive_iterations_with_a_fixed_number(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).mean(1)
    halted = torch.zeros(len(x), 1)
    for _ in range(3):
        h = torch.where(halted > 0.5, h, h + m.inner(h).tanh())
        halted = torch.maximum(halted, (h.norm(dim=-1, keepdim=True) > 3).float())
    return m.head(h)
