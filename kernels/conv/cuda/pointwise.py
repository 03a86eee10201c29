"""Layers that cuBLAS computes: 1x1, one map, nothing fused into them."""

from __future__ import annotations

import cupy
import numpy as np

from kernels.core.cuda.capturable import is_capturable
from kernels.core.geometry import Window


def is_pointwise(window: Window) -> bool:
    """Whether a convolution is one matrix product (pixels, C) @ (C, K)."""
    return window.kernel == window.stride == (1, 1) and window.padding == ((0, 0), (0, 0))


def cublas_serves() -> bool:
    """Whether cuBLAS may compute: CuPy asks it for exact float32 (CUPY_TF32 or set_compute_type may request less), and
    no graph will capture the call. Else our own kernels serve.
    """
    if is_capturable():
        return False
    default, pedantic, single = 1, 2, 4  # cupy._core: COMPUTE_TYPE_DEFAULT, _PEDANTIC, _FP32
    return cupy._core.get_compute_type(np.dtype(np.float32)) in (default, pedantic, single)
