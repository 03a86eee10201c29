"""Convolution and transposed convolution, NHWC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autograd.checks import check_bias, check_groups, checked_conv2d, checked_window
from autograd.function import Function
from autograd.modes import is_recording
from autograd.tensor import Tensor
from kernels import conv as kernels
from kernels.core.device import Array
from kernels.core.geometry import Window

__all__ = ["conv2d", "conv2d_relu", "conv_transpose2d"]


class Conv2d(Function):
    """y[n,p,q,k] = b[k] + sum_{r,s,c} x[n, p stride - top + r dilation, ..., c] w[r,s,c,k].

    dx = the transpose of that map applied to dy (for stride 1 again a convolution, with the filter flipped and its
    channels swapped).
    dw[r,s,c,k] = sum_{n,p,q} x[n, p stride - top + r dilation, ..., c] dy[n,p,q,k].      db = sum_{n,p,q} dy.
    x may be two maps, read as if concatenated; each then gets its part of dx.
    Checked by central differences and by the adjoint identity <conv(x), dy> = <x, dx>.
    """

    def __init__(self, window: Window, groups: int) -> None:
        super().__init__()
        self.window, self.groups = window, groups

    def forward(self, w: Array, b: Array | None, *maps: Array) -> Array:
        self.save(w, *maps)
        return kernels.conv2d_forward(maps, w, b, self.window, self.groups)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        w, *maps = self.saved
        dw = db = None
        if self.needs[0]:
            dw = kernels.conv2d_backward_filter(tuple(maps), dy, self.window, self.groups)
        if self.needs[1]:
            db = kernels.backward_bias(dy)
        if not any(self.needs[2:]):
            return dw, db, *(None for _ in maps)
        parts = tuple(m.shape[3] for m in maps)
        size = maps[0].shape[1:3]
        dxs = kernels.conv2d_backward_data(
            dy, w, size, self.window, self.groups, parts, self.accumulators[2:] or (None,) * len(maps)
        )
        return dw, db, *(dx if need else None for dx, need in zip(dxs, self.needs[2:], strict=True))

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        r, s, c, _ = inputs[0].shape
        return 2 * outputs[0].size * r * s * c

    def backward_flops(self, forward: int) -> int:
        return forward * (self.needs[0] + any(self.needs[2:]))


class Conv2dReLU(Function):
    """y = relu(conv2d(x) + b + residual), for inference: it keeps nothing for a gradient."""

    def __init__(self, window: Window, groups: int) -> None:
        super().__init__()
        self.window, self.groups = window, groups

    def forward(self, w: Array, b: Array, residual: Array | None, *maps: Array) -> Array:
        return kernels.conv2d_forward(maps, w, b, self.window, self.groups, True, residual)

    flops = Conv2d.flops


class ConvTranspose2d(Function):
    """y = unpatch(x w^T) + b: each input pixel adds its value times the filter to the window it came from.

    dx = convolution of dy with the filter.      dw[r,s,c,k] = sum_{n,p,q} x[n,p,q,c] dy[n, p stride - top + r dilation,
    ..., k].
    """

    def __init__(self, window: Window, size: tuple[int, int], groups: int) -> None:
        super().__init__()
        self.window, self.size, self.groups = window, size, groups

    def forward(self, x: Array, w: Array, b: Array | None) -> Array:
        self.save(x, w)
        return kernels.conv_transpose2d_forward(x, w, b, self.size, self.window, self.groups)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        x, w = self.saved
        db = kernels.backward_bias(dy) if self.needs[2] else None
        # An output padding of a stride or more makes room for windows that belong to no pixel of x: output pixels that
        # only they reach are cut away.
        window, part = self.window.first_outputs(self.size, x.shape[1:3])
        if part != self.size:
            dy = dy[:, : part[0], : part[1]]
        dx = kernels.conv_transpose2d_backward_data(dy, w, window, self.groups) if self.needs[0] else None
        dw = kernels.conv_transpose2d_backward_filter(x, dy, window, self.groups) if self.needs[1] else None
        return dx, dw, db

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        r, s, _, k = inputs[1].shape
        return 2 * inputs[0].size * r * s * k

    def backward_flops(self, forward: int) -> int:
        return forward * (self.needs[0] + self.needs[1])


def conv2d(
    input: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """2-D cross-correlation, as PyTorch's conv2d.

    input (N, H, W, C), weight (R, S, C/groups, K), bias (K,) -> (N, P, Q, K), P = floor((H + top + bottom - dilation (R
    - 1) - 1) / stride) + 1.
    input may be two Tensors (N, H, W, C1), (N, H, W, C2): the same as concat([a, b]), without the copy (groups 1 only).
    padding: an int, a pair, ((top, bottom), (left, right)), 'same' (stride 1) or 'valid'.
    float16, float32 or float64; float16 is multiplied and added up in float32, and rounded once.
    NaN or infinity in x comes out wherever PyTorch has NaN, as NaN or infinity. Where Winograd serves a 3x3 filter
    (stride 1, float32), every tile of 4x4 outputs (apart by the dilation) that reads it may be so throughout, and
    likewise gradients. Outputs of other tiles keep their bits.
    Raises ValueError when channels, groups or sizes do not fit, naming the numbers.
    """
    window, maps = checked_conv2d(input, weight, bias, stride, padding, dilation, groups)
    return Conv2d(window, groups)(weight, bias, *maps)


def conv2d_relu(
    input: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    residual: Tensor | None = None,
) -> Tensor:
    """relu(conv2d(...) + residual) in one pass, for inference; residual (N, P, Q, K) of the result's dtype.

    A 1x1 convolution without stride and padding takes up to 8 maps.

    Raises RuntimeError when a gradient would be recorded (the convolution's result is not kept). Raises ValueError or
    TypeError where conv2d raises it, and for a residual of another shape or dtype than the result's.
    """
    given = (weight, bias, residual, *(input if isinstance(input, (list, tuple)) else (input,)))
    if is_recording() and any(t is not None and t.requires_grad for t in given):
        raise RuntimeError("conv2d_relu: has no gradient; use relu(conv2d(...)), or call it within no_grad()")
    window, maps = checked_conv2d(
        input, weight, bias, stride, padding, dilation, groups, several=True, name="conv2d_relu"
    )
    n, h, w, _ = maps[0].shape
    out = (n, *window.output_size((h, w)), weight.shape[3])
    if residual is not None and residual.shape != out:
        raise ValueError(f"conv2d_relu: the residual has shape {residual.shape}, expected {out}")
    if residual is not None and residual.dtype != weight.dtype:
        raise TypeError(f"conv2d_relu: the residual is {residual.dtype} but the filter is {weight.dtype}")
    return Conv2dReLU(window, groups)(weight, bias, residual, *maps)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """Transposed convolution, as PyTorch's conv_transpose2d: the data gradient of a convolution, used forward.

    input (N, H, W, C), weight (R, S, C, K/groups), bias (K,) -> (N, P, Q, K),
    P = (H - 1) stride - top - bottom + dilation (R - 1) + 1 + output_padding.  output_padding must be below stride or
    dilation. Raises ValueError when channels, groups or sizes do not fit, naming the numbers.
    """
    window = checked_window("conv_transpose2d", input, weight, stride, padding, dilation)
    x, w = input.shape, weight.shape
    check_groups("conv_transpose2d", groups, x[3], w[3] * groups)
    if x[3] != w[2]:
        raise ValueError(f"conv_transpose2d: x has {x[3]} channels but the filter expects {w[2]} (x: {x}, w: {w})")
    check_bias("conv_transpose2d", bias, w[3] * groups, weight.dtype)
    size = window.checked_input_size("conv_transpose2d", (x[1], x[2]), output_padding)
    return ConvTranspose2d(window, size, groups)(input, weight, bias)
