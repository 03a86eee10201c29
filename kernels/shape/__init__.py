"""Concatenation of channels, its undoing, and sums in place."""

from kernels.core.dispatch import operator
from kernels.shape import reference

concat_channels = operator(reference.concat_channels, cpu="kernels.shape.cpu")
split_channels = operator(reference.split_channels, cpu="kernels.shape.cpu")
accumulate = operator(reference.accumulate, cpu="kernels.shape.cpu")
