"""Attention kernels against the float64 reference: odd lengths, all masks, every width, and what they cost."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
import pytest

from kernels.attention import attention_backward, attention_forward, reference
from kernels.attention.cuda import dot_product
from kernels.core.cuda.module import launch_log
from kernels.core.dispatch import kernel_log
from tests.cuda.bounds import ANY, Mutant, assert_caught, assert_close, clean, trace_only, wider
from tests.support.attention_masks import MASKS, masks

# (N, heads), (T, K), (d, e)
SHAPES = [
    ((2, 3), (5, 7), (4, 6)),
    ((1, 1), (1, 1), (1, 1)),
    ((1, 2), (37, 70), (32, 32)),
    ((2, 1), (65, 33), (40, 17)),
    ((1, 1), (19, 66), (64, 64)),
    ((1, 1), (67, 35), (128, 100)),
    ((0, 2), (3, 4), (8, 8)),
]


def check(
    batch: tuple[int, int], lengths: tuple[int, int], widths: tuple[int, int], dtype: str, kind: str = "none"
) -> None:
    (n, heads), (t, k), (d, e) = batch, lengths, widths
    rng = np.random.default_rng(t + d)
    arrays = [
        rng.standard_normal(s).astype(dtype)
        for s in ((n, heads, t, d), (n, heads, k, d), (n, heads, k, e), (n, heads, t, e))
    ]
    mask, scale = masks(kind, n, heads, t, k, rng), d**-0.5
    if mask is not None and mask.dtype != bool:
        mask = mask.astype(dtype)
    q, keys, v, dy = (cupy.asarray(a) for a in arrays)
    there = None if mask is None else cupy.asarray(mask)
    with clean(), launch_log() as log, kernel_log() as served:
        o, lse = attention_forward(q, keys, v, there, scale)
        gradients = attention_backward(dy, q, keys, v, o, lse, there, scale)
    assert [s.by for s in served] == ["fast", "fast"]
    if n:
        assert all(("plain" in launch.kernel) == (dtype == "float64") or "delta" in launch.kernel for launch in log)
        assert len(log) == 4
    results = []
    for make in (np.asarray, wider):
        a, b, c, g = (make(x) for x in arrays)
        m = mask if mask is None or mask.dtype == bool else make(mask)
        out, level = reference.attention_forward(a, b, c, m, scale)
        results.append(
            (
                out,
                np.where(np.isfinite(level), level, 0),
                *reference.attention_backward(g, a, b, c, out, level, m, scale),
            )
        )
    fast = (o, cupy.where(cupy.isfinite(lse), lse, 0), *gradients)
    assert (np.isfinite(lse.get()) == np.isfinite(level)).all()
    for got, naive, exact in zip(fast, *results, strict=True):
        assert_close(got, naive, exact)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("batch", "lengths", "widths"), SHAPES)
def test_equals_the_reference(batch: Any, lengths: Any, widths: Any, dtype: str) -> None:
    check(batch, lengths, widths, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", MASKS[1:])
def test_masks(kind: str, dtype: str) -> None:
    check((2, 3), (35, 67), (20, 12), dtype, kind)


def test_large_scores_do_not_overflow() -> None:
    q = cupy.asarray(np.array([[[[300.0, 0], [-300, 0]]]], "f4"))
    v = cupy.asarray(np.arange(4, dtype="f4").reshape(1, 1, 2, 2))
    o, lse = attention_forward(q, q, v, None, 1.0)
    assert (o == v).all()
    assert (lse == 90000).all()


def test_views_same_bits_and_what_is_not_served() -> None:
    rng = np.random.default_rng(0)
    # rows do not start at multiples of 16 bytes
    qkv = cupy.asarray(rng.standard_normal((3, 2, 2, 19, 33)).astype("f4"))[..., 1:]
    first, second = attention_forward(*qkv, None, 0.2), attention_forward(*(a.copy() for a in qkv), None, 0.2)
    assert (first[0] == second[0]).all()
    gradients = [attention_backward(qkv[0], *qkv, *first, None, 0.2) for _ in range(2)]
    assert all((a == b).all() for a, b in zip(*gradients, strict=True))
    wide = cupy.zeros((1, 1, 2, 129), "f4")
    with kernel_log() as served:
        attention_forward(wide, wide, wide, None, 1.0)
    assert served[0].by == "reference"


def test_launch_geometry() -> None:
    assert dot_product.flash_launch("attention_rows", 64, 6, 65) == dot_product.Launch(
        "attention_rows<float, 64, 64, 64>", (2, 6), (256,), 55296
    )
    for width in dot_product.TILES:
        for step in ("attention_rows", "attention_keys", "attention_queries"):
            assert dot_product.flash_launch(step, width, 1, 1).shared <= (64 if width < 128 else 72) * 1024
    assert dot_product.plain_launch("attention_keys", "double", 2, 9, 10) == dot_product.Launch(
        "attention_keys_plain<double>", (9, 2), (128,), 160
    )


@trace_only
def test_tiles_are_read_in_whole_sectors_and_without_conflicts() -> None:
    rng = np.random.default_rng(0)
    q, k, v, dy = (cupy.asarray(rng.standard_normal((1, 1, 64, 64)).astype("f4")) for _ in range(4))
    with clean() as report:
        o, lse = attention_forward(q, k, v, None, 0.125)
        attention_backward(dy, q, k, v, o, lse, None, 0.125)
    for name in ("attention_rows", "attention_keys", "attention_queries"):
        kernel = report.kernel(name)
        assert kernel.global_efficiency > 0.9
        assert kernel.sectors_per_request <= 16
        passes = {
            line["line"]: line["wavefronts"] / line["requests"] for line in kernel.lines if line["space"] == "shared"
        }
        assert max(passes.values()) == 4  # 16 bytes per lane are four passes; more would be bank conflicts
        assert min(passes.values()) == 1  # the probabilities, 4 bytes per lane


def _odd() -> None:
    check((1, 2), (37, 70), (32, 32), "float32")


def _masked() -> None:
    check((2, 3), (35, 67), (20, 12), "float32", "empty row")


def _plain() -> None:
    check((1, 1), (5, 7), (4, 6), "float64")


FLASH, PLAIN = dot_product.FLASH[32], dot_product.PLAIN["double"]
MUTANTS = [
    Mutant(
        "v is loaded over k before k is read", FLASH, "    __syncthreads();  // k has been read\n", "", ("trace",), _odd
    ),
    Mutant(
        "tiles are overwritten while they are read",
        FLASH,
        "    __syncthreads();  // the tiles of the step before have been read\n",
        "",
        ("trace",),
        _odd,
    ),
    Mutant(
        "rows beyond the last are read", FLASH, "    if (r < rows) {", "    if (r <= rows) {", ("check", "trace"), _odd
    ),
    Mutant(
        "rows beyond the last are written",
        FLASH,
        "if (ty + SIDE * r >= rows)",
        "if (ty + SIDE * r > rows)",
        ("check", "trace"),
        _odd,
    ),
    Mutant("the result is not rescaled", FLASH, "out[r][c] *= rescale;", ";", ANY, _odd),
    Mutant("the sum is not rescaled", FLASH, "sum[r] = rescale * sum[r] +", "sum[r] = sum[r] +", ANY, _odd),
    Mutant(
        "keys beyond the last count",
        FLASH,
        "s[r][c] = i < n.queries && j < n.keys ?",
        "s[r][c] = i < n.queries ?",
        ANY,
        _odd,
    ),
    Mutant("an empty row divides by 0", FLASH, "sum[r] == 0 ? T(0) : 1 / sum[r]", "1 / sum[r]", ANY, _masked),
    Mutant(
        "the mask's axes are swapped",
        FLASH,
        "(long long)i * mask.strides[2] + (long long)j * mask.strides[3]",
        "(long long)j * mask.strides[2] + (long long)i * mask.strides[3]",
        ANY,
        lambda: check((1, 1), (33, 33), (8, 8), "float32", "causal"),
    ),
    Mutant("delta is left out", PLAIN, "(dot(dy, v, n.e) - delta)", "dot(dy, v, n.e)", ANY, _plain),
    Mutant(
        "probabilities are read before all are there",
        PLAIN,
        "scale, head, i, j, p, ds[j]);\n  }\n  __syncthreads();",
        "scale, head, i, j, p, ds[j]);\n  }\n",
        ("trace",),
        _plain,
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_planted_mistake_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(mutant, monkeypatch)
