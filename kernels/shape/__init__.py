"""Concatenation of channels, its inverse, and sums in place."""

from kernels.core.dispatch import operator
from kernels.shape import reference

_FAST = {"cpu": "kernels.shape.cpu", "cuda": "kernels.shape.cuda"}

concat_channels = operator(reference.concat_channels, "xs* any (*S, _)", **_FAST)
split_channels = operator(reference.split_channels, "dy any (*S, C); where sum(sizes) == C", **_FAST)
accumulate = operator(reference.accumulate, "total! any (*S); more any (*S)", **_FAST)
overwrite = operator(reference.overwrite, "target! any (*S); values any (*T); where broadcasts(T, S)")
added = operator(reference.added, "a any (*S); b any (*T); where fit(S, T)", cpu="kernels.shape.cpu")
evaluate = operator(reference.evaluate, "")  # any arrays: the rule knows
duplicate = operator(reference.duplicate, "a any (*S)")
sum_to = operator(reference.sum_to, "dy any (*S); where broadcasts(shape, S)")
