"""Region terms: functions of three sums per class over all valid pixels, with their derivatives by the sums.

    I_c = sum m p t    P_c = sum m p    T_c = sum m t    M = sum m (the valid pixels)

A term V(I, P, T) has dV/dp = m (A t + B) with A = dV/dI and B = dV/dP, whatever the term: two numbers per class are all
that a pixel needs to know about the others. Hence every implementation has the same two passes over the logits, and
between them one of these functions (CUDA: `loss_reduce_coefficients`).

Each takes the sums and a LossSpec and returns (V, A, B). W_c are the class weights over their sum. absent = 'present'
leaves out the classes without a pixel. A denominator is at least 1e-30: it may be 0 only where its numerator is 0 too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kernels.core.device import Array, array_module
from kernels.loss.spec import LossSpec

TINY = 1e-30


class Sums(NamedTuple):
    """Per class I, P, T and the class weight w, each (C,); the number M of valid pixels (a scalar).

    pixels: how many each class has (C,), where T is another number: the truth is soft in the metric losses.
    """

    hit: Array
    probability: Array
    truth: Array
    w: Array
    count: Array
    pixels: Array | None = None

    def shares(self, spec: LossSpec) -> Array:
        """W_c (C,)."""
        w = self.w * ((self.truth if self.pixels is None else self.pixels) > 0) if spec.absent == "present" else self.w
        return w / w.sum().clip(TINY, None)


Settled = tuple[Array, Array, Array]


def dice(sums: Sums, spec: LossSpec) -> Settled:
    """sum_c W_c (1 - D_c),  D_c = (2 I_c + s) / (U_c + s),  U = P + T, s = spec.smooth.

    A_c = -2 W_c / (U_c + s),  B_c = W_c D_c / (U_c + s).
    """
    w = sums.shares(spec)
    total = (sums.probability + sums.truth + spec.smooth).clip(TINY, None)
    d = (2 * sums.hit + spec.smooth) / total
    scale = w / total
    return (w * (1 - d)).sum(), -2 * scale, scale * d


def iou(sums: Sums, spec: LossSpec) -> Settled:
    """sum_c W_c (1 - J_c),  J_c = (I_c + s) / (V_c + s),  V = P + T - I, s = spec.smooth.

    A_c = -W_c (1 + J_c) / (V_c + s),  B_c = W_c J_c / (V_c + s).
    """
    w = sums.shares(spec)
    total = (sums.probability + sums.truth - sums.hit + spec.smooth).clip(TINY, None)
    j = (sums.hit + spec.smooth) / total
    scale = w / total
    return (w * (1 - j)).sum(), -scale * (1 + j), scale * j


def tversky(sums: Sums, spec: LossSpec) -> Settled:
    """sum_c W_c (1 - K_c),  K = (I + s) / (I + a (P - I) + b (T - I) + s).  (Salehi et al., arXiv 1706.05721)

    a = spec.alpha weighs false positives, b = spec.beta false negatives; a = b = 1/2 is Dice with smoothing 2 s, a = b
    = 1 is IoU.
    With N the denominator: A_c = -W_c (1 - (1 - a - b) K_c) / N_c,  B_c = a W_c K_c / N_c.
    """
    w = sums.shares(spec)
    miss, a, b = _missed(sums, spec)
    return (w * miss).sum(), w * a, w * b


def focal_tversky(sums: Sums, spec: LossSpec) -> Settled:
    """sum_c W_c (1 - K_c)^e,  K as in `tversky`, e = spec.tversky_power (1 / gamma of the paper: 3/4).  (Abraham, Khan,
    arXiv 1810.07842)

    Tversky's A_c and B_c times e (1 - K_c)^(e - 1). For e < 1 that grows without bound towards K = 1; 1 - K counts as
    at least 1e-6 in it.
    """
    w = sums.shares(spec)
    miss, a, b = _missed(sums, spec)
    e = spec.tversky_power
    slope = w * e * miss.clip(1e-6, None) ** (e - 1)
    return (w * miss**e).sum(), slope * a, slope * b


def _missed(sums: Sums, spec: LossSpec) -> Settled:
    """1 - K_c, from what is missed, which keeps its digits as K -> 1; and its derivatives by I_c and P_c."""
    wrong = spec.alpha * (sums.probability - sums.hit) + spec.beta * (sums.truth - sums.hit)
    total = (wrong + sums.hit + spec.smooth).clip(TINY, None)
    k = (sums.hit + spec.smooth) / total
    return (wrong / total).clip(0, None), -(1 - (1 - spec.alpha - spec.beta) * k) / total, spec.alpha * k / total


def generalized_dice(sums: Sums, spec: LossSpec) -> Settled:
    """1 - G,  G = 2 sum_c v_c I_c / sum_c v_c (P_c + T_c),  v_c = w_c / max(T_c, 1)^2.  (Sudre et al., arXiv
    1707.03237)

    One ratio for all classes, each of which weighs by the square of its size; without smoothing, which would outweigh
    such sums.
    With N the denominator: A_c = -2 v_c / N,  B_c = v_c G / N.
    """
    v = sums.shares(spec) / sums.truth.clip(1, None) ** 2
    total = (v * (sums.probability + sums.truth)).sum()
    g = (2 * (v * sums.hit).sum() + TINY) / (total + TINY)
    v = v / (total + TINY)
    return 1 - g, -2 * v, v * g


def mcc(sums: Sums, spec: LossSpec) -> Settled:
    """sum_c W_c (1 - C_c), C the correlation of p and t (Matthews).  (Abhishek, Hamarneh, arXiv 2010.13454)

    With the shares i = I / M, q = P / M, r = T / M of the valid pixels: C = (i - q r) / R,  R = sqrt(q (1 - q) r (1 -
    r)).
    A_c = -W_c / (M R_c),  B_c = W_c / M (r_c / R_c + C_c (1 - 2 q_c) / (2 q_c (1 - q_c))).
    A class that no valid pixel has, or every one, correlates with nothing and is left out. q (1 - q) counts as at least
    1e-12.
    """
    xp = array_module(sums.hit)
    count = xp.clip(sums.count, 1, None)
    i = sums.hit / count
    q = sums.probability / count
    r = sums.truth / count
    w = sums.w * (r > 0) * (r < 1)
    w = w / w.sum().clip(TINY, None)
    spread = (q * (1 - q)).clip(1e-12, None)
    root = xp.where(w > 0, xp.sqrt(spread * r * (1 - r)), 1)
    c = (i - q * r) / root
    return (w * (1 - c)).sum(), -w / (count * root), w / count * (r / root + c * (1 - 2 * q) / (2 * spread))


REGIONS: dict[str, Callable[[Sums, LossSpec], Settled]] = {
    "dice": dice,
    "iou": iou,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "generalized_dice": generalized_dice,
    "mcc": mcc,
}
# With soft labels t~ = (1 - e) t + e / C, e = spec.label_smoothing, sum p t~ is no overlap: it is largest for a p of 0
# and 1. These take I_c = sum m min(p, t~) and T_c = sum m t~, so that V is 0 exactly at p = t~, and dV/dp = m (A [p <
# t~] + B). With e = 0 they are IoU and Dice.
METRICS: dict[str, Callable[[Sums, LossSpec], Settled]] = {"jaccard_metric": iou, "dice_semimetric": dice}
