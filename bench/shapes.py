"""Shared builders: the network's shapes, and arrays to run on (on the device that AREOGRAD_DEVICE names, the CPU by
default).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from kernels.core.cpu import buffer_pool
from kernels.core.device import to_device

BATCH = 16
STAGES = ((64, 128, 32), (32, 64, 64), (16, 32, 128), (8, 16, 256))  # (H, W, C) at width 32
REDUCED = 1  # by how much every side is smaller than in a race


def reduce(factor: int = 8) -> None:
    """Make every shape smaller, for a rehearsal on the emulator: batches of 1, sides divided by `factor`, channels as
    they are, so that the same kernels run. Call it before a family of cases is imported.
    """
    global BATCH, STAGES, REDUCED
    BATCH, REDUCED = 1, factor
    STAGES = tuple((max(2, h // factor), max(2, w // factor), c) for h, w, c in STAGES)  # type: ignore[assignment]


def array(*shape: int, seed: int = 0) -> np.ndarray:
    """float32 standard normal."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def device() -> str:
    """'cuda' or 'cpu': where the sides of a race compute."""
    return "cuda" if os.environ.get("AREOGRAD_DEVICE") == "cuda" else "cpu"


def torch_device() -> str:
    """Where PyTorch's side computes: in a rehearsal without a GPU on the CPU, else as `device`."""
    return "cpu" if REDUCED > 1 else device()


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

    return torch.from_numpy(a).clone().to(torch_device())


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


@contextmanager
def torch_precision(precision: str) -> Iterator[None]:
    """PyTorch's products in one of our precisions on CUDA: exact float32, TF32, or 16 bits by autocast, cuDNN's
    algorithms chosen by timing.
    """
    import torch

    cudnn = torch.backends.cudnn
    cudnn.benchmark = True
    cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    narrow = {"bf16": torch.bfloat16, "float16": torch.float16}.get(precision)
    with nullcontext() if narrow is None else torch.autocast(torch_device(), narrow):
        yield


LAYOUTS = ("nchw", "channels_last")
