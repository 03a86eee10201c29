"""Poolings along strips of the image: long thin context for long thin structures."""

from __future__ import annotations

from collections.abc import Sequence

from autograd import Tensor, ops
from autograd.operands import as_tensor
from layers.conv import Conv2d, ConvNorm
from layers.module import Module


class StripPyramidPooling(Module):
    """Strips at several scales: x (N, H, W, C) -> (N, H, W, out_channels), y = CBR1x1(concat(x, all strips)).

    For each k in scales: means over k bands of rows (k x W) and over k bands of columns (H x k), a convolution each to
    C / 4 channels (or branch_channels), resized back (bilinear).
    out_channels: by default C. strip_kernel: 1, or 3 for a convolution along the strip. bins: extra k x k averages, as
    in pyramid pooling. Raises ValueError for an even strip_kernel.
    Source: after strip pooling, arXiv 2003.13328, and pyramid pooling, arXiv 1612.01105.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        scales: Sequence[int] = (1, 2, 4),
        strip_kernel: int = 1,
        bins: Sequence[int] = (),
        branch_channels: int | None = None,
    ) -> None:
        if strip_kernel % 2 == 0:
            raise ValueError(f"StripPyramidPooling: strip_kernel is {strip_kernel}, expected an odd number")
        branch = max(1, channels // 4) if branch_channels is None else branch_channels
        self.scales, self.bins = tuple(scales), tuple(bins)
        self.rows = [ConvNorm(channels, branch, (1, strip_kernel)) for _ in scales]
        self.columns = [ConvNorm(channels, branch, (strip_kernel, 1)) for _ in scales]
        self.squares = [ConvNorm(channels, branch, 1) for _ in bins]
        width = channels + branch * (2 * len(self.scales) + len(self.bins))
        self.fuse = ConvNorm(width, channels if out_channels is None else out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = as_tensor("StripPyramidPooling: x", x)
        size = x.shape[1:3]
        parts = [x]
        for k, rows, columns in zip(self.scales, self.rows, self.columns, strict=True):
            parts.append(ops.resize_bilinear(rows(ops.strip_pool2d(x, k, 1)), size))
            parts.append(ops.resize_bilinear(columns(ops.strip_pool2d(x, k, 2)), size))
        for k, square in zip(self.bins, self.squares, strict=True):
            parts.append(ops.resize_bilinear(square(ops.adaptive_avg_pool2d(x, k)), size))
        return self.fuse(parts if len(parts) <= 8 else ops.concat(parts))


class StripPooling(Module):
    """A gate from row and column means: y = x sigmoid(1x1(relu(BN(3x1(mean_W x)) + BN(1x3(mean_H x))))).

    x (N, H, W, C) -> (N, H, W, C).  Source: Hou et al., arXiv 2003.13328, the strip pooling module.
    """

    def __init__(self, channels: int) -> None:
        self.rows = ConvNorm(channels, channels, (3, 1), activation=None)
        self.columns = ConvNorm(channels, channels, (1, 3), activation=None)
        self.gate = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        along_h = self.rows(ops.strip_pool2d(x, 1, 2))  # (N, H, 1, C)
        along_w = self.columns(ops.strip_pool2d(x, 1, 1))  # (N, 1, W, C)
        return ops.gate(x, self.gate(ops.relu(along_h + along_w)))


class MixedPooling(Module):
    """Short and long range in parallel: y = relu(x + BN(1x1(concat(short, long)))), x (N, H, W, C) -> (N, H, W, C).

        short = CBR3x3(relu(BN(3x3(u)) + sum of up(BN(3x3(means of u over a grid)))))
        long = CBR3x3(relu(BN(1x3(mean_H v)) + BN(3x1(mean_W v))))

    u and v are CBR1x1 of x with C / 4 channels each, up is bilinear. bins: the grids, by default 4 x 8 and 2 x 4 for an
    8 x 16 map.
    Source: Hou et al., arXiv 2003.13328, the mixed pooling module.
    """

    def __init__(self, channels: int, bins: Sequence[tuple[int, int]] = ((4, 8), (2, 4))) -> None:
        inner = max(1, channels // 4)
        self.bins = tuple(bins)
        self.short_in = ConvNorm(channels, inner, 1)
        self.long_in = ConvNorm(channels, inner, 1)
        self.local = ConvNorm(inner, inner, 3, activation=None)
        self.squares = [ConvNorm(inner, inner, 3, activation=None) for _ in self.bins]
        self.columns = ConvNorm(inner, inner, (1, 3), activation=None)
        self.rows = ConvNorm(inner, inner, (3, 1), activation=None)
        self.short_out = ConvNorm(inner, inner, 3)
        self.long_out = ConvNorm(inner, inner, 3)
        self.fuse = ConvNorm(2 * inner, channels, 1, zero_gain=True)

    def forward(self, x: Tensor) -> Tensor:
        x = as_tensor("MixedPooling: x", x)
        size = x.shape[1:3]
        near = self.short_in(x)
        far = self.long_in(x)
        total = self.local(near)
        for bins, square in zip(self.bins, self.squares, strict=True):
            total = total + ops.resize_bilinear(square(ops.adaptive_avg_pool2d(near, bins)), size)
        strips = self.columns(ops.strip_pool2d(far, 1, 1)) + self.rows(ops.strip_pool2d(far, 1, 2))
        both = ops.concat([self.short_out(ops.relu(total)), self.long_out(ops.relu(strips))])
        return self.fuse(both, x)
