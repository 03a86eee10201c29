"""Filters to the panels that Winograd's products read: G g G^T, point by point."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kernels.conv.cpu.winograd.plan import PAD, Plan
from kernels.conv.cpu.winograd.transforms import Form, make_filter, points
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32
from kernels.core.cpu.jit import Kernel, cpu_kernel
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import contiguous, parallel
from kernels.core.cpu.vector_ops import clear
from kernels.core.cpu.weight_cache import packed_once


@lru_cache(maxsize=4)
def filter_kernel(form: Form) -> Kernel:
    """Transforms filters (r, r, C, K) into panels (points, K / width, C, width), a cache line between points: all are
    written in turn.
    """
    filter_ = make_filter(form)
    count_of_points = points(form) ** 2
    lanes = target().lanes

    @cpu_kernel(f"F{form}")
    def winograd_filter(
        start, stop, _scratch, w: F32, u: F32, c: int, k: int, kp: int, width: int, parts: int, per_part: int
    ):
        for chunk in range(start, stop):
            panel = chunk // parts
            part = chunk % parts
            columns = min(width, k - panel * width)
            empty = (width - columns) // lanes * lanes
            # one panel at a time: its rows are written one after another
            for i in range(part * per_part, min((part + 1) * per_part, c)):
                filter_(w, i * k + panel * width, c * k, columns, u, (panel * c + i) * width, kp * c + PAD)
                for point in range(empty and count_of_points):  # whole vectors beyond the last channel
                    clear(u, point * (kp * c + PAD) + (panel * c + i) * width + width - empty, empty)

    return winograd_filter


def transformed(plan: Plan, w: np.ndarray, form: Form) -> np.ndarray:
    """The panels of a filter (r, r, C, K)."""
    return packed_once(w, (form, plan.width, plan.kp), lambda: _transform(plan, w, form))


def _transform(plan: Plan, w: np.ndarray, form: Form) -> np.ndarray:
    _, _, c, k = w.shape
    u = buffer_pool.empty((plan.points * (plan.kp * c + PAD),), np.float32)
    parts = -(-c // plan.filter_per)
    flat = contiguous(w).reshape(-1)
    parallel(
        filter_kernel(form), plan.kp // plan.width * parts, flat, u, c, k, plan.kp, plan.width, parts, plan.filter_per
    )
    return u
