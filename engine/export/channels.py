"""Our arrays channels first, as PyTorch and ONNX want them, and back. Names are the same on both sides, and so are most
shapes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from layers import Conv2d, ConvTranspose2d, Module, MultiHeadSelfAttention

# The arrays whose axes have another order there: theirs[k] is ours[axes[k]].
AXES: dict[tuple[type[Module], str], tuple[int, ...]] = {
    (Conv2d, "weight"): (3, 2, 0, 1),  # (R, S, C / groups, K) -> (K, C / groups, R, S)
    (ConvTranspose2d, "weight"): (2, 3, 0, 1),  # (R, S, C, K / groups) -> (C, K / groups, R, S)
    (MultiHeadSelfAttention, "positions"): (0, 3, 1, 2),  # (1, H, W, C) -> (1, C, H, W)
}


def channels_first(net: Module) -> dict[str, np.ndarray]:
    """The network's parameters and buffers by dotted name, in PyTorch's and ONNX's shapes."""
    axes = _axes(net)
    return {
        name: np.ascontiguousarray(array.transpose(axes[name])) if name in axes else array
        for name, array in net.state_dict().items()
    }


def channels_last(net: Module, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same arrays in our shapes. Arrays with the wrong number of axes stay as they are: `load_state_dict` says what
    does not fit.
    """
    axes = {name: order for name, order in _axes(net).items() if name in state and state[name].ndim == len(order)}
    return {
        name: np.ascontiguousarray(array.transpose(np.argsort(axes[name]))) if name in axes else array
        for name, array in state.items()
    }


def _axes(net: Module) -> dict[str, tuple[int, ...]]:
    """The order of the axes by dotted name, where it is another."""
    found = {}
    for path, module in net.named_modules():
        for (kind, name), axes in AXES.items():
            if isinstance(module, kind):
                found[f"{path}.{name}" if path else name] = axes
    return found
