"""AdamW, clipping and moving average over flat vectors."""

from kernels.core.dispatch import operator
from kernels.optimizer import reference

squared_norm = operator(reference.squared_norm, cpu="kernels.optimizer.cpu")
adamw_step = operator(reference.adamw_step, cpu="kernels.optimizer.cpu")
