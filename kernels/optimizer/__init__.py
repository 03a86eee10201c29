"""AdamW, SGD, clipping and moving average over flat vectors, and gradients gathered into one."""

from kernels.core.dispatch import operator
from kernels.optimizer import reference
from kernels.optimizer.layout import LINE

_STEP = f"p! (P); g (P); m! (P); v! (P); average?! (P); decay (-(-P // {LINE}))"
_SGD = f"p! (P); g (P); buffer?! (P); average?! (P); decay (-(-P // {LINE}))"
_GATHER = """parts*? (*_); out! (P); where len(parts) == len(offsets) == len(sizes);
    where all(part is None or part.size == size for part, size in zip(parts, sizes));
    where all(0 <= offset <= offset + size <= P for offset, size in zip(offsets, sizes))"""

squared_norm = operator(reference.squared_norm, "g (*S)", cpu="kernels.optimizer.cpu", cuda="kernels.optimizer.cuda")
adamw_step = operator(reference.adamw_step, _STEP, cpu="kernels.optimizer.cpu", cuda="kernels.optimizer.cuda")
sgd_step = operator(reference.sgd_step, _SGD, cpu="kernels.optimizer.cpu", cuda="kernels.optimizer.cuda")
clip_factor = operator(reference.clip_factor, "squared ()", cuda="kernels.optimizer.cuda")
gather = operator(reference.gather, _GATHER, cpu="kernels.optimizer.cpu", cuda="kernels.optimizer.cuda")
