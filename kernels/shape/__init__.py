"""Concatenation of channels, its undoing, and sums in place."""

from kernels.core.dispatch import operator
from kernels.shape import reference

_FAST = {"cpu": "kernels.shape.cpu", "cuda": "kernels.shape.cuda"}

concat_channels = operator(reference.concat_channels, **_FAST)
split_channels = operator(reference.split_channels, **_FAST)
accumulate = operator(reference.accumulate, **_FAST)
added = operator(reference.added, cpu="kernels.shape.cpu")
evaluate = operator(reference.evaluate)
duplicate = operator(reference.duplicate)
sum_to = operator(reference.sum_to)
