"""Max pooling, forward and backward."""

from kernels.core.dispatch import operator
from kernels.pool import reference

_FAST = {"cpu": "kernels.pool.cpu", "cuda": "kernels.pool.cuda"}

max_pool2d_forward = operator(reference.max_pool2d_forward, **_FAST)
max_pool2d_backward = operator(reference.max_pool2d_backward, **_FAST)
