"""AdamW, SGD, clipping and moving average over flat vectors, and gradients gathered into one."""

from kernels.core.dispatch import operator
from kernels.optimizer import reference

LINE = reference.LINE

squared_norm = operator(reference.squared_norm, cpu="kernels.optimizer.cpu", cuda="kernels.optimizer.cuda")
adamw_step = operator(reference.adamw_step, cpu="kernels.optimizer.cpu", cuda="kernels.optimizer.cuda")
sgd_step = operator(reference.sgd_step, cpu="kernels.optimizer.cpu", cuda="kernels.optimizer.cuda")
clip_factor = operator(reference.clip_factor, cuda="kernels.optimizer.cuda")
gather = operator(reference.gather, cpu="kernels.optimizer.cpu", cuda="kernels.optimizer.cuda")
