"""Fast dot-product attention, float32, forward and backward: in blocks of queries and keys, without the matrix of all
their scores.

A block of scores is kept transposed, a row per key: then lanes are queries, the softmax needs no sums across lanes, and
all products read K, V and their gradients' rows in place (kernels/core/cpu/gemm_microkernel.py). Only blocks of queries
are transposed: of Q, dO, O, and of the results O and dQ.

Forward, a chunk per block of queries: softmax with a running maximum m and a running sum l per query. Block after block
    of keys,

    S^T = K (scale Q)^T    m' = max(m, max_j S)    P^T = e^(S^T - m')    l = e^(m - m') l + sum_j P    O^T = e^(m - m')
    O^T + V^T P^T

and in the end O / l and L = m + log l.   Backward, a chunk per head, so that every block of scores is made once and
nothing is added by two threads:

    P^T = e^(S^T - L)    dS^T = scale P^T (V dO^T - rowsum(dO O))    dQ^T += K^T dS^T    dV += P^T dO    dK += dS^T Q

FLOPs: forward 2 T T' (d + e), backward 2 T T' (3 d + 2 e) per head. Memory: a block's scores and its transposed
operands, 60 to 120 KB for d = e = 64, which stays in the L2 cache; T = T' = 2048 scores of one head are 16 MB.
Source: Dao et al., arXiv 2205.14135; Milakov & Gimelshein, arXiv 1805.02867.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import F32, U8
from kernels.core.cpu.gemm_microkernel import Initial, Panel, Results, Rows, make_gemm, one_tap, panel_vectors
from kernels.core.cpu.jit import Kernel, cpu_kernel, inline
from kernels.core.cpu.simd import Code, Float, Int, Pointer, program
from kernels.core.cpu.target import target
from kernels.core.cpu.thread_pool import contiguous, flat, parallel
from kernels.core.cpu.vector_ops import clear, copy

QUERIES = KEYS = 64  # of a block
# floats between rows of a block: with a power of two a column would map to few sets of the L1 cache
_ROW = QUERIES + 16
_ZEROS = 64  # initial sums: the widest panel's columns
_NONE, _KEPT, _ADDED = range(3)  # kinds of masks


class Sizes(NamedTuple):
    """Queries (heads, queries, d), keys (heads, keys, d) and values (heads, keys, e) of an image."""

    heads: int
    queries: int
    keys: int
    d: int
    e: int


class Mask(NamedTuple):
    """A kind of mask and its steps along the four axes."""

    kind: int
    image: int
    head: int
    query: int
    key: int


class Block(NamedTuple):
    """A block of scores: queries and keys from (query, key) of a head on."""

    head: Any
    query: Any
    key: Any
    queries: Any
    keys: Any


# -- programs ----------------------------------------------------------------------------------------------------------


class Matrix(NamedTuple):
    """A row-major matrix: element (i, j) lies at array[start + i row + j]."""

    array: Any
    start: Any
    row: Any


@program
def transpose(code: Code, x: Matrix, rows: Int, columns: Int, y: Matrix, length: Int, factor: Float) -> None:
    """y[c, r] = factor x[r, c] for c < columns, r < length; the last of x's rows stands for those from `rows` on."""
    lanes = code.lanes
    scale = code.splat(factor)

    def square(r0: Int, c0: Int, whole: bool) -> None:
        read, written = (None, None) if whole else (columns - c0, length - r0)
        places = [r0 + k if whole else code.lesser(r0 + k, rows - 1) for k in range(lanes)]
        turned = code.transposed([code.load(x.array, x.start + place * x.row + c0, read) for place in places])
        for k in range(lanes):
            with code.when(None if whole else c0 + k < columns):
                code.store(scale * turned[k], y.array, y.start + (c0 + k) * y.row + r0, written)

    with code.loop(0, length, lanes) as r0, code.loop(0, columns, lanes) as c0:
        whole = code.both(code.lesser(rows, length) >= r0 + lanes, columns >= c0 + lanes)
        with code.when(whole):
            square(r0, c0, True)
        with code.when(code.not_(whole)):
            square(r0, c0, False)


@program
def probabilities(code: Code, t: Pointer, s0: Int, top0: Int, out0: Int, keys: Int, features: Int, span: Int) -> None:
    """A block's scores S^T become e^(S^T - m'), m' the largest so far; sums and O^T so far are shrunk by e^(m - m').

    At top0: m, at top0 + _ROW: the sums; features: rows of O^T at out0 (0: there are none yet). span: queries, whole
        vectors of them.
    """
    with code.loop(0, span, code.lanes) as i:
        before = code.load(t, top0 + i)
        top = code.variable(before)
        more = code.variable(0.0)
        with code.loop(0, keys) as j:
            top.set(code.maximum(code.load(t, s0 + j * _ROW + i), top.get()))  # a NaN is lost here, and kept in p
        shift = code.select(top.get().equals(float("-inf")), 0, top.get())  # nothing to keep yet: e^(-inf - 0) = 0
        with code.loop(0, keys) as j:
            p = code.exp(code.load(t, s0 + j * _ROW + i) - shift)
            more.set(more.get() + p)
            code.store(p, t, s0 + j * _ROW + i)
        shrink = code.exp(before - shift)
        code.store(top.get(), t, top0 + i)
        code.store(code.fma(shrink, code.load(t, top0 + _ROW + i), more.get()), t, top0 + _ROW + i)
        with code.loop(0, features) as c:
            at = out0 + c * _ROW + i
            code.store(shrink * code.load(t, at), t, at)


@program
def finish(code: Code, t: Pointer, top0: Int, out0: Int, features: Int, span: Int) -> None:
    """O^T = O^T / l, and m becomes L = m + log l (inf where no key was kept)."""
    with code.loop(0, span, code.lanes) as i:
        total = code.load(t, top0 + _ROW + i)
        some = total.not_at_most(0)  # NaN passes
        share = code.select(some, 1 / total, 0)
        code.store(code.select(some, code.load(t, top0 + i) + code.log(total), float("inf")), t, top0 + i)
        with code.loop(0, features) as c:
            at = out0 + c * _ROW + i
            code.store(share * code.load(t, at), t, at)


@program
def row_products(code: Code, t: Pointer, a0: Int, b0: Int, out0: Int, features: Int, span: Int) -> None:
    """out[i] = sum_c A[c, i] B[c, i], term by term as tiles of products sum: with a single key dP - delta is 0, not a
    rounding.
    """
    with code.loop(0, span, code.lanes) as i:
        total = code.variable(0.0)
        with code.loop(0, features) as c:
            at = c * _ROW + i
            total.set(code.fma(code.load(t, a0 + at), code.load(t, b0 + at), total.get()))
        code.store(total.get(), t, out0 + i)


@program
def score_gradients(code: Code, t: Pointer, s0: Int, ds0: Int, level0: Int, keys: Int, span: Int, scale: Float) -> None:
    """S^T becomes P^T = e^(S^T - L), and dP^T becomes scale P^T (dP^T - delta). At level0: L, at level0 + _ROW:
    delta.
    """
    factor = code.splat(scale)
    with code.loop(0, span, code.lanes) as i:
        level = code.load(t, level0 + i)
        delta = code.load(t, level0 + _ROW + i)
        with code.loop(0, keys) as j:
            at = j * _ROW + i
            p = code.exp(code.load(t, s0 + at) - level)
            code.store(p, t, s0 + at)
            code.store(factor * p * (code.load(t, ds0 + at) - delta), t, ds0 + at)


@inline()
def _mask_scores(t, s0, added, kept, mask, heads, block):
    """Add the mask to a block of scores, or set those that it does not keep to -inf."""
    at = block.head // heads * mask.image + block.head % heads * mask.head
    at += block.query * mask.query + block.key * mask.key
    for j in range(block.keys if mask.kind != _NONE else 0):
        for i in range(block.queries):
            place = s0 + j * _ROW + i
            source = at + i * mask.query + j * mask.key
            if mask.kind == _ADDED:
                t[place] += added[source]
            elif kept[source] == 0:
                t[place] = -np.inf


# -- kernels -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _products() -> tuple[Any, Any, int]:
    """from_features(a, a0, t, b0, c0, keys, features, span): C (keys, span) = A B: A (keys, features), B and C blocks
    in t.

    from_keys(a, a0, t, b0, c0, keys, features, span, accumulate): C (features, span) = A^T B, added to what is there if
    `accumulate`.
    And the panels' width: spans are multiples of it.
    """
    vectors = panel_vectors(QUERIES)
    width = vectors * target().lanes
    over_features = make_gemm(vectors)
    over_keys = make_gemm(vectors, accumulates=True, unit_rows=True)

    @inline()
    def from_features(a, a0, t, b0, c0, keys, features, span):
        for panel in range(0, span, width):
            b = Panel(t, b0 + panel, _ROW)
            c = Results(t, c0 + panel, _ROW, keys, width)
            over_features(Rows(a, a0, features, 1), b, one_tap(features), c, Initial(t, 0, 0))

    @inline()
    def from_keys(a, a0, t, b0, c0, keys, features, span, accumulate):
        for panel in range(0, span, width):
            b = Panel(t, b0 + panel, _ROW)
            c = Results(t, c0 + panel, _ROW, features, width)
            over_keys(Rows(a, a0, 1, features), b, one_tap(keys), c, Initial(t, 0, accumulate))

    return from_features, from_keys, width


@lru_cache(maxsize=1)
def _forward_kernel() -> Kernel:
    from_features, from_keys, width = _products()

    @cpu_kernel()
    def attention_forward(
        start,
        stop,
        t,
        q: F32,
        k: F32,
        v: F32,
        o: F32,
        lse: F32,
        kept: U8,
        added: F32,
        sizes: Sizes,
        mask: Mask,
        scale: float,
    ):
        queries = sizes.queries
        keys = sizes.keys
        d = sizes.d
        e = sizes.e
        blocks = (queries + QUERIES - 1) // QUERIES
        turned = _ZEROS
        scores = turned + d * _ROW
        out = turned + (d + KEYS) * _ROW
        top = out + e * _ROW
        clear(t, 0, _ZEROS)
        for chunk in range(start, stop):
            head = chunk // blocks
            first = chunk % blocks * QUERIES
            own = min(QUERIES, queries - first)
            row = head * queries + first
            span = (own + width - 1) // width * width
            transpose(Matrix(q, row * d, d), own, d, Matrix(t, turned, _ROW), span, scale)
            for i in range(span):
                t[top + i] = -np.inf
                t[top + _ROW + i] = 0
            for key in range(0, keys, KEYS):
                others = min(KEYS, keys - key)
                column = head * keys + key
                from_features(k, column * d, t, turned, scores, others, d, span)
                _mask_scores(t, scores, added, kept, mask, sizes.heads, Block(head, first, key, own, others))
                probabilities(t, scores, top, out, others, e if key else 0, span)
                from_keys(v, column * e, t, scores, out, others, e, span, key)
            finish(t, top, out, e, span)
            copy(t, top, lse, row, own)
            transpose(Matrix(t, out, _ROW), e, own, Matrix(o, row * e, e), e, 1)

    return attention_forward


@lru_cache(maxsize=8)
def _backward_kernel(vectors: int, masked: bool) -> Kernel:
    """vectors: of the panels of dK and dV.   masked: their last vector is not full."""
    from_features, from_keys, width = _products()
    over_queries = make_gemm(vectors, accumulates=True, mask_b=masked, mask_c=masked)
    wide = vectors * target().lanes

    @inline(f"{vectors} {masked}")
    def from_queries(t, a0, b, b0, c, c0, keys, features, queries, accumulate):
        """C (keys, features) = A B, added to what is there if `accumulate`: A (keys, queries) a block in t."""
        for j in range(0, features, wide):
            panel = Panel(b, b0 + j, features)
            out = Results(c, c0 + j, features, keys, features - j)
            over_queries(Rows(t, a0, _ROW, 1), panel, one_tap(queries), out, Initial(t, 0, accumulate))

    @cpu_kernel(f"{vectors} {masked}")
    def attention_backward(
        start,
        stop,
        t,
        dy: F32,
        q: F32,
        k: F32,
        v: F32,
        o: F32,
        lse: F32,
        kept: U8,
        added: F32,
        dq: F32,
        dk: F32,
        dv: F32,
        sizes: Sizes,
        mask: Mask,
        scale: float,
    ):
        queries = sizes.queries
        keys = sizes.keys
        d = sizes.d
        e = sizes.e
        turned_q = _ZEROS
        turned_dy = turned_q + d * _ROW
        out = turned_dy + e * _ROW
        scores = out + max(d, e) * _ROW  # out: o first, then dq
        gradients = scores + KEYS * _ROW
        level = gradients + KEYS * _ROW
        clear(t, 0, _ZEROS)
        clear(t, level, 2 * _ROW)
        for head in range(start, stop):
            for first in range(0, queries, QUERIES):
                own = min(QUERIES, queries - first)
                row = head * queries + first
                span = (own + width - 1) // width * width
                transpose(Matrix(q, row * d, d), own, d, Matrix(t, turned_q, _ROW), span, scale)
                transpose(Matrix(dy, row * e, e), own, e, Matrix(t, turned_dy, _ROW), span, 1)
                copy(lse, row, t, level, own)
                transpose(Matrix(o, row * e, e), own, e, Matrix(t, out, _ROW), span, 1)
                row_products(t, out, turned_dy, level + _ROW, e, span)
                for key in range(0, keys, KEYS):
                    others = min(KEYS, keys - key)
                    column = head * keys + key
                    from_features(k, column * d, t, turned_q, scores, others, d, span)
                    _mask_scores(t, scores, added, kept, mask, sizes.heads, Block(head, first, key, own, others))
                    from_features(v, column * e, t, turned_dy, gradients, others, e, span)
                    score_gradients(t, scores, gradients, level, others, span, scale)
                    from_keys(k, column * d, t, gradients, out, others, d, span, key)
                    from_queries(t, scores, dy, row * e, dv, column * e, others, e, own, first)
                    from_queries(t, gradients, q, row * d, dk, column * d, others, d, own, first)
                transpose(Matrix(t, out, _ROW), d, own, Matrix(dq, row * d, d), d, 1)

    return attention_backward


# -- operators ---------------------------------------------------------------------------------------------------------


def _served(mask: np.ndarray | None, *arrays: np.ndarray) -> bool:
    floats = all(a.dtype == np.float32 and a.size for a in arrays)
    return floats and (mask is None or mask.dtype in (bool, np.float32))


def _mask(mask: np.ndarray | None, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, Mask]:
    """(bytes, floats, kind and steps): one of the arrays is the mask, the other one is not read."""
    none = np.zeros(1, np.float32)
    if mask is None:
        return none.view(np.uint8), none, Mask(_NONE, 0, 0, 0, 0)
    mask = contiguous(mask)
    whole = np.broadcast_to(mask, shape)
    steps = Mask(_KEPT if mask.dtype == bool else _ADDED, *(step // mask.itemsize for step in whole.strides))
    return (
        (mask.view(np.uint8).reshape(-1), none, steps)
        if mask.dtype == bool
        else (none.view(np.uint8), mask.reshape(-1), steps)
    )


def attention_forward(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, scale: float) -> Any:
    """As kernels.attention.reference.attention_forward."""
    if not _served(mask, q, k, v):
        return NotImplemented
    n, heads, queries, d = q.shape
    keys, e = v.shape[2:]
    o = buffer_pool.empty((n, heads, queries, e))
    lse = buffer_pool.empty((n, heads, queries))
    kept, added, steps = _mask(mask, (n, heads, queries, keys))
    sizes = Sizes(heads, queries, keys, d, e)
    chunks = n * heads * -(-queries // QUERIES)
    scratch = _ZEROS + (d + KEYS + e + 2) * _ROW
    parallel(_forward_kernel(), chunks, *flat(q, k, v, o, lse), kept, added, sizes, steps, scale, scratch=scratch)
    return o, lse


def attention_backward(
    do: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    o: np.ndarray,
    lse: np.ndarray,
    mask: np.ndarray | None,
    scale: float,
) -> Any:
    """As kernels.attention.reference.attention_backward."""
    if not _served(mask, do, q, k, v, o, lse):
        return NotImplemented
    n, heads, queries, d = q.shape
    keys, e = v.shape[2:]
    dq, dk, dv = (buffer_pool.empty(a.shape) for a in (q, k, v))
    kept, added, steps = _mask(mask, (n, heads, queries, keys))
    sizes = Sizes(heads, queries, keys, d, e)
    kernel = _backward_kernel(min(panel_vectors(d), panel_vectors(e)), any(size % target().lanes for size in (d, e)))
    scratch = _ZEROS + (d + e + max(d, e) + 2 * KEYS + 2) * _ROW
    parallel(
        kernel,
        n * heads,
        *flat(do, q, k, v, o, lse),
        kept,
        added,
        *flat(dq, dk, dv),
        sizes,
        steps,
        scale,
        scratch=scratch,
    )
    return dq, dk, dv
