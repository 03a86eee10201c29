"""Shared builders: the network's shapes, and arrays to run on (on the device that AREOGRAD_DEVICE names, the CPU by
default).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from kernels.core.cpu import buffer_pool
from kernels.core.device import to_device

BATCH = 16
STAGES = ((64, 128, 32), (32, 64, 64), (16, 32, 128), (8, 16, 256))  # (H, W, C) at width 32


def array(*shape: int, seed: int = 0) -> np.ndarray:
    """float32 standard normal."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def device() -> str:
    """'cuda' or 'cpu': where the sides of a race compute."""
    return "cuda" if os.environ.get("AREOGRAD_DEVICE") == "cuda" else "cpu"


def ours(a: np.ndarray) -> Any:
    """The array where our side computes, in memory as operators find it: what they return lies in recycled buffers."""
    if device() != "cpu":
        return to_device(a, device())
    out = buffer_pool.empty(a.shape, a.dtype)
    out[...] = a
    return out


def torch_tensor(a: np.ndarray) -> Any:
    """The array as a PyTorch tensor where their side computes, in memory of PyTorch's own."""
    import torch

    return torch.from_numpy(a).clone().to(device())


def torch_image(x: np.ndarray, mode: str) -> Any:
    """(N, H, W, C) as PyTorch's (N, C, H, W), contiguous in mode 'nchw', NHWC in memory in mode 'channels_last'."""
    import torch

    t = torch_tensor(x).permute(0, 3, 1, 2)
    return t.contiguous(memory_format=torch.channels_last if mode == "channels_last" else torch.contiguous_format)


def torch_filter(w: np.ndarray, mode: str) -> Any:
    """(R, S, C, K) as PyTorch's (K, C, R, S)."""
    import torch

    t = torch_tensor(w).permute(3, 2, 0, 1)
    return t.contiguous(memory_format=torch.channels_last if mode == "channels_last" else torch.contiguous_format)


LAYOUTS = ("nchw", "channels_last")
