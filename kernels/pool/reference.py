"""Max pooling. (Average, adaptive and strip pooling are linear: see kernels/resample.)"""

from __future__ import annotations

from kernels.conv.reference import patches, unpatch
from kernels.core.device import Array, array_module
from kernels.core.geometry import Pair, Window


def max_pool2d_forward(x: Array, window: Window, places: bool = True) -> tuple[Array, Array | None]:
    """y[n,p,q,c] = max over the window; outside x counts as -inf.  x (N, H, W, C) -> y (N, P, Q, C), offset (N, P, Q,
    C).

    `offset` is r * S + s of the first maximum in scan order that lies inside x, or of the last NaN (PyTorch's rules),
    uint8 for windows of up to 256 taps.
    Without `places` it may be None: nobody needs the positions.
    """
    xp = array_module(x)
    lowest = -xp.inf if x.dtype.kind == "f" else xp.iinfo(x.dtype).min
    cols = patches(x, window, lowest)
    n, p, q, r, s, c = cols.shape
    cols = cols.reshape(n, p, q, r * s, c)
    inside = patches(xp.ones((1, *x.shape[1:3], 1), bool), window, False).reshape(1, p, q, r * s, 1)
    rank = xp.where(cols == cols, (cols == cols.max(3, keepdims=True)) & inside, 1 + xp.arange(1, r * s + 1)[:, None])
    offset = rank.argmax(3)
    y = xp.take_along_axis(cols, offset[:, :, :, None], 3)[:, :, :, 0]
    return y, offset.astype(xp.uint8 if r * s <= 256 else xp.int32)


def max_pool2d_backward(
    dy: Array, offset: Array, size: Pair, window: Window, accumulate_into: Array | None = None
) -> Array:
    """dx[n,h,w,c] = sum of dy over the windows whose maximum is (h, w): dy (N, P, Q, C), size (H, W) -> (N, H, W, C).

    With `accumulate_into`, the result is added to it and returned.
    """
    xp = array_module(dy)
    r, s = window.kernel
    taps = xp.arange(r * s).reshape(r, s, 1)
    zero = xp.zeros((), dy.dtype)  # a typed zero: where() must not widen float32
    chosen = xp.where(offset[:, :, :, None, None] == taps, dy[:, :, :, None, None], zero)  # (N, P, Q, R, S, C)
    dx = unpatch(chosen, size, window)
    if accumulate_into is None:
        return dx
    accumulate_into += dx
    return accumulate_into
