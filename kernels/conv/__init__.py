"""Convolution, transposed convolution: forward, data gradient, filter gradient."""

from kernels import norm, shape
from kernels.conv import fallback, reference
from kernels.core.dispatch import operator

_FAST = {"cpu": "kernels.conv.cpu", "cuda": "kernels.conv.cuda"}
_GROUPS = "where C % groups == K % groups == 0 < groups"
_MAPS = f"maps+ (N, H, W, C); where min(window.output_size((H, W))) > 0; {_GROUPS}; where len(maps) == 1 or groups == 1"
_OUT = "(N, *window.output_size((H, W)), K)"
_NORM = "norm.weight (K); norm.bias (K)"
_FORWARD = f"{_MAPS}; w (*window.kernel, C // groups, K); residual? {_OUT}"
# A map's gradient is added to what is there, part by part of the channels. Fewer windows than fit are right: an output
# may be padded.
_DATA = """dy (N, P, Q, K); w (*window.kernel, M, K); where within((P, Q), window.output_size(size));
    where K % groups == 0 < groups; accumulate_into*?! (N, *size, (parts or (M * groups,))[i]);
    where len(accumulate_into) == len(parts or (0,)); where sum(parts or (M * groups,)) == M * groups;
    where len(accumulate_into) == 1 or groups == 1"""

conv2d_forward = operator(reference.conv2d_forward, f"{_FORWARD}; b? (K)", **_FAST)
conv2d_backward_data = operator(reference.conv2d_backward_data, _DATA, **_FAST)
conv2d_backward_filter = operator(reference.conv2d_backward_filter, f"{_MAPS}; dy {_OUT}", **_FAST)
conv2d_norm_forward = operator(
    reference.conv2d_norm_forward,
    f"{_FORWARD}; {_NORM}; norm.running_mean! (K); norm.running_var! (K)",
    fallback.unfused_norm_forward(
        conv2d_forward,
        norm.batch_norm_statistics,
        norm.batch_norm_running,
        norm.batch_norm_inverse,
        norm.batch_norm_forward,
    ),
    **_FAST,
)
conv2d_norm_backward = operator(
    reference.conv2d_norm_backward,
    f"""{_MAPS}; w (*window.kernel, C // groups, K); dy {_OUT}; z {_OUT}; {_NORM}; norm.mean (K); norm.inverse (K);
    accumulate_into?*?! (N, H, W, maps[i].shape[3]);
    where accumulate_into is None or len(accumulate_into) == len(maps)""",
    fallback.unfused_norm_backward(
        norm.batch_norm_backward,
        conv2d_backward_filter,
        conv2d_backward_data,
        shape.concat_channels,
        shape.split_channels,
        shape.accumulate,
    ),
    **_FAST,
)
backward_bias = operator(reference.backward_bias, "dy (*S, K)", **_FAST)
_TRANSPOSED = "w (*window.kernel, C, M); where C % groups == 0 < groups"
conv_transpose2d_forward = operator(
    reference.conv_transpose2d_forward,
    f"x (N, P, Q, C); {_TRANSPOSED}; b? (M * groups); where within((P, Q), window.output_size(size))",
    **_FAST,
)
conv_transpose2d_backward_data = operator(
    reference.conv_transpose2d_backward_data,
    f"{_TRANSPOSED}; dy (N, H, W, M * groups); where min(window.output_size((H, W))) > 0",
    **_FAST,
)
conv_transpose2d_backward_filter = operator(
    reference.conv_transpose2d_backward_filter,
    "dy (N, H, W, K); x (N, *window.output_size((H, W)), C); where C % groups == K % groups == 0 < groups",
    **_FAST,
)
