"""Layers that cuBLAS computes: 1x1, one map, nothing fused into them."""

from __future__ import annotations

import cupy
import numpy as np

from kernels.core.geometry import Window


def is_pointwise(window: Window) -> bool:
    """Whether a convolution is one matrix product (pixels, C) @ (C, K)."""
    return window.kernel == window.stride == (1, 1) and window.padding == ((0, 0), (0, 0))


def exact_products() -> bool:
    """Whether CuPy asks cuBLAS for exact float32 (CUPY_TF32 or set_compute_type may request less; our own kernels serve
    then).
    """
    default, pedantic, single = 1, 2, 4  # cupy._core: COMPUTE_TYPE_DEFAULT, _PEDANTIC, _FP32
    return cupy._core.get_compute_type(np.dtype(np.float32)) in (default, pedantic, single)
