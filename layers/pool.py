"""Pooling as modules."""

from __future__ import annotations

from typing import Any

from autograd import Tensor, ops
from layers.module import Module


class MaxPool2d(Module):
    """Maxima over windows: `ops.max_pool2d` with these settings, x (N, H, W, C) -> (N, P, Q, C); stride defaults to the
    kernel size.
    """

    def __init__(
        self, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> None:
        self.settings = (kernel_size, stride, padding, dilation, ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        return ops.max_pool2d(x, *self.settings)

    def extra_repr(self) -> str:
        return _shown(
            ("kernel_size", None),
            ("stride", None),
            ("padding", 0),
            ("dilation", 1),
            ("ceil_mode", False),
            values=self.settings,
        )


class AvgPool2d(Module):
    """Means over windows: `ops.avg_pool2d` with these settings, x (N, H, W, C) -> (N, P, Q, C); stride defaults to the
    kernel size.
    """

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        self.settings = (kernel_size, stride, padding, ceil_mode, count_include_pad)

    def forward(self, x: Tensor) -> Tensor:
        return ops.avg_pool2d(x, *self.settings)

    def extra_repr(self) -> str:
        names = (
            ("kernel_size", None),
            ("stride", None),
            ("padding", 0),
            ("ceil_mode", False),
            ("count_include_pad", True),
        )
        return _shown(*names, values=self.settings)


class AdaptiveAvgPool2d(Module):
    """Means over a grid of bins: `ops.adaptive_avg_pool2d`, x (N, H, W, C) -> (N, H', W', C).

    output_size: a number for both, or (H', W'), where None keeps an axis.
    """

    def __init__(self, output_size: Any) -> None:
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return ops.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"{self.output_size}"


def _shown(*defaults: tuple[str, Any], values: tuple[Any, ...]) -> str:
    """The first setting, and those that differ from their defaults."""
    named = zip(defaults, values, strict=True)
    return ", ".join(
        str(value) if k == 0 else f"{name}={value}"
        for k, ((name, default), value) in enumerate(named)
        if k == 0 or value != default
    )
