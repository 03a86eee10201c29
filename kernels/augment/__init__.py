"""Geometric and photometric augmentation of image batches with their masks."""

from kernels.augment import reference
from kernels.core.dispatch import operator

_SHAPES = "images (N, H, W); masks int (N, H, W); matrices (N, 2, 3); contrast (N); brightness (N); gamma (N)"

augment_batch = operator(reference.augment_batch, _SHAPES, cpu="kernels.augment.cpu", cuda="kernels.augment.cuda")
