"""AdamW, clipping and moving average over flat vectors."""

from kernels.core.dispatch import operator
from kernels.optimizer import reference

squared_norm = operator(reference.squared_norm)
adamw_step = operator(reference.adamw_step)
