"""Max pooling, NHWC. Average pooling (avg_pool2d, adaptive_avg_pool2d, strip_pool2d) is resampling: resample.py."""

from __future__ import annotations

from typing import Any

from autograd.checks import pooling_window
from autograd.function import Function
from autograd.tensor import Tensor
from kernels import pool as kernels
from kernels.core.device import Array
from kernels.core.geometry import Window

__all__ = ["max_pool2d"]


class MaxPool2d(Function):
    """y = max over the window;  dx = dy where the maximum was (the first one in scan order; of NaN the last). Saves one
    byte per output.
    """

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Array) -> Array:
        y, offset = kernels.max_pool2d_forward(x, self.window, self.needs[0])
        self.size = x.shape[1:3]
        self.save(offset)
        return y

    def backward(self, dy: Array) -> Array:
        return kernels.max_pool2d_backward(dy, *self.saved, self.size, self.window, self.accumulators[0])

    def flops(self, inputs: tuple[Array, ...], outputs: tuple[Array, ...]) -> int:
        return outputs[0].size * self.window.kernel[0] * self.window.kernel[1]


def max_pool2d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Tensor:
    """Maximum over windows, as PyTorch's max_pool2d: input (N, H, W, C) -> (N, P, Q, C), P = floor((H + top + bottom -
    dilation (kernel_size - 1) - 1) / stride) + 1.

    kernel_size, stride, padding, dilation: an int, or a pair for rows and columns. stride defaults to kernel_size.
    ceil_mode: P is rounded up.
    Padding counts as -inf. The first maximum in scan order, or the last NaN, gets the gradient. Raises ValueError for
    padding above half the dilated kernel.
    """
    if input.dtype.kind not in "fiu":
        raise TypeError(f"max_pool2d: x is {input.dtype}, expected floats or integers")
    window, _ = pooling_window("max_pool2d", input, kernel_size, stride, padding, dilation, ceil_mode)
    return MaxPool2d(window)(input)
