"""Convolution and transposed convolution, defined as "patches times filter".

Everything follows from one linear map and its transpose: `patches` reads the input under every position of the window,
`unpatch` adds such values back. With X = patches(x) as a matrix,

    conv2d:            y  = X w          dx = unpatch(dy w^T)     dw = X^T dy
    conv_transpose2d:  y  = unpatch(x w^T)    and its gradients are the two others with the roles of x and dy swapped.

Shapes: x (N, H, W, C), filter (R, S, C/groups, K), y (N, P, Q, K). FLOPs of each of the three: 2 N P Q K R S C /
groups. The input is a tuple of maps that count as if concatenated along their channels (a skip connection needs no
copy then); for more than one, groups must be 1. float16 is computed and added up in float32,
and rounded once.
"""

from __future__ import annotations

from kernels.core.device import Array, array_module
from kernels.core.geometry import Pair, Window
from kernels.core.reduction import halves_in_float32, sum_pixels, wide_type
from kernels.norm.records import BatchNorm, SavedBatchNorm
from kernels.norm.reference import (
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inverse,
    batch_norm_running,
    batch_norm_statistics,
)
from kernels.shape.reference import accumulate, concat_channels, split_channels


def whole(maps: tuple[Array, ...]) -> Array:
    """The maps concatenated to one; a single one is not copied."""
    return maps[0] if len(maps) == 1 else concat_channels(maps)


def pad_pixels(x: Array, padding: tuple[Pair, Pair], value: float = 0.0) -> Array:
    """Pad H and W: x (N, H, W, C) -> (N, top + H + bottom, left + W + right, C)."""
    if padding == ((0, 0), (0, 0)):
        return x
    return array_module(x).pad(x, ((0, 0), *padding, (0, 0)), constant_values=value)


def patches(x: Array, window: Window, value: float = 0.0) -> Array:
    """The input under every position of the window: x (N, H, W, C) -> (N, P, Q, R, S, C), a view of the padded input;
    do not write to it.
    """
    xp = array_module(x)
    p, q = window.output_size(x.shape[1:3])
    x = pad_pixels(x, window.padding, value)
    n, h, w, c = x.strides
    sh, sw = window.stride
    dh, dw = window.dilation
    shape = (x.shape[0], p, q, *window.kernel, x.shape[3])
    return xp.lib.stride_tricks.as_strided(x, shape, (n, h * sh, w * sw, h * dh, w * dw, c))


def unpatch(cols: Array, size: Pair, window: Window) -> Array:
    """The transpose of `patches`: cols (N, P, Q, R, S, C) -> (N, H, W, C), each value added to the place that it was
    read from.

    One strided addition per filter tap; a tap's positions never collide, so nothing is scattered.
    """
    xp = array_module(cols)
    n, p, q, r, s, c = cols.shape
    (top, bottom), (left, right) = window.padding
    sh, sw = window.stride
    dh, dw = window.dilation
    x = xp.zeros((n, size[0] + top + bottom, size[1] + left + right, c), wide_type(cols.dtype))
    for i in range(r):
        for j in range(s):
            x[:, i * dh : i * dh + (p - 1) * sh + 1 : sh, j * dw : j * dw + (q - 1) * sw + 1 : sw] += cols[
                :, :, :, i, j
            ]
    return x[:, top : top + size[0], left : left + size[1]].astype(cols.dtype, copy=False)


def grouped_rows(cols: Array, groups: int) -> Array:
    """(N, P, Q, R, S, C) -> (G, N*P*Q, R*S*C/G): one matrix of patches per group."""
    n, p, q, r, s, c = cols.shape
    return (
        cols.reshape(n * p * q, r * s, groups, c // groups)
        .transpose(2, 0, 1, 3)
        .reshape(groups, n * p * q, r * s * (c // groups))
    )


def grouped_filter(w: Array, groups: int) -> Array:
    """(R, S, C/G, K) -> (G, R*S*C/G, K/G)."""
    r, s, c, k = w.shape
    return w.reshape(r * s * c, groups, k // groups).transpose(1, 0, 2)


def grouped_pixels(y: Array, groups: int) -> Array:
    """(N, P, Q, K) -> (G, N*P*Q, K/G)."""
    n, p, q, k = y.shape
    return y.reshape(n * p * q, groups, k // groups).transpose(1, 0, 2)


@halves_in_float32
def conv2d_forward(
    maps: tuple[Array, ...],
    w: Array,
    b: Array | None,
    window: Window,
    groups: int = 1,
    relu: bool = False,
    residual: Array | None = None,
) -> Array:
    """With x = concat(maps):
    y[n,p,q,k] = b[k] + sum_{r,s,c} x[n, p sh - top + r dh, q sw - left + s dw, c] w[r,s,c,k]; zero outside x.

    residual (N, P, Q, K): y + residual.   relu: max(y, 0), of that sum.
    """
    x = whole(maps)
    n, k = x.shape[0], w.shape[3]
    p, q = window.output_size(x.shape[1:3])
    # (G, N*P*Q, R*S*C/G) @ (G, R*S*C/G, K/G) -> (G, N*P*Q, K/G) -> (N, P, Q, K)
    y = grouped_rows(patches(x, window), groups) @ grouped_filter(w, groups)
    y = y.transpose(1, 0, 2).reshape(n, p, q, k)
    y = y if b is None else y + b
    y = y if residual is None else y + residual
    return y.clip(0, None) if relu else y


def conv2d_norm_forward(
    maps: tuple[Array, ...],
    w: Array,
    norm: BatchNorm,
    residual: Array | None,
    activation: str | None,
    window: Window,
    groups: int = 1,
) -> tuple[Array, Array, Array | None, Array, Array]:
    """(y, z, mask, mean, inverse): y = act(batch_norm(z = conv2d(maps, w)) + residual) in training, and what its
    backward needs.

    mean and inverse: of z, as batch_norm_forward takes them; the running statistics move towards them in place.
    mask: as batch_norm_forward gives it.
    """
    z = conv2d_forward(maps, w, None, window, groups)
    mean, variance = batch_norm_statistics(z)
    batch_norm_running(norm.running_mean, norm.running_var, mean, variance, z.size // z.shape[3], norm.momentum)
    inverse = batch_norm_inverse(variance, norm.eps)
    y, mask = batch_norm_forward(z, norm.weight, norm.bias, mean, inverse, residual, activation)
    return y, z, mask, mean, inverse


def backward_bias(dy: Array) -> Array:
    """db = sum of dy (..., K) over all pixels: (K,) of dy's dtype."""
    return sum_pixels(dy).astype(dy.dtype)


def conv2d_backward_data(
    dy: Array,
    w: Array,
    size: Pair,
    window: Window,
    groups: int = 1,
    parts: tuple[int, ...] | None = None,
    accumulate_into: tuple[Array | None, ...] = (None,),
) -> tuple[Array, ...]:
    """dx = unpatch(dy w^T): dy (N, P, Q, K), filter (R, S, C/G, K), size (H, W) -> a tuple of (N, H, W, C), one per
    part of the channels.

    parts: the channels of x's maps, by default one map. accumulate_into: per part an array to which its dx is added
    (and which is returned), or None.
    """
    n, p, q, _ = dy.shape
    r, s, c, _ = w.shape
    # not `accumulate_into`, which is added to
    dtype = dy.dtype
    dy, w = (a.astype(wide_type(a.dtype), copy=False) for a in (dy, w))
    # (G, N*P*Q, K/G) @ (G, K/G, R*S*C/G) -> (G, N*P*Q, R*S*C/G) -> (N, P, Q, R, S, C)
    cols = grouped_pixels(dy, groups) @ grouped_filter(w, groups).transpose(0, 2, 1)
    cols = cols.reshape(groups, n, p, q, r, s, c).transpose(1, 2, 3, 4, 5, 0, 6).reshape(n, p, q, r, s, groups * c)
    dxs = split_channels(unpatch(cols, size, window).astype(dtype, copy=False), parts or (groups * c,))
    for dx, total in zip(dxs, accumulate_into, strict=True):
        if total is not None:
            accumulate(total, dx)
    return tuple(dx if total is None else total for dx, total in zip(dxs, accumulate_into, strict=True))


@halves_in_float32
def conv2d_backward_filter(maps: tuple[Array, ...], dy: Array, window: Window, groups: int = 1) -> Array:
    """With x = concat(maps):
    dw[r,s,c,k] = sum_{n,p,q} x[n, p sh - top + r dh, q sw - left + s dw, c] dy[n,p,q,k] -> (R, S, C/G, K)."""
    x = whole(maps)
    c, k = x.shape[3], dy.shape[3]
    # (G, R*S*C/G, N*P*Q) @ (G, N*P*Q, K/G) -> (G, R*S*C/G, K/G) -> (R, S, C/G, K)
    dw = grouped_rows(patches(x, window), groups).transpose(0, 2, 1) @ grouped_pixels(dy, groups)
    return dw.transpose(1, 0, 2).reshape(*window.kernel, c // groups, k)


def conv2d_norm_backward(
    dy: Array,
    maps: tuple[Array, ...],
    w: Array,
    z: Array,
    norm: SavedBatchNorm,
    with_residual: bool,
    window: Window,
    groups: int = 1,
    accumulate_into: tuple[Array | None, ...] | None = (None,),
    donated: bool = False,
) -> tuple[Array, Array, Array, Array | None, tuple[Array | None, ...]]:
    """(dw, dweight, dbias, dresidual, dxs) of act(batch_norm(z = conv2d(maps, w)) + residual) in training: dz, then
    the convolution's gradients.

    accumulate_into: as conv2d_backward_data's, or None: no dx
    is wanted. donated: dy may be written to.
    """
    dz, dweight, dbias, dresidual = batch_norm_backward(dy, z, norm, True, with_residual, donated)
    dw = conv2d_backward_filter(maps, dz, window, groups)
    dxs: tuple[Array | None, ...] = (None,) * len(maps)
    if accumulate_into is not None:
        dxs = conv2d_backward_data(
            dz, w, maps[0].shape[1:3], window, groups, tuple(m.shape[3] for m in maps), accumulate_into
        )
    return dw, dweight, dbias, dresidual, dxs


@halves_in_float32
def conv_transpose2d_forward(x: Array, w: Array, b: Array | None, size: Pair, window: Window, groups: int = 1) -> Array:
    """y = unpatch(x w^T) + b: x (N, P, Q, C), filter (R, S, C, K/groups), size (H, W) -> (N, H, W, K)."""
    (y,) = conv2d_backward_data(x, w.swapaxes(2, 3), size, window, groups)
    return y if b is None else y + b


def conv_transpose2d_backward_data(dy: Array, w: Array, window: Window, groups: int = 1) -> Array:
    """dx = patches(dy) w: the convolution of dy (N, H, W, K) -> (N, P, Q, C)."""
    return conv2d_forward((dy,), w.swapaxes(2, 3), None, window, groups)


def conv_transpose2d_backward_filter(x: Array, dy: Array, window: Window, groups: int = 1) -> Array:
    """dw[r,s,c,k] = sum_{n,p,q} x[n,p,q,c] dy[n, p sh - top + r dh, ..., k] -> (R, S, C, K/groups)."""
    return conv2d_backward_filter((dy,), x, window, groups).swapaxes(2, 3)
