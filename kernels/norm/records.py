"""What a batch norm takes and keeps, as records that a convolution fused with it hands on."""

from __future__ import annotations

from typing import NamedTuple

from kernels.core.device import Array


class BatchNorm(NamedTuple):
    """A batch norm in training: its affine parameters, and how the running statistics move."""

    weight: Array  # (K,)
    bias: Array  # (K,)
    running_mean: Array  # (K,), written to
    running_var: Array  # (K,), written to
    momentum: float
    eps: float


class SavedBatchNorm(NamedTuple):
    """What the backward pass needs of a batch norm and the activation after it."""

    mask: Array | None  # of the activation, as batch_norm_forward returned it
    weight: Array  # (K,)
    bias: Array  # (K,)
    mean: Array  # (K,)
    inverse: Array  # (K,), 1 / sqrt(variance + eps)
    activation: str | None  # "relu" or None
