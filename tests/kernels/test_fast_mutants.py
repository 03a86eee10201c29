"""Planted mistakes in the fast kernels: each one, in a copy of the package, must make a compact check fail that passes
without it.

Every mutant is compiled in a process of its own with a cache of its own, so each is restricted to the few kernels of
one check.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.fast_checks import FAILED
from tests.support.kernel_mutants import KILLED, Mutant, copied, planted_copy, run_in_copy
from tests.support.vector_widths import NARROW

_DOT = "dot_product_attention"
MUTANTS = [
    Mutant(
        "a ReLU loses NaN",
        "core/cpu/simd.py",
        "return self.maximum(0, x)",
        "return self.maximum(x, 0)",
        "special_values",
    ),
    Mutant(
        "NaN closes a ReLU's gradient", "core/cpu/simd.py", "return y.not_at_most(0)", "return y > 0", "special_values"
    ),
    Mutant(
        "the logarithm of NaN is a number",
        "core/cpu/simd.py",
        "self.vec(math.inf) > x, self.fma",
        "self.vec(1) > 0, self.fma",
        "special_values",
    ),
    Mutant(
        "loss: logits of a pixel that is ignored",
        "loss/cpu/segmentation_loss.py",
        "z[at + c] if valid else np.float32(0)",
        "z[at + c]",
        "special_values",
    ),
    Mutant(
        "tail one float short",
        "core/cpu/vector_ops.py",
        "body(whole, length - whole)",
        "body(whole, length - whole - 1)",
        "gates",
    ),
    Mutant("sum of lanes without the last step", "core/cpu/simd.py", "while width > 1:", "while width > 2:", "gates"),
    Mutant(
        "rows of a tile clamped one too far",
        "core/cpu/gemm_microkernel.py",
        "code.int(i), rows - 1)",
        "code.int(i), rows)",
        "conv_direct/filter",
        overruns=True,
    ),
    Mutant(
        "last row of a column of tiles lost",
        "core/cpu/gemm_microkernel.py",
        "if done < c.rows:",
        "if done < c.rows - 1:",
        "conv_direct/forward",
    ),
    Mutant(
        "a later block of sums forgets the ones before",
        "core/cpu/gemm_microkernel.py",
        "accumulate = initial.accumulate >= 1",
        "accumulate = initial.accumulate >= 2",
        "conv_many_chunks/filter",
    ),
    Mutant(
        "filter gradient: strips of a chunk taken for the first",
        "conv/cpu/direct/backward_filter.py",
        "accumulate = strip > chunk * per_chunk",
        "accumulate = 0",
        "conv_many_chunks/filter",
    ),
    Mutant(
        "conv and norm: blocks of a chunk taken for the first",
        "conv/cpu/fused_norm_backward/winograd.py",
        "Initial(zeros, 0, at > first)",
        "Initial(zeros, 0, 0)",
        "norm_gradients_winograd",
    ),
    Mutant(
        "conv and norm: strips of a chunk taken for the first",
        "conv/cpu/fused_norm_backward/pointwise.py",
        "Initial(zeros, 0, first > chunk * work.per_chunk)",
        "Initial(zeros, 0, 0)",
        "norm_gradients_pointwise",
    ),
    Mutant(
        "packing: panels overlap at the tail",
        "conv/cpu/filters.py",
        "o = (panel * taps + i) * width",
        "o = (panel * taps + i) * count",
        "conv_direct/forward",
    ),
    Mutant(
        "packing: a transposed filter's columns side by side",
        "conv/cpu/filters.py",
        "at // run * run_step",
        "at // run * run",
        "conv_transpose",
    ),
    Mutant(
        "transposed: all rows of the filter to one row",
        "conv/cpu/direct/forward.py",
        "group_out=out_row",
        "group_out=0",
        "conv_transpose",
    ),
    Mutant(
        "filter gradient: the last strip is a whole one",
        "conv/cpu/direct/backward_filter.py",
        "count = min(layer.rows, layer.p - first)",
        "count = layer.rows",
        "conv_many_chunks/filter",
    ),
    Mutant(
        "packing: tiles reach into each other", "core/cpu/packing.py", "GAP = 4", "GAP = 0", "norm_gradients_pointwise"
    ),
    Mutant(
        "packing: whole vectors to the last pixel's end",
        "core/cpu/packing.py",
        "max(0, (length - span) // height + 1)",
        "tiles",
        "norm_gradients_pointwise",
        overruns=True,
    ),
    Mutant(
        "conv and norm: sums of a second map in the first one's place",
        "conv/cpu/fused_norm_backward/pointwise.py",
        "before += size",
        "before += 0",
        "norm_gradients_pointwise",
    ),
    Mutant(
        "conv and norm: no room for a second map's last vector",
        "conv/cpu/fused_norm_backward/winograd.py",
        "-(-reach // width)",
        "-(-self.both // width)",
        "norm_gradients_winograd",
    ),
    Mutant(
        "padding: bottom row read from beyond",
        "conv/cpu/direct/params.py",
        "if y < 0 or y >= h:",
        "if y < 0 or y > h:",
        "conv_direct/forward",
    ),
    Mutant(
        "strip one line short",
        "conv/cpu/direct/params.py",
        "for line in range(lines):",
        "for line in range(lines - 1):",
        "conv_direct/forward",
    ),
    Mutant(
        "row and column stride swapped",
        "conv/cpu/direct/forward.py",
        "Rows(source, a0, layer.sw * c, 1)",
        "Rows(source, a0, layer.sh * c, 1)",
        "conv_direct_strided/forward",
    ),
    Mutant(
        "a chunk lost in the filter's sum",
        "conv/cpu/filters.py",
        "for chunk in range(1, chunks):",
        "for chunk in range(2, chunks):",
        "conv_many_chunks/filter",
    ),
    Mutant(
        "conv and norm: mask forgotten",
        "conv/cpu/fused_norm_backward/strip.py",
        '"computed" if relu else "none"',
        '"none"',
        "norm_gradients_pointwise",
    ),
    Mutant(
        "conv and norm: slope of the wrong sign",
        "norm/cpu/channel_vectors.py",
        "= -scale * inverse[c] * second",
        "= scale * inverse[c] * second",
        "norm_gradients_pointwise",
    ),
    Mutant(
        "conv and norm: a map's place",
        "conv/cpu/fused_norm_backward/pointwise.py",
        "place = second  # dx",
        "place = second + 1  # dx",
        "norm_gradients_pointwise",
    ),
    Mutant(
        "conv and norm: rows taken over from the wrong place",
        "conv/cpu/fused_norm_backward/winograd.py",
        "strip + m * wide, scratch",
        "strip + (m - 1) * wide, scratch",
        "norm_gradients_winograd",
    ),
    Mutant(
        "conv and norm: right padding not cleared",
        "conv/cpu/fused_norm_backward/winograd.py",
        "strip.start + end, wide - end)",
        "strip.start + end, 0)",
        "norm_gradients_winograd",
    ),
    Mutant(
        "conv and norm: taps not reversed",
        "conv/cpu/winograd/backward_filter.py",
        "if reverse else (0, c * k)",
        "if not reverse else (0, c * k)",
        "norm_gradients_winograd",
    ),
    Mutant(
        "depthwise: last column of a row lost",
        "conv/cpu/depthwise.py",
        "with code.loop(0, layer.q - whole) as q:",
        "with code.loop(0, layer.q - whole - 1) as q:",
        "conv_depthwise/forward",
    ),
    Mutant(
        "depthwise: rows that no whole tile covers lost",
        "conv/cpu/depthwise.py",
        "code.loop(whole, self.first + self.count)",
        "code.loop(whole + 1, self.first + self.count)",
        "conv_depthwise/forward",
    ),
    Mutant(
        "depthwise: padding row read from beyond",
        "conv/cpu/depthwise.py",
        "y < layer.h)",
        "y < layer.h + 1)",
        "conv_depthwise/filter",
    ),
    Mutant(
        "depthwise: padding column is the row before",
        "conv/cpu/depthwise.py",
        "left + right >= 0,",
        "left + right + 1 >= 0,",
        "conv_depthwise/data",
    ),
    Mutant(
        "depthwise: tiles begin in the padding",
        "conv/cpu/depthwise.py",
        "-(-left // sw)",
        "left // sw",
        "conv_depthwise/forward",
    ),
    Mutant(
        "depthwise: tiles end in the padding",
        "conv/cpu/depthwise.py",
        "(s - 1) * dw + left)",
        "(s - 2) * dw + left)",
        "conv_depthwise/filter",
    ),
    Mutant(
        "depthwise: dilation forgotten",
        "conv/cpu/depthwise.py",
        "t * stride + k * dilation",
        "t * stride + k",
        "conv_depthwise/forward",
    ),
    Mutant(
        "depthwise: a strip lost in the filter's sum",
        "conv/cpu/depthwise.py",
        "min((chunk + 1) * per_chunk, strips)",
        "min((chunk + 1) * per_chunk, strips - 1)",
        "conv_depthwise/filter",
    ),
    Mutant(
        "padded strip: a row read from beyond",
        "conv/cpu/direct/params.py",
        "if y < 0 or y >= h:",
        "if y < 0 or y > h:",
        "conv_stem/forward",
    ),
    Mutant(
        "Winograd: last row of the image left out",
        "conv/cpu/winograd/tiles.py",
        "min(count, (size - start + step - 1) // step)",
        "min(count, (size - start) // step)",
        "conv_winograd2/forward",
    ),
    Mutant(
        "Winograd: a tile over the border taken for one inside",
        "conv/cpu/winograd/tiles.py",
        "- ix) // apart + 1",
        "- ix) // apart + 2",
        "conv_winograd4/forward",
    ),
    Mutant(
        "Winograd: tiles of a run in one place",
        "conv/cpu/winograd/transforms.py",
        "out.array + out.start + k * out.tile",
        "out.array + out.start",
        "conv_winograd4/forward",
    ),
    Mutant(
        "Winograd: only the first part of the panels",
        "conv/cpu/winograd/forward.py",
        "(part + 1) * panels // work.parts",
        "panels // work.parts",
        "conv_winograd_parts",
    ),
    Mutant(
        "pooling: taps in the wrong order",
        "pool/cpu.py",
        "equals(i * s + j), code.load(dy, at, rest)",
        "equals(j * r + i), code.load(dy, at, rest)",
        "max_pool",
    ),
    Mutant(
        "batch norm: constants not in turn",
        "norm/cpu/batch_norm.py",
        "copy(rows, k * channels, scratch, at + k * period + base, channels)",
        "copy(rows, k * channels, scratch, at + k * period, channels)",
        "batch_norm",
    ),
    Mutant(
        "layer norm: the variance counts a tail's other lanes",
        "norm/cpu/row_statistics.py",
        "- means[k], rest)",
        "- means[k], None)",
        "layer_norm",
    ),
    Mutant("layer norm: mean of g missing", "norm/cpu/layer_norm.py", "math.fma(d, w, -row.g)", "d * w", "layer_norm"),
    Mutant(
        "layer norm: sums counted twice",
        "norm/cpu/layer_norm.py",
        "clear(scratch, 0, 2 * channels)",
        "clear(scratch, 0, channels)",
        "layer_norm",
    ),
    Mutant(
        "layer norm: a chunk of sums lost",
        "norm/cpu/channel_vectors.py",
        "total += sums[k * step + c]",
        "total += sums[k * step + c] if k != 1 else 0.0",
        "layer_norm",
    ),
    Mutant(
        "loss: rest of the last block counted",
        "loss/cpu/segmentation_loss.py",
        "for i in range(count, _BLOCK):",
        "for i in range(_BLOCK, _BLOCK):",
        "loss_terms",
    ),
    Mutant(
        "resampling: weights transposed",
        "resample/cpu.py",
        "_axpy(columns[j, k], scratch, k * c,",
        "_axpy(columns[j, k], scratch, j * c,",
        "resampling",
    ),
    Mutant(
        "attention: exponentials beyond the last pixel",
        "pointwise/cpu/softmax.py",
        "total.set(total.get() + code.kept(e, rest))",
        "total.set(total.get() + e)",
        "polarized_attention",
    ),
    Mutant(
        "attention: last column of a chunk of sums",
        "attention/cpu/polarized.py",
        "min(_SUMS, width - first - at)",
        "min(_SUMS - 1, width - first - at)",
        "polarized_attention",
    ),
    Mutant(
        "flash: last query of a tail",
        "attention/cpu/flash.py",
        "code.lesser(r0 + k, rows - 1)",
        "code.lesser(r0 + k, rows - 2)",
        _DOT,
    ),
    Mutant(
        "flash: sums so far are not shrunk",
        "attention/cpu/flash.py",
        "code.fma(shrink, code.load(t, top0",
        "code.fma(1, code.load(t, top0",
        _DOT,
    ),
    Mutant("flash: results so far are not shrunk", "attention/cpu/flash.py", "e if key else 0", "0", _DOT),
    Mutant(
        "flash: dq forgets the blocks of keys before",
        "attention/cpu/flash.py",
        "others, d, span, key)",
        "others, d, span, 0)",
        _DOT,
    ),
    Mutant(
        "flash: dk forgets the blocks of queries before",
        "attention/cpu/flash.py",
        "others, d, own, first)",
        "others, d, own, 0)",
        _DOT,
    ),
    Mutant(
        "flash: dv misses a query",
        "attention/cpu/flash.py",
        "others, e, own, first)",
        "others, e, own - 1, first)",
        _DOT,
    ),
    Mutant(
        "flash: mask transposed",
        "attention/cpu/flash.py",
        "at + i * mask.query + j * mask.key",
        "at + j * mask.query + i * mask.key",
        _DOT,
    ),
    Mutant(
        "flash: largest score of a block only",
        "attention/cpu/flash.py",
        "top = code.variable(before)",
        "top = code.variable(-1e30)",
        _DOT,
    ),
    Mutant(
        "flash: sign of delta",
        "attention/cpu/flash.py",
        "code.load(t, ds0 + at) - delta",
        "code.load(t, ds0 + at) + delta",
        _DOT,
    ),
    Mutant(
        "softmax: rows of a chunk taken for all",
        "pointwise/cpu/softmax.py",
        "min(stop * rows_per_chunk, rows)):\n            row(x",
        "rows - 1):\n            row(x",
        "softmaxes",
    ),
    Mutant(
        "log-softmax: sum of the cotangents' sign",
        "pointwise/cpu/softmax.py",
        "code.fma(-code.exp(out)",
        "code.fma(code.exp(out)",
        "softmaxes",
    ),
    Mutant(
        "blend: other map's share",
        "gate/cpu.py",
        "code.fma(1 - s, code.load(other",
        "code.fma(s, code.load(other",
        "gates",
    ),
    Mutant(
        "gate per channel: a block's last pixel",
        "gate/cpu.py",
        "y, count * channels)",
        "y, (count - 1) * channels)",
        "gates",
    ),
    Mutant("concatenation: a map misplaced", "shape/cpu.py", "at += size", "at += size - size % 8", "channels"),
    Mutant(
        "optimiser: a chunk's last parameter",
        "optimizer/cpu.py",
        "step(p, g, m, v, decay, average, at, min(_CHUNK, n - at)",
        "step(p, g, m, v, decay, average, at, min(_CHUNK - 1, n - at)",
        "adamw",
    ),
    Mutant(
        "SGD: Nesterov's step without the fresh gradient",
        "optimizer/cpu.py",
        "code.fma(kept_momentum, speed, d)",
        "kept_momentum * speed",
        "sgd",
    ),
    Mutant(
        "SGD: the buffer is not kept",
        "optimizer/cpu.py",
        "code.store(speed, buffer, i, rest)",
        "code.store(d, buffer, i, rest)",
        "sgd",
    ),
    Mutant(
        "gathering: rows and columns swapped",
        "optimizer/cpu.py",
        "begin + i * down + j * across",
        "begin + j * down + i * across",
        "gathering",
    ),
    Mutant(
        "dropout: words in the wrong order",
        "pointwise/cpu/dropout.py",
        "interleaved(w0, w2)",
        "interleaved(w2, w0)",
        "activations",
    ),
    Mutant(
        "dropout: tail four elements short",
        "pointwise/cpu/dropout.py",
        "count = n - at if rest",
        "count = n - at - 4 if rest",
        "activations",
    ),
    Mutant(
        "dropout: neighbouring blocks change places",
        "pointwise/cpu/dropout.py",
        "c0 = self.builder.trunc(numbers, self.words)",
        "c0 = self.builder.xor(self.builder.trunc(numbers, self.words), self.constant(self.words, 1))",
        "activations",
    ),
    Mutant(
        "augmentation: edge pixel repeated",
        "augment/cpu.py",
        "maximum(2 * self.last, 1)",
        "maximum(2 * self.last + 1, 1)",
        "augmentation",
    ),
    Mutant(
        "augmentation: a pixel beyond the tile keeps its label",
        "augment/cpu.py",
        "pixel > -1",
        "pixel > -2",
        "augmentation",
    ),
    Mutant(
        "augmentation: rows counted by their last pixel",
        "augment/cpu.py",
        "fma(top, across.last + 1, left)",
        "fma(top, across.last, left)",
        "augmentation",
    ),
    Mutant(
        "optimiser: the weight decay of the line of parameters before",
        "optimizer/cpu.py",
        "code.shifted(i, _LINE_BITS)",
        "code.shifted(i - 1, _LINE_BITS)",
        "adamw",
    ),
    Mutant(
        "augmentation: last pixel left out of the mean",
        "augment/cpu.py",
        "_mean(code, image, pixels)",
        "_mean(code, image, pixels - 1)",
        "augmentation",
    ),
]


def run(root: Path, *checks: str) -> subprocess.CompletedProcess:
    """The checks with the package at `root` and a cache beside it. Compiled without optimization, which takes nearly
    half of the time.
    """
    settings = {**NARROW, "AREOGRAD_CACHE": str(root / "cache"), "NUMBA_OPT": "0"}
    return run_in_copy(root, "tests.support.fast_checks", *checks, **settings)


def test_all_checks_pass_in_an_unchanged_copy(tmp_path) -> None:
    """One that fails anyway would catch anything."""
    checks = sorted({mutant.check for mutant in MUTANTS})
    result = run(copied(tmp_path), *checks)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.split() == ["passed", *checks]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_planted_mistake_is_caught(mutant: Mutant, tmp_path) -> None:
    result = run(planted_copy(mutant, tmp_path), mutant.check)
    caught = result.returncode == FAILED and result.stdout.split() == ["failed", mutant.check]
    killed = mutant.overruns and -result.returncode in KILLED
    assert caught or killed, f"code {result.returncode}, not a failed comparison:\n{result.stderr[-2000:]}"
