"""Convolution layers, and the convolution + batch norm + ReLU that everything else is built from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import is_
from typing import Any

import numpy as np

from autograd import Tensor, is_recording, ops
from autograd.modes import is_inference
from kernels.core.cpu.weight_cache import read_only
from kernels.core.device import Array
from kernels.core.geometry import pair
from kernels.core.held import current
from layers.initialisers import equal_taps, he_normal
from layers.module import Module, Parameter, changed
from layers.norm import BatchNorm2d

_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}


class Kept:
    """Tensors that a layer derives from its own for inference: kept within `inference()` while their contents are the
    same, else made at every call.
    """

    is_cache = True  # not a part of the network

    def __init__(self) -> None:
        self._made: tuple[Any, tuple[Tensor, ...]] = None, ()

    def __call__(
        self, sources: Sequence[Tensor], make: Callable[..., tuple[Any, ...]], *settings: Any
    ) -> tuple[Tensor, ...]:
        """The Tensors of make(*arrays of the sources, *settings). Kept ones are read-only, so kernels may keep their
        packed forms.
        """
        block = current() if is_inference() else None
        if block is None:
            return tuple(map(Tensor, make(*(t.data for t in sources), *settings)))
        entry = block.entries.get(id(self))
        now = [*settings, *(t.version for t in sources), *(t.data for t in sources)]
        if entry is None or len(now) != len(entry[1]) or not all(map(is_, now, entry[1])):
            key = settings, tuple([block.number(t.data, t.version) for t in sources])
            known, made = self._made
            if known != key:
                made = tuple(
                    [
                        Tensor(read_only(a) if isinstance(a, np.ndarray) else a)
                        for a in make(*(t.data for t in sources), *settings)
                    ]
                )
                self._made = key, made
            entry = block.entries[id(self)] = self, now, made
        return entry[2]


def _unchanging(weight: Tensor, bias: Tensor | None, kept: Kept) -> tuple[Tensor, Tensor | None]:
    """Copies of the filter and bias that cannot change within `inference()` (see Kept), else the Tensors themselves."""
    if not is_inference():
        return weight, bias
    made = kept([weight] if bias is None else [weight, bias], lambda *arrays: arrays)
    return made[0], None if bias is None else made[1]


class Conv2d(Module):
    """`ops.conv2d` with its filter (R, S, C/groups, K) and bias (K,): x (N, H, W, C), or two maps with C channels
    together -> (N, P, Q, K).

    Settings as torch.nn.Conv2d's; padding may be 'same' or 'valid', too. The filter starts He-normal, the bias 0.
    Raises ValueError unless groups divides both numbers of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        r, s = pair(kernel_size, "Conv2d: kernel_size")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"Conv2d: groups = {groups} must divide in_channels {in_channels} and out_channels {out_channels}"
            )
        shape = (r, s, in_channels // groups, out_channels)
        self.weight = Parameter(he_normal(shape, shape[0] * shape[1] * shape[2]))
        self.bias = Parameter(np.zeros(out_channels, np.float32), decay=False) if bias else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self._kept = Kept()

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        weight, bias = _unchanging(self.weight, self.bias, self._kept)
        return ops.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        r, s, c, k = self.weight.shape
        others = changed(self, **_DEFAULTS)
        return ", ".join(
            [
                f"{c * self.groups}, {k}, kernel_size={r if r == s else (r, s)}",
                *others,
                *(["bias=False"] if self.bias is None else []),
            ]
        )


class ConvTranspose2d(Module):
    """`ops.conv_transpose2d` with its filter (R, S, C, K/groups) and bias (K,): x (N, H, W, C) -> (N, P, Q, K).

    Settings as torch.nn.ConvTranspose2d's. Where the kernel equals the stride the taps start out equal
    (nearest-neighbour upsampling), so that no block texture is built in. Raises ValueError unless groups divides both
    numbers of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
    ) -> None:
        r, s = pair(kernel_size, "ConvTranspose2d: kernel_size")
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise ValueError(
                f"ConvTranspose2d: groups = {groups} must divide in_channels {in_channels} and out_channels "
                f"{out_channels}"
            )
        shape = (r, s, in_channels, out_channels // groups)
        even = (r, s) == pair(stride, "ConvTranspose2d: stride")
        self.weight = Parameter(equal_taps(shape) if even else he_normal(shape, in_channels // groups * r * s))
        self.bias = Parameter(np.zeros(out_channels, np.float32), decay=False) if bias else None
        self.stride = stride
        self.padding = padding
        self.output_padding = output_padding
        self.groups = groups
        self.dilation = dilation
        self._kept = Kept()

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _unchanging(self.weight, self.bias, self._kept)
        return ops.conv_transpose2d(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )

    def extra_repr(self) -> str:
        r, s, c, k = self.weight.shape
        others = changed(self, **_DEFAULTS, output_padding=0)
        return ", ".join(
            [
                f"{c}, {k * self.groups}, kernel_size={r if r == s else (r, s)}",
                *others,
                *(["bias=False"] if self.bias is None else []),
            ]
        )


class ConvNorm(Module):
    """act(BN(conv(x)) + residual), stride 1, "same" padding, no convolution bias; act is ReLU or nothing. x may be
    several maps, as if concatenated.

    zero_gain: the norm's gain starts at 0, so that a residual branch starts out silent.  (Goyal et al., arXiv
        1706.02677)
    The norm's own mode decides whether the batch's statistics are used: `block.norm.eval()` freezes them in a network
    that trains.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        dilation: Any = 1,
        activation: str | None = "relu",
        zero_gain: bool = False,
        groups: int = 1,
    ) -> None:
        self.conv = Conv2d(in_channels, out_channels, kernel_size, 1, "same", dilation, groups, bias=False)
        self.norm = BatchNorm2d(out_channels, activation=activation, zero_gain=zero_gain)
        self._folded = Kept()

    def forward(self, x: Tensor | Sequence[Tensor], residual: Tensor | None = None) -> Tensor:
        conv = self.conv
        norm = self.norm
        if conv.bias is not None:
            return norm(conv(x if isinstance(x, Tensor) or len(x) <= 2 else ops.concat(x)), residual)
        if (
            isinstance(x, (list, tuple))
            and len(x) > 2
            and not norm.training
            and (is_recording() or norm.activation != "relu")
        ):
            x = ops.concat(x)
        if norm.training:
            vectors = norm.weight, norm.bias, norm.running_mean, norm.running_var
            window = conv.stride, conv.padding, conv.dilation, conv.groups
            return ops.conv2d_batch_norm(
                x, conv.weight, *vectors, norm.momentum, norm.eps, residual, norm.activation, *window
            )
        if is_recording():
            return norm(conv(x), residual)
        sources = conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var
        weight, bias = self._folded(sources, self._fold, norm.eps)
        window = conv.stride, conv.padding, conv.dilation, conv.groups
        if norm.activation == "relu":
            return ops.conv2d_relu(x, weight, bias, *window, residual)
        y = ops.conv2d(x, weight, bias, *window)
        return y if residual is None else y + residual

    def _fold(
        self, weight: Array, gain: Array, bias: Array, mean: Array, var: Array, eps: float
    ) -> tuple[Array, Array]:
        """The filter and bias that convolve and normalise with the running statistics at once: w s and b - mean s, s =
        gain / sqrt(var + eps).
        """
        scale = gain * (var + eps) ** -0.5
        return weight * scale, bias - mean * scale
