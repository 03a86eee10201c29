"""Max pooling as a module."""

from __future__ import annotations

from typing import Any

from autograd import Tensor, ops
from layers.module import Module


class MaxPool2d(Module):
    """ops.max_pool2d; stride defaults to the kernel size."""

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False) -> None:
        self.settings = (kernel_size, stride, padding, dilation, ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool2d(x, *self.settings)
