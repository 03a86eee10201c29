"""Geometric and photometric augmentation of image batches with their masks."""

from kernels.augment import reference
from kernels.core.dispatch import operator

augment_batch = operator(reference.augment_batch, cpu="kernels.augment.cpu", cuda="kernels.augment.cuda")
