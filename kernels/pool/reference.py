"""Max pooling. (Average, adaptive and strip pooling are linear: see kernels/resample.)"""

from __future__ import annotations

from kernels.conv.reference import patches, unpatch
from kernels.core.device import Array, array_module
from kernels.core.geometry import Pair, Window


def max_pool2d_forward(x: Array, window: Window, places: bool = True) -> tuple[Array, Array | None]:
    """y[n,p,q,c] = max over the window; outside x counts as -inf.  x (N, H, W, C) -> y (N, P, Q, C), offset (N, P, Q, C).

    `offset` is r * S + s of the first maximum in scan order (PyTorch's rule for ties), uint8 for windows of up to 256 taps.
    Without `places` it may be None: nobody is going to ask where the maximum was.
    """
    xp = array_module(x)
    lowest = -xp.inf if x.dtype.kind == "f" else xp.iinfo(x.dtype).min
    cols = patches(x, window, lowest)
    n, p, q, r, s, c = cols.shape
    cols = cols.reshape(n, p, q, r * s, c)
    offset = cols.argmax(3)
    y = xp.take_along_axis(cols, offset[:, :, :, None], 3)[:, :, :, 0]
    return y, offset.astype(xp.uint8 if r * s <= 256 else xp.int32)


def max_pool2d_backward(dy: Array, offset: Array, size: Pair, window: Window, into: Array | None = None) -> Array:
    """dx[n,h,w,c] = sum of dy over the windows whose maximum is (h, w): dy (N, P, Q, C), size (H, W) -> (N, H, W, C).

    With `into`, the result is added to it and returned.
    """
    xp = array_module(dy)
    r, s = window.kernel
    taps = xp.arange(r * s).reshape(r, s, 1)
    zero = xp.zeros((), dy.dtype)  # a typed zero: where() must not widen float32
    chosen = xp.where(offset[:, :, :, None, None] == taps, dy[:, :, :, None, None], zero)  # (N, P, Q, R, S, C)
    dx = unpatch(chosen, size, window)
    if into is None:
        return dx
    into += dx
    return into
