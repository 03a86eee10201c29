"""Max pooling, forward and backward."""

from kernels.core.dispatch import operator
from kernels.pool import reference

max_pool2d_forward = operator(reference.max_pool2d_forward, cpu="kernels.pool.cpu")
max_pool2d_backward = operator(reference.max_pool2d_backward, cpu="kernels.pool.cpu")
