"""The losses of the report, from logits, each with its gradient written out.

Per pixel i: logits z_i, p_i = softmax(z_i), label y_i, one-hot t_i, validity m_i, class weights w_c.
A term is one of two kinds. Pixelwise (cross-entropy, focal, margin): a mean of a function of z_i, with dz in closed
form. Region (Dice, IoU, Tversky, MCC, metric losses in kernels/loss/regions.py; Lovasz; boundary): a function of sums
over the whole batch, whose gradient to the probabilities is simple; the chain rule through the softmax is then

    dz = p (dp - <p, dp>)                                                                                       (*)

Every term function returns (parts, value, dz): named numbers for the log, the value, and dvalue/dz of shape (M, C).

Pixels that do not count (m_i = 0) count nowhere: whatever their logits hold, zeros replace them. A logit of -inf is
the limit: a class of probability 0. Hence 0 log 0 = 0: -inf costs where it is the label's, or where smoothing asks for
    it. float16 is computed in float32.
Sources: survey of 25 losses, arXiv 2312.05391; each function names its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kernels.core.device import Array, array_module
from kernels.core.labels import check_labels
from kernels.core.reduction import wide_type
from kernels.loss.regions import METRICS, REGIONS, TINY, Sums
from kernels.loss.spec import LossSpec
from kernels.pointwise.reference import log_softmax_forward, softmax_forward

Parts = dict[str, Array]
Term = tuple[Parts, Array, Array]


class Pixels(NamedTuple):
    """The inputs of a term, background policy applied: z (M, C), t (M, C) one-hot and 0 on invalid pixels, m (M, 1), w
    (C,).
    """

    z: Array
    t: Array
    m: Array
    w: Array

    @property
    def count(self) -> Array:
        """Number of valid pixels, at least 1."""
        return self.m.sum().clip(1, None)

    @property
    def label_weight(self) -> Array:
        """w_{y_i} (M, 1); 0 on invalid pixels."""
        return (self.t * self.w).sum(1, keepdims=True)


def pixels_of(logits: Array, labels: Array, spec: LossSpec, term: str) -> Pixels:
    """Flatten to M pixels and apply the ignore label and the term's background policy."""
    xp = array_module(logits)
    first = 1 if spec.background_of(term) == "mask" else 0
    classes = logits.shape[-1]
    z = logits.reshape(-1, classes)[:, first:].astype(wide_type(logits.dtype))
    y = labels.reshape(-1, 1)
    m = y >= first
    if spec.ignore_index is not None:
        m = m & (y != spec.ignore_index)
    z = xp.where(m, z, xp.zeros((), z.dtype))
    t = (y == xp.arange(first, classes)) & m
    w = xp.ones(classes, z.dtype) if spec.class_weights is None else xp.asarray(spec.class_weights, z.dtype)
    return Pixels(z, t.astype(z.dtype), m.astype(z.dtype), w[first:])


def cross_entropy(pixels: Pixels, spec: LossSpec) -> Term:
    """sum_i -<s_i, log p_i> / sum_i w_{y_i} with s = w ((1 - e) t + e / C), e the label smoothing (PyTorch's
    weighting).

    dz = (p sum_c s_c - s) / sum_i w_{y_i}.
    """
    losses, dz = _entropies(pixels, spec)
    norm = _at_least_tiny(pixels.label_weight.sum())
    return {}, losses.sum() / norm, dz / norm


def top_k(pixels: Pixels, spec: LossSpec) -> Term:
    """The mean of the k largest l_i = -<s_i, log p_i>, s as in `cross_entropy`, k = ceil(spec.hardest count).

    (Wu et al., arXiv 1605.06457; "online hard example mining"; the hardest pixels of the batch, not of each image.)
    dz = (p sum_c s_c - s) / k on those pixels; among equal ones the first are taken. NaN counts as the hardest.
    """
    xp = array_module(pixels.z)
    losses, dz = _entropies(pixels, spec)
    k = xp.ceil(pixels.count * spec.hardest - 1e-6).clip(1, None)
    hardness = xp.where(pixels.m[:, 0] > 0, xp.where(xp.isnan(losses), xp.inf, losses), -xp.inf)
    rank = xp.empty(len(losses), int)
    rank[xp.argsort(-hardness, kind="stable")] = xp.arange(len(losses))
    taken = (rank < k) & (pixels.m[:, 0] > 0)
    return {}, xp.where(taken, losses, 0).sum() / k, xp.where(taken[:, None], dz, 0) / k


def _entropies(pixels: Pixels, spec: LossSpec) -> tuple[Array, Array]:
    """Every pixel's smoothed cross-entropy (M,) and its gradient (M, C)."""
    z, t, m, w = pixels
    e = spec.label_smoothing
    logp = log_softmax_forward(z, 1)
    s = w * ((1 - e) * t + e / z.shape[1] * m)
    return -_times_log(s, logp).sum(1), array_module(z).exp(logp) * s.sum(1, keepdims=True) - s


def focal(pixels: Pixels, spec: LossSpec) -> Term:
    """mean_i w_y (1 - p_y)^gamma (-log p_y) over valid pixels.  (Lin et al., arXiv 1708.02002)

    With l = log p_y and 1 - p_y = -expm1(l), which keeps its digits as p_y -> 1:
    dz = w_y (1 - p_y)^gamma (1 + gamma p_y k) (p - t) / count,  k = -l / (1 - p_y)  (-> 1 as p_y -> 1).
    """
    xp = array_module(pixels.z)
    z, t, m, _ = pixels
    logp = log_softmax_forward(z, 1)
    log_py = _times_log(t, logp).sum(1, keepdims=True)
    miss = -xp.expm1(log_py)
    k = xp.where((miss > 0) & (log_py > -xp.inf), -log_py / xp.where(miss > 0, miss, 1), 1)  # p k -> 0 as p -> 0
    weight = pixels.label_weight * miss**spec.gamma
    dz = weight * (1 + spec.gamma * xp.exp(log_py) * k) * (xp.exp(logp) * m - t) / pixels.count
    return {}, -_times_log(weight, log_py).sum() / pixels.count, dz


def margin(pixels: Pixels, spec: LossSpec) -> Term:
    """The report's margin loss, (1 - b) f_n + b f_p with b = spec.false_positive, n = spec.power.

        f_n = w_y (||p_{c != y}||_n - p_y)        the strongest wrong class against the right one
        f_p = sum_{c != y} w_c q_c,  q = p^n / sum p^n        the weights of what is predicted instead

    p^n underflows float32 below p = 1e-8, so both come from logits: with L = LSE(z) and L_w = LSE_{c != y}(n z_c),
    ||p_{c != y}||_n = g = exp(L_w / n - L) and q = softmax(n z). With r_c = exp(n z_c - L_w) on the wrong classes, r_y
        = 0:

        df_n/dz = w_y (g r - p_y t - (g - p_y) p)        df_p/dz = n q (w~ - f_p),  w~_c = w_c [c != y]
    """
    xp = array_module(pixels.z)
    z, t, m, w = pixels
    n = spec.power
    b = spec.false_positive
    z = z - z.max(1, keepdims=True)
    total = xp.exp(z).sum(1, keepdims=True)
    p = xp.exp(z) / total
    q = softmax_forward(n * z, 1)
    wrong = xp.where(t > 0, xp.asarray(-xp.inf, z.dtype), n * z)
    top = wrong.max(1, keepdims=True)
    top = xp.where(top == -xp.inf, 0, top)  # every wrong class has probability 0: g = 0, and so is r
    powers = xp.exp(wrong - top)
    some = powers.sum(1, keepdims=True)  # the largest power is 1
    r = powers / some.clip(1, None)
    g = xp.where(some == 0, 0, xp.exp((top + xp.log(some.clip(1, None))) / n) / total)
    py = (t * p).sum(1, keepdims=True)
    other = w * (m - t)
    fn = pixels.label_weight * (g - py)
    fp = (other * q).sum(1, keepdims=True)
    dfn = pixels.label_weight * (g * r - py * t - (g - py) * p)
    dfp = n * q * (other - fp)
    norm: Any = 1
    if spec.margin_reduction != "sum":
        norm = pixels.count if spec.margin_reduction == "mean" else _at_least_tiny(pixels.label_weight.sum())
    parts = {"false_negative": fn.sum() / norm, "false_positive": fp.sum() / norm}
    value = (1 - b) * parts["false_negative"] + b * parts["false_positive"]
    return parts, value, ((1 - b) * dfn + b * dfp) / norm


def region(name: str, pixels: Pixels, spec: LossSpec) -> Term:
    """A term of kernels/loss/regions.py: value, A and B from the sums over valid pixels; dp = m (A t + B), then (*)."""
    z, t, m, w = pixels
    p = softmax_forward(z, 1)
    sums = Sums((p * t).sum(0), (p * m).sum(0), t.sum(0), w, m.sum())
    value, a, b = REGIONS[name](sums, spec)
    dp = m * (a * t + b)
    return {}, value, p * (dp - (p * dp).sum(1, keepdims=True))


def metric(name: str, pixels: Pixels, spec: LossSpec) -> Term:
    """Overlap with soft labels t~ = (1 - e) t + e / C, e the label smoothing: I = sum m min(p, t~), T = sum m t~; dp =
    m (A [p < t~] + B), then (*).

    jaccard_metric: Wang et al., arXiv 2302.05666;  dice_semimetric: arXiv 2303.16296. |p| + |t~| - |p - t~| = 2 min(p,
        t~).
    """
    xp = array_module(pixels.z)
    z, t, m, w = pixels
    p = softmax_forward(z, 1)
    soft = m * ((1 - spec.label_smoothing) * t + spec.label_smoothing / z.shape[1])
    sums = Sums(xp.minimum(m * p, soft).sum(0), (p * m).sum(0), soft.sum(0), w, m.sum(), t.sum(0))
    value, a, b = METRICS[name](sums, spec)
    dp = m * (a * (p < soft) + b)
    return {}, value, p * (dp - (p * dp).sum(1, keepdims=True))


def lovasz(pixels: Pixels, spec: LossSpec) -> Term:
    """Lovasz-softmax over the batch, weighted mean over the classes present.  (Berman et al., arXiv 1705.08790)

    Per class, errors e_i = |t_i - p_i| in descending order weigh the steps d of the Jaccard loss along that order:
    J_k = 1 - (G - cumsum t) / (G + cumsum(1 - t)), d_k = J_k - J_{k-1}, value = <e_sorted, d>.
    dp_i = d at i's rank, negative where t_i = 1 (d is constant while the order stands); then (*).
    """
    xp = array_module(pixels.z)
    z, t, m, w = pixels
    p = softmax_forward(z, 1) * m
    e = xp.abs(t - p)
    order = xp.argsort(-e, axis=0, kind="stable")
    truth = xp.take_along_axis(t, order, 0)
    false = xp.take_along_axis(m - t, order, 0)
    total = t.sum(0)
    jaccard = 1 - (total - truth.cumsum(0)) / _at_least_tiny(total + false.cumsum(0))
    steps = xp.concatenate([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    w = w * (total > 0)
    w = w / _at_least_tiny(w.sum())
    d = xp.empty_like(steps)
    xp.put_along_axis(d, order, steps, 0)
    dp = w * d * (1 - 2 * t) * m
    return {}, (w * (e * d).sum(0)).sum(), p * (dp - (p * dp).sum(1, keepdims=True))


def boundary(pixels: Pixels, spec: LossSpec, distances: Array) -> Term:
    """sum_i m_i <W phi_i, p_i> / count, phi the `signed_distances`, W_c = w_c / sum w: dp = m W phi / count; then (*).

    Linear in p: a probability costs more the farther outside its class it lies, and gains more the deeper inside.
        (Kervadec et al., arXiv 1812.07032)
    """
    z, _, m, w = pixels
    p = softmax_forward(z, 1)
    phi = distances.reshape(-1, distances.shape[-1])[:, distances.shape[-1] - z.shape[1] :]
    dp = m * (w / _at_least_tiny(w.sum())) * phi.astype(z.dtype) / pixels.count
    return {}, (dp * p).sum(), p * (dp - (p * dp).sum(1, keepdims=True))


def signed_distances(labels: Array, classes: int, background: str, ignore_index: int | None, dtype: str) -> Array:
    """phi (..., H, W, C) of labels (..., H, W), in pixels: how far a pixel lies outside (above 0) or inside a class (0
    at its edge, then below).

    Outside, phi is the Euclidean distance to the nearest pixel of the class; inside, 1 - the distance to the nearest
    pixel of another class. Pixels that do not count (the ignored label; class 0, where background is 'mask') belong to
    no class and bound none. phi = 0 all over an image for a class that has no pixel of it, or all. Raises ValueError
    for labels that are no classes.
    """
    check_labels("signed_distances", "labels", labels, classes, ignore_index)
    xp = array_module(labels)
    first = 1 if background == "mask" else 0
    valid = labels >= first
    if ignore_index is not None:
        valid = valid & (labels != ignore_index)
    maps = []
    for c in range(classes):
        inside = valid & (labels == c)
        other = valid & (labels != c)
        phi = xp.where(inside, 1 - _to_nearest(other, dtype), _to_nearest(inside, dtype))
        maps.append(
            xp.where(
                inside.any((-2, -1), keepdims=True) & other.any((-2, -1), keepdims=True), phi, xp.zeros((), phi.dtype)
            )
        )
    return xp.stack(maps, -1)


def _to_nearest(there: Array, dtype: str) -> Array:
    """The distance of every pixel of (..., H, W) to the nearest one that is true, infinite where none is: within
    columns, then across them.
    """
    xp = array_module(there)
    h, w = there.shape[-2:]
    rows = xp.arange(h, dtype=dtype)[:, None]
    columns = xp.arange(w, dtype=dtype)
    far = xp.asarray(xp.inf, dtype)
    square = xp.stack([xp.where(there, (rows - i) ** 2, far).min(-2) for i in range(h)], -2)
    return xp.sqrt(xp.stack([(square + (columns - j) ** 2).min(-1) for j in range(w)], -1))


def _times_log(s: Array, logp: Array) -> Array:
    """s log p, 0 where s = 0 and p = 0."""
    xp = array_module(logp)
    return s * xp.where((s == 0) & (logp == -xp.inf), 0, logp)


def _at_least_tiny(x: Array) -> Array:
    """A denominator that may be 0 only when its numerator is 0 too."""
    return x.clip(TINY, None)


_FUNCTIONS = {"margin": margin, "focal": focal, "cross_entropy": cross_entropy, "top_k": top_k, "lovasz": lovasz}
FORMULAS = _FUNCTIONS | REGIONS | dict.fromkeys(METRICS, metric) | {"boundary": boundary}  # each with its docstring


def _term(name: str, pixels: Pixels, spec: LossSpec, distances: Array | None) -> Term:
    if name in REGIONS:
        return region(name, pixels, spec)
    if name in METRICS:
        return metric(name, pixels, spec)
    return boundary(pixels, spec, distances) if name == "boundary" else _FUNCTIONS[name](pixels, spec)


def loss_forward(
    logits: Array, labels: Array, spec: LossSpec, distances: Array | None = None
) -> tuple[Array, Parts, Array | None]:
    """value = sum of coefficient * term: logits (..., C), labels integer (...) -> 0-d array; and every term's own value
    by name.

    distances (..., C): the labels' `signed_distances`, where the term `boundary` is among the terms.
    Third: the state that backward takes, in the implementation's own form (here: None).
    Raises ValueError for labels that are no classes, unless they are the ignored one (on CUDA later:
    kernels/core/labels.py).
    """
    check_labels("loss_forward", "labels", labels, logits.shape[-1], spec.ignore_index)
    value: Array | float = 0.0
    parts: Parts = {}
    for name, coefficient in spec.terms:
        inner, term, _ = _term(name, pixels_of(logits, labels, spec, name), spec, distances)
        parts[name] = term
        parts.update({f"{name}_{key}": part for key, part in inner.items()})
        value = value + coefficient * term
    xp = array_module(logits)
    return xp.asarray(value, logits.dtype), {name: xp.asarray(part, logits.dtype) for name, part in parts.items()}, None


def loss_backward(
    dy: Array, logits: Array, labels: Array, spec: LossSpec, state: Array | None, distances: Array | None = None
) -> Array:
    """dlogits = dy * sum of coefficient * dterm/dz; a masked background logit gets 0."""
    if state is not None:
        raise ValueError(
            "loss_backward: the state comes from another implementation; run forward and backward under the same "
            "use_kernels"
        )
    check_labels("loss_backward", "labels", labels, logits.shape[-1], spec.ignore_index)
    xp = array_module(logits)
    d = xp.zeros((labels.size, logits.shape[-1]), wide_type(logits.dtype))
    dy = xp.asarray(dy, d.dtype)
    for name, coefficient in spec.terms:
        pixels = pixels_of(logits, labels, spec, name)
        _, _, dz = _term(name, pixels, spec, distances)
        d[:, d.shape[1] - dz.shape[1] :] += xp.where(pixels.m > 0, (dy * coefficient) * dz, xp.zeros((), d.dtype))
    return d.reshape(logits.shape).astype(logits.dtype)
