"""Max pooling, forward and backward. Average pooling is resampling by two matrices: kernels/resample."""

from kernels.core.dispatch import operator
from kernels.pool import reference

_BACKWARD = """dy (N, P, Q, C); offset int (N, P, Q, C); accumulate_into?! (N, *size, C);
    where window.output_size(size) == (P, Q)"""
_FAST = {"cpu": "kernels.pool.cpu", "cuda": "kernels.pool.cuda"}

max_pool2d_forward = operator(
    reference.max_pool2d_forward, "x any (N, H, W, C); where min(window.output_size((H, W))) > 0", **_FAST
)
max_pool2d_backward = operator(reference.max_pool2d_backward, _BACKWARD, **_FAST)
