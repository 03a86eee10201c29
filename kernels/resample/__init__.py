"""Y = A X B^T: average, adaptive and strip pooling, bilinear and nearest resizing, forward and backward."""

from kernels.core.dispatch import operator
from kernels.resample import reference
from kernels.resample.reference import adaptive_matrix, average_matrix, bilinear_matrix, nearest_matrix

__all__ = [
    "adaptive_matrix",
    "average_matrix",
    "bilinear_matrix",
    "nearest_matrix",
    "resample2d_backward",
    "resample2d_forward",
]

_FAST = {"cpu": "kernels.resample.cpu", "cuda": "kernels.resample.cuda"}

resample2d_forward = operator(reference.resample2d_forward, "x (N, H, W, C); a (P, H); b (Q, W)", **_FAST)
resample2d_backward = operator(reference.resample2d_backward, "dy (N, P, Q, C); a (P, H); b (Q, W)", **_FAST)
