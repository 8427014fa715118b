"""Layers: convolutions, pooling, normalization of one example, resizing, recurrent cells."""

from __future__ import annotations

from dplip.separation.call import Call, Carried, Dimensions, Seen, but, carry, first, refuse, right, rule
from dplip.separation.rows import MIXED, Label, Rows


def _input(call: Call) -> Seen:
    return call["input"] if "input" in call.args else call["self"]


@rule(
    "convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution", "cudnn_convolution",
    "cudnn_convolution_transpose", "_slow_conv2d_forward", "conv_depthwise3d", "_conv_depthwise2d",
    "mkldnn_convolution_pointwise", "cudnn_convolution_relu", "miopen_convolution", "miopen_convolution_transpose",
    "miopen_depthwise_convolution", "mps_convolution", "_mps_convolution", "_mps_convolution_transpose",
)  # fmt: skip
def convolution(call: Call) -> Carried:
    """The batch is dimension 0 of the input; dimension 1 of the result are the weight's filters."""
    x = _input(call)
    batched = x.rank == call["weight"].rank
    parts: list[tuple[Seen, Dimensions]] = [(x, {0: 0} if batched else {}), (call["weight"], {})]
    if call.get("bias") is not None:
        parts.append((call["bias"], {}))
    return Carried(parts)


@rule(
    "max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d", "max_pool2d", "max_pool3d", "mkldnn_max_pool2d",
    "mkldnn_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d", "mkldnn_adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "fractional_max_pool2d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d",
)  # fmt: skip
def planes(call: Call) -> Carried:
    """Each plane of the last one, two or three dimensions by itself."""
    x = _input(call)
    name = next(d for d in ("1d", "2d", "3d") if d in call.name)
    if "fractional" in call.name:
        return Carried([(x, {0: 0}), (call["random_samples"], {0: 0})])
    return Carried([(x, first(x, x.rank - int(name[0])))])


@rule("im2col", "col2im", "channel_shuffle", "native_channel_shuffle")
def one_image(call: Call) -> Carried:
    """Each image by itself; one without a batch has a dimension less."""
    x = _input(call)
    whole = 4 if call.name == "im2col" else 3 if call.name == "col2im" else 4
    return Carried([(x, {0: 0} if x.rank == whole else {})])


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(call: Call) -> Carried:
    x = call["self"]
    return Carried([(x, first(x, x.rank - 3))])


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler", "_grid_sampler_2d_cpu_fallback")
def grid_sampler(call: Call) -> Carried:
    return Carried([(_input(call), {0: 0}), (call["grid"], {0: 0})])


@rule("affine_grid_generator", sized=("size",))
def affine_grid(call: Call) -> Carried:
    return Carried([(call["theta"], {0: 0})])


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm", "_fused_layer_norm")
def layer_norm(call: Call) -> Carried:
    """Normalizes over the last dimensions."""
    x = call["input"]
    kept = x.rank - len(call["normalized_shape"])
    weights = [call[n] for n in ("weight", "bias") if call.get(n) is not None]
    parts: list[tuple[Seen, Dimensions]] = [(x, first(x, kept))]
    return Carried(parts + [(w, {}) for w in weights])


@rule("native_group_norm", "group_norm", sized=("N",))
def group_norm(call: Call) -> Carried:
    """Normalizes groups of channels (dimension 1) of each row of dimension 0."""
    x = call["input"]
    if "N" in call.args and call["N"] != x.shape[0]:
        refuse("regroups the rows of the batch.", "Give N the size of dimension 0.")
    weights = [call[n] for n in ("weight", "bias") if call.get(n) is not None]
    parts: list[tuple[Seen, Dimensions]] = [(x, {0: 0})]
    return Carried(parts + [(w, {}) for w in weights])


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_batch_norm_with_update", "_batch_norm_no_update", "miopen_batch_norm", "batch_norm", "_batch_norm_impl_index",
)  # fmt: skip
def batch_norm(call: Call) -> Carried | list[Label]:
    """With fixed statistics it is a scale and a shift of each channel.

    Without any it normalizes each channel; InstanceNorm has the channels of each example along dimension 1.
    """
    training = call.get("training") or call.name == "_batch_norm_with_update" or call.get("running_mean") is None
    x = call["input"]
    weights = [call[n] for n in ("weight", "bias") if call.get(n) is not None]
    if call.get("running_mean") is None and isinstance(x.label, Rows) and (x.label.axis == 1 or call.examples == 1):
        own: list[tuple[Seen, Dimensions]] = [(x, {1: 1}), *((w, {0: 1}) for w in weights)]
        label = carry(call, Carried(own), call.shape) if call.examples > 1 else x.label
        return [label] + [MIXED] * (len(call.shapes) - 1)
    if training and call.has_rows:
        refuse(
            "normalizes with statistics of the whole batch (BatchNorm, or InstanceNorm by way of it).",
            "Use nn.GroupNorm in its place; or freeze the layer and put it into eval().",
        )
    others = weights + [call[n] for n in ("running_mean", "running_var") if call.get(n) is not None]
    parts: list[tuple[Seen, Dimensions]] = [(x, but(x, 1))]
    return Carried(parts + [(w, {}) for w in others], outputs=1)


@rule("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell")
def cell(call: Call) -> Carried:
    """One step of a recurrent network; its biases are added to the last dimension."""
    biases = [call[n] for n in ("input_bias", "hidden_bias") if call.get(n) is not None]
    states = [call[n] for n in ("input_gates", "hidden_gates", "hx", "cx") if call.get(n) is not None]
    return Carried([(t, {0: 0}) for t in states] + [(t, {}) for t in biases])


@rule("mkldnn_rnn_layer", "_cudnn_rnn")
def recurrent(call: Call) -> Carried | list[Label]:
    """A whole recurrent layer: states have the batch at their last dimension but one, sequences at 0 or 1."""
    x = call["input"]
    states = [call[n] for n in ("hx", "hx_", "cx", "cx_") if call.get(n) is not None]
    if not call.has_rows:
        return Carried([(t, {}) for t in call.tensors])
    if call.get("batch_sizes"):
        refuse("runs on a packed sequence, whose rows are of several examples.", "Give a padded tensor instead.")
    batch = 0 if call["batch_first"] and call.name == "_cudnn_rnn" else 1
    for t in call.tensors:
        place = {batch: 0} if t is x else {t.rank - 2: 0} if any(t is s for s in states) else {}
        if call.examples > 1:
            carry(call, Carried([(x, {batch: 0}), (t, place)]), (x.shape[batch],))
    if not isinstance(x.label, Rows):
        refuse("starts a sequence that depends on no example from states that do.", "Start from zeros.")
    labels: list[Label] = [x.label.moved(batch if i == 0 else len(s) - 2) for i, s in enumerate(call.shapes[:3])]
    return labels + [MIXED] * (len(call.shapes) - 3)


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(call: Call) -> Carried:
    return Carried([(t, {}) for t in call.tensors])


@rule("binary_cross_entropy", "mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "l1_loss", "kl_div")
def entry_losses(call: Call) -> Carried:
    """Losses of entries; a mean or a sum is over all of them."""
    if call.get("reduction") != 0:
        return Carried([(t, {}) for t in call.tensors])
    return Carried([(t, right(t, len(call.shape))) for t in call.tensors])


@rule("nll_loss_forward", "nll_loss2d_forward")
def nll(call: Call) -> Carried:
    parts: list[tuple[Seen, Dimensions]]
    if call["reduction"] != 0 or call["self"].rank < 2:
        parts = [(t, {}) for t in call.tensors]
    else:
        parts = [(call["self"], {0: 0}), (call["target"], {0: 0})]
        parts += [(call["weight"], {})] if call.get("weight") is not None else []
    return Carried(parts, outputs=1)
