"""All loss terms in two passes over the logits, one vector lane per pixel; no probability or one-hot tensor is stored.

Pass 1 (forward) reads the logits and adds up a few numbers: the pixelwise terms, and per class sum m p t, sum m p, sum
m t. The host turns them into the region terms' coefficients A_c, B_c. Pass 2 (backward) reads the logits again and
writes dz. Bytes per pixel: 12 C + 16.

Lovasz and the hardest pixels (top_k) sort all pixels, and the boundary loss reads a map of distances: these terms are
left to the reference and added. So are different background policies for different terms, with all of them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32, F64, I64
from kernels.core.cpu.jit import Kernel, cpu_kernel, inline
from kernels.core.cpu.simd import Code, Pointer, Vec, program
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import parallel
from kernels.core.dispatch import mark_host_computation
from kernels.core.labels import NO_LABEL, check_labels
from kernels.loss import reference
from kernels.loss.regions import METRICS, REGIONS, Sums
from kernels.loss.spec import LossSpec

_BLOCK = 512  # pixels transposed at a time: a plane per class, in the L1 cache
_CHUNK = 8192
_MOST_CLASSES = 64  # the code is unrolled over classes: compiling takes longer with each, to some 15 s
_FUSED = ("focal", "margin", "cross_entropy", *REGIONS, *METRICS)

# The layout of the sums of pass 1: numbers, then per class intersections, probabilities, truths, and for the metric
# losses overlaps with the soft labels.
_COUNT, _LABEL_WEIGHT, _FOCAL, _FALSE_NEGATIVE, _FALSE_POSITIVE, _ENTROPY, _FIRST_CLASS = range(7)
# Constants both passes read: settings, then per class weights, and for pass 2 A and B, and the metric losses' A.
_GAMMA, _POWER, _SMOOTHING, _C_FOCAL, _C_FN, _C_FP, _C_ENTROPY, _WEIGHTS = range(8)


class _Pixels:
    """One vector of pixels inside a program: probabilities and everything the terms share."""

    def __init__(self, code: Code, planes: Pointer, i: Any, classes: int, constants: Pointer) -> None:
        self.code, self.classes, self.constants = code, classes, constants
        self.z = [code.load(planes, i + c * _BLOCK) for c in range(classes)]
        label = code.load(planes, i + classes * _BLOCK)
        self.m = code.load(planes, i + (classes + 1) * _BLOCK)
        self.valid = self.m > 0
        self.hit = [code.both(label.equals(c), self.valid) for c in range(classes)]
        self.w = [self.constant(_WEIGHTS + c) for c in range(classes)]
        top = self.z[0]
        for z in self.z[1:]:
            top = code.maximum(z, top)
        self.top = top
        self.e = [code.exp(z - top) for z in self.z]
        self.sum = self._summed(self.e)
        self.p = [e / self.sum for e in self.e]
        self.py, self.wy, self.zy = self._picked(self.p), self._picked(self.w), self._picked(self.z)
        others = self._summed([code.select(h, 0, e) for h, e in zip(self.hit, self.e, strict=True)])
        self.miss = others / self.sum  # 1 - p_y, with nothing cancelled
        ratio = others / code.maximum(self._picked(self.e), 1e-37)
        series = ratio * code.fma(ratio, code.fma(ratio, 1 / 3, -0.5), 1)  # log(1 + t) for small t keeps its digits
        self.log_py = code.select(code.vec(0.003) > ratio, -series, self.zy - top - code.log(self.sum))

    def constant(self, k: int) -> Vec:
        return self.code.broadcast(self.constants, k)

    def _summed(self, values: list[Vec]) -> Vec:
        total = values[0]
        for v in values[1:]:
            total = total + v
        return total

    def _picked(self, values: list[Vec]) -> Vec:
        """The label's value; 0 on invalid pixels."""
        return self._summed([self.code.select(h, v, 0) for h, v in zip(self.hit, values, strict=True)])

    def times_log(self, s: Vec, logp: Vec) -> Vec:
        """s log p, 0 where s = 0 and p = 0."""
        none = self.code.both(s.equals(0), logp.equals(-math.inf))
        return self.code.select(none, 0, s * logp)

    def focal_weight(self, gamma: float | None) -> Vec:
        """w_y (1 - p_y)^gamma."""
        code = self.code
        if gamma == 2.0:
            return self.wy * self.miss * self.miss
        power = code.exp(self.constant(_GAMMA) * code.log(code.maximum(1e-37, self.miss)))  # in this order NaN stays
        return self.wy * code.select(code.both(self.miss.equals(0), self.constant(_GAMMA) > 0), 0, power)

    def margin(self) -> tuple[Vec, list[Vec], Vec, list[Vec], list[Vec]]:
        """g = ||p_wrong||_n, r, f_p, q and w~; see kernels.loss.reference.margin. The strongest wrong class sets the
        scale.
        """
        code = self.code
        n = self.constant(_POWER)
        worst = code.vec(-3e38)
        for h, z in zip(self.hit, self.z, strict=True):
            worst = code.maximum(code.select(h, -3e38, z), worst)
        wrong = [code.select(h, 0, code.exp(n * (z - worst))) for h, z in zip(self.hit, self.z, strict=True)]
        total = self._summed(wrong)  # the largest is 1, or all are 0: then g = 0, and so is r
        g = code.exp(worst - self.top + code.log(total) / n) / self.sum
        r = [v / code.maximum(1, total) for v in wrong]
        shrink = code.exp(n * (worst - self.top))
        right = code.select(self.valid, code.exp(n * (self.zy - self.top)), 0)
        powers = [code.select(h, right, v * shrink) for h, v in zip(self.hit, wrong, strict=True)]
        everything = self._summed(powers)
        q = [v / everything for v in powers]
        other = [code.select(code.both(self.valid, code.not_(h)), w, 0) for h, w in zip(self.hit, self.w, strict=True)]
        fp = self._summed([o * v for o, v in zip(other, q, strict=True)])
        return g, r, fp, q, other

    def entropy(self) -> tuple[list[Vec], list[Vec]]:
        """The smoothed targets s_c and log p_c."""
        code = self.code
        e = self.constant(_SMOOTHING)
        base = self.m * e * (1 / self.classes)
        s = [w * (base + code.select(h, 1 - e, 0)) for h, w in zip(self.hit, self.w, strict=True)]
        log_sum = code.log(self.sum) + self.top
        return s, [z - log_sum for z in self.z]

    def soft(self) -> list[Vec]:
        """The soft labels of every class, on valid pixels."""
        code = self.code
        e = self.constant(_SMOOTHING)
        base = e * (1 / self.classes)
        return [code.select(h, base + (1 - e), base) for h in self.hit]


@inline()
def _load_planes(z, labels, planes, first_pixel, count, classes, first, ignore):
    """Transpose `count` pixels to a plane per class, then the label (from 0) and the validity; the rest of the block is
    invalid.

    A pixel that does not count has zeros for logits, so that no NaN of its own counts either. Returns how many labels
    are no classes.
    """
    wide = classes + first
    wrong = 0
    for i in range(count):
        at = (first_pixel + i) * wide + first
        label = labels[first_pixel + i]
        known = label != ignore
        wrong += (known or ignore == NO_LABEL) and (label < 0 or label >= wide)
        valid = label >= first and known
        for c in range(classes):
            planes[c * _BLOCK + i] = z[at + c] if valid else np.float32(0)
        planes[classes * _BLOCK + i] = np.float32(label - first) if valid else np.float32(0)
        planes[(classes + 1) * _BLOCK + i] = np.float32(1) if valid else np.float32(0)
    for i in range(count, _BLOCK):
        for c in range(classes + 2):
            planes[c * _BLOCK + i] = np.float32(0)
    return wrong


Terms = tuple[bool, bool, bool, bool, bool]  # focal, margin, region or metric, cross-entropy, metric


@lru_cache(maxsize=16)
def _forward_kernel(classes: int, terms: Terms, gamma: float | None) -> Kernel:
    focal, margin, region, entropy, metric = terms
    numbers = _FIRST_CLASS + (3 + metric) * classes

    @program
    def measure(code: Code, planes: Pointer, constants: Pointer, sums: Pointer) -> None:
        """Adds a block's sums, one vector per number."""
        totals = [code.variable(code.load(sums, k * code.lanes)) for k in range(numbers)]

        def more(k: int, value: Vec) -> None:
            totals[k].set(totals[k].get() + value)

        with code.loop(0, _BLOCK, code.lanes) as i:
            px = _Pixels(code, planes, i, classes, constants)
            more(_COUNT, px.m)
            more(_LABEL_WEIGHT, px.wy)
            if focal:
                more(_FOCAL, code.select(px.valid, px.times_log(px.focal_weight(gamma), px.log_py), 0))
            if margin:
                g, _, fp, _, _ = px.margin()
                more(_FALSE_NEGATIVE, px.wy * (g - px.py))
                more(_FALSE_POSITIVE, fp)
            if entropy:
                for target, logp in zip(*px.entropy(), strict=True):
                    more(_ENTROPY, px.times_log(target, logp))
            if region:
                for c in range(classes):
                    more(_FIRST_CLASS + c, code.select(px.hit[c], px.p[c], 0))
                    more(_FIRST_CLASS + classes + c, code.select(px.valid, px.p[c], 0))
                    more(_FIRST_CLASS + 2 * classes + c, code.select(px.hit[c], code.vec(1), 0))
            if metric:
                for c, t in enumerate(px.soft()):
                    more(_FIRST_CLASS + 3 * classes + c, code.select(px.valid, code.minimum(px.p[c], t), 0))
        for k in range(numbers):
            code.store(totals[k].get(), sums, k * code.lanes)

    lanes = target().lanes

    @cpu_kernel(f"{classes} {terms} {gamma}")
    def loss_forward(
        start, stop, scratch, z: F32, labels: I64, constants: F32, out: F64, pixels: int, first: int, ignore: int
    ):
        planes = carray(scratch, (classes + 2) * _BLOCK + numbers * lanes)
        logits = carray(z, pixels * (classes + first))
        truth = carray(labels, pixels)
        totals = carray(out, stop * (numbers + 1))
        sums = planes[(classes + 2) * _BLOCK :]
        for chunk in range(start, stop):
            mine = totals[chunk * (numbers + 1) : (chunk + 1) * (numbers + 1)]
            mine[:] = 0.0
            for at in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, pixels), _BLOCK):
                mine[numbers] += _load_planes(
                    logits, truth, planes, at, min(_BLOCK, pixels - at), classes, first, ignore
                )
                sums[:] = np.float32(0)
                measure(planes, constants, sums)
                for k in range(numbers):
                    for lane in range(lanes):
                        mine[k] += sums[k * lanes + lane]

    return loss_forward


@lru_cache(maxsize=16)
def _backward_kernel(classes: int, terms: Terms, gamma: float | None) -> Kernel:
    focal, margin, region, entropy, metric = terms

    @program
    def differentiate(code: Code, planes: Pointer, constants: Pointer) -> None:
        """Replaces a block's logits by their gradients."""
        with code.loop(0, _BLOCK, code.lanes) as i:
            px = _Pixels(code, planes, i, classes, constants)
            hits = [code.select(h, code.vec(1), 0) for h in px.hit]
            dz = [code.vec(0)] * classes
            if focal:
                # p k -> 0 as p -> 0
                k = code.select(px.miss > 1e-30, code.minimum(-px.log_py, 1e30) / code.maximum(1e-30, px.miss), 1)
                scale = px.constant(_C_FOCAL) * px.focal_weight(gamma) * code.fma(px.constant(_GAMMA) * px.py, k, 1)
                dz = [code.fma(scale, p - t, d) for d, p, t in zip(dz, px.p, hits, strict=True)]
            if margin:
                g, r, fp, q, other = px.margin()
                fn = px.constant(_C_FN) * px.wy
                scale = px.constant(_C_FP) * px.constant(_POWER)
                excess = g - px.py
                for c in range(classes):
                    dz[c] = code.fma(fn, g * r[c] - px.py * hits[c] - excess * px.p[c], dz[c])
                    dz[c] = code.fma(scale * q[c], other[c] - fp, dz[c])
            if entropy:
                targets, _ = px.entropy()
                total = px._summed(targets)
                dz = [
                    code.fma(px.constant(_C_ENTROPY), p * total - s, d)
                    for d, p, s in zip(dz, px.p, targets, strict=True)
                ]
            if region:
                dp = [
                    code.fma(px.constant(_WEIGHTS + classes + c), hits[c], px.constant(_WEIGHTS + 2 * classes + c))
                    for c in range(classes)
                ]
                if metric:
                    below = [t > p for t, p in zip(px.soft(), px.p, strict=True)]
                    dp = [
                        code.select(low, px.constant(_WEIGHTS + 3 * classes + c), 0) + d
                        for c, (low, d) in enumerate(zip(below, dp, strict=True))
                    ]
                mean = px._summed([p * d for p, d in zip(px.p, dp, strict=True)])
                dz = [code.fma(p, v - mean, d) for d, p, v in zip(dz, px.p, dp, strict=True)]
            for c in range(classes):
                code.store(code.select(px.valid, dz[c], 0), planes, i + c * _BLOCK)

    @cpu_kernel(f"{classes} {terms} {gamma}")
    def loss_backward(
        start,
        stop,
        scratch,
        z: F32,
        labels: I64,
        constants: F32,
        dz: F32,
        wrong: F64,
        pixels: int,
        first: int,
        ignore: int,
    ):
        planes = carray(scratch, (classes + 2) * _BLOCK)
        wide = classes + first
        logits = carray(z, pixels * wide)
        truth = carray(labels, pixels)
        out = carray(dz, pixels * wide)
        counts = carray(wrong, stop)
        for chunk in range(start, stop):
            for at in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, pixels), _BLOCK):
                count = min(_BLOCK, pixels - at)
                counts[chunk] += _load_planes(logits, truth, planes, at, count, classes, first, ignore)
                differentiate(planes, constants)
                for i in range(count):
                    for c in range(first):
                        out[(at + i) * wide + c] = np.float32(0)
                    for c in range(classes):
                        out[(at + i) * wide + first + c] = planes[c * _BLOCK + i]

    return loss_backward


# -- the host's part ---------------------------------------------------------------------------------------------------


class _Plan:
    """A spec applied to given logits: the terms, the classes and their weights."""

    def __init__(self, logits: np.ndarray, labels: np.ndarray, spec: LossSpec) -> None:
        """spec: of terms in _FUSED."""
        policies = {spec.background_of(name) for name, _ in spec.terms}
        self.coefficients = dict(spec.terms)
        self.first = 1 if policies == {"mask"} else 0
        self.classes = logits.shape[-1] - self.first
        self.pixels = labels.size
        self.served = (
            logits.dtype == np.float32 and self.pixels > 0 and len(policies) == 1 and 2 <= self.classes <= _MOST_CLASSES
        )
        names = self.coefficients.keys()
        metric = not names.isdisjoint(METRICS)
        self.terms: Terms = (
            "focal" in names,
            "margin" in names,
            metric or not names.isdisjoint(REGIONS),
            "cross_entropy" in names,
            metric,
        )
        self.sums = _FIRST_CLASS + (3 + metric) * self.classes
        self.gamma = 2.0 if spec.gamma == 2.0 else None
        weights = np.ones(logits.shape[-1]) if spec.class_weights is None else np.array(spec.class_weights)
        self.weights = weights[self.first :]
        self.ignore = NO_LABEL if spec.ignore_index is None else spec.ignore_index
        self.constants = np.zeros(_WEIGHTS + (3 + metric) * self.classes, np.float32)
        self.constants[:3] = spec.gamma, spec.power, spec.label_smoothing
        self.constants[_WEIGHTS : _WEIGHTS + self.classes] = self.weights

    @property
    def scratch(self) -> int:
        return (self.classes + 2) * _BLOCK + self.sums * 64

    @property
    def chunks(self) -> int:
        return -(-self.pixels // _CHUNK)


def loss_forward(logits: np.ndarray, labels: np.ndarray, spec: LossSpec, distances: np.ndarray | None = None) -> Any:
    """As kernels.loss.reference.loss_forward; the state is what pass 2 reads: settings, weights, A, B."""
    own, rest = spec.split(_FUSED)
    if own is None or not (plan := _Plan(logits, labels, own)).served:
        return NotImplemented
    mark_host_computation()
    out = np.empty((plan.chunks, plan.sums + 1))
    truth = np.ascontiguousarray(labels, np.int64).reshape(-1)
    arguments = (
        np.ascontiguousarray(logits).reshape(-1),
        truth,
        plan.constants,
        out.reshape(-1),
        plan.pixels,
        plan.first,
        plan.ignore,
    )
    parallel(_forward_kernel(plan.classes, plan.terms, plan.gamma), plan.chunks, *arguments, scratch=plan.scratch)
    sums = out.sum(0)
    if sums[-1]:
        check_labels("loss_forward", "labels", labels, logits.shape[-1], spec.ignore_index)
    parts = _settle(plan, own, sums[:-1])
    value = sum(coefficient * parts[name] for name, coefficient in own.terms)
    single = {name: np.asarray(part, np.float32) for name, part in parts.items()}
    if rest is not None:
        more, others, _ = reference.loss_forward(logits, labels, rest, distances)
        value = value + more
        single = single | others
    return np.asarray(value, np.float32), single, plan.constants


def _settle(plan: _Plan, spec: LossSpec, sums: np.ndarray) -> dict[str, float]:
    """Every term's value from the sums; completes the constants of pass 2."""
    n = plan.classes
    share = spec.false_positive
    parts = {}
    count = max(sums[_COUNT], 1.0)
    label_weight = max(sums[_LABEL_WEIGHT], 1e-30)
    intersection, probability, truth, *overlap = sums[_FIRST_CLASS:].reshape(-1, n)
    a, b, *metric = plan.constants[_WEIGHTS + n :].reshape(-1, n)
    regions = Sums(intersection, probability, truth, plan.weights, sums[_COUNT])
    soft = (1 - spec.label_smoothing) * truth + spec.label_smoothing / n * sums[_COUNT]
    for name, coefficient in spec.terms:
        if name == "focal":
            parts[name] = -sums[_FOCAL] / count
            plan.constants[_C_FOCAL] = coefficient / count
        elif name == "margin":
            norm = {"mean": count, "sum": 1.0, "weighted": label_weight}[spec.margin_reduction]
            fn = sums[_FALSE_NEGATIVE] / norm
            fp = sums[_FALSE_POSITIVE] / norm
            parts.update(
                {name: (1 - share) * fn + share * fp, "margin_false_negative": fn, "margin_false_positive": fp}
            )
            plan.constants[_C_FN] = coefficient * (1 - share) / norm
            plan.constants[_C_FP] = coefficient * share / norm
        elif name == "cross_entropy":
            parts[name] = -sums[_ENTROPY] / label_weight
            plan.constants[_C_ENTROPY] = coefficient / label_weight
        elif name in METRICS:
            value, by_hit, by_probability = METRICS[name](
                Sums(*overlap, probability, soft, plan.weights, sums[_COUNT], truth), spec
            )
            parts[name] = float(value)
            metric[0] += coefficient * by_hit
            b += coefficient * by_probability
        else:
            value, by_hit, by_probability = REGIONS[name](regions, spec)
            parts[name] = float(value)
            a += coefficient * by_hit
            b += coefficient * by_probability
    return parts


def loss_backward(
    dy: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    spec: LossSpec,
    state: np.ndarray | None,
    distances: np.ndarray | None = None,
) -> Any:
    """As kernels.loss.reference.loss_backward."""
    own, rest = spec.split(_FUSED)
    if (
        state is None
        or own is None
        or not (plan := _Plan(logits, labels, own)).served
        or state.shape != plan.constants.shape
    ):
        return NotImplemented
    mark_host_computation()
    constants = state.copy()
    constants[_C_FOCAL:_WEIGHTS] *= dy
    constants[_WEIGHTS + plan.classes :] *= dy
    dz = buffer_pool.empty(logits.shape, np.float32)
    truth = np.ascontiguousarray(labels, np.int64).reshape(-1)
    wrong = np.zeros(plan.chunks)
    arguments = (
        np.ascontiguousarray(logits).reshape(-1),
        truth,
        constants,
        dz.reshape(-1),
        wrong,
        plan.pixels,
        plan.first,
        plan.ignore,
    )
    parallel(_backward_kernel(plan.classes, plan.terms, plan.gamma), plan.chunks, *arguments, scratch=plan.scratch)
    if wrong.any():
        check_labels("loss_backward", "labels", labels, logits.shape[-1], spec.ignore_index)
    if rest is not None:
        dz += reference.loss_backward(dy, logits, labels, rest, None, distances)
    return dz
