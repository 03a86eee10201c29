"""The loss kernels against the float64 reference, on odd shapes, with every policy and every setting; and what they
cost.
"""

from __future__ import annotations

import cupy
import numpy as np
import pytest

from kernels.core.cuda.module import launch_log
from kernels.core.device import fetch, to_numpy
from kernels.core.dispatch import kernel_log, use_kernels
from kernels.loss import LossSpec, cuda, loss_backward, loss_forward, reference
from tests.cuda.bounds import ANY, Mutant, assert_caught, assert_close, clean, trace_only, wider

EVERY = (("margin", 0.4), ("dice", 0.2), ("focal", 0.3), ("iou", 0.1), ("cross_entropy", 0.5))
EVERY = (*EVERY, ("tversky", 0.6), ("focal_tversky", 0.3), ("generalized_dice", 0.2), ("mcc", 0.7))
WEIGHTS = (0.5, 1.0, 2.0, 0.7, 3.0, 1.5, 0.2)
SHAPES = [((2, 19, 31), 5), ((1, 1, 1), 5), ((3, 7, 90), 4), ((2, 5, 3), 7), ((4, 33), 2)]
VARIANTS = {
    "plain": {},
    "masked": {"background": "mask"},
    "ignored": {"ignore_index": 1},
    "ignored negative": {"ignore_index": -100},
    "weighted": {"margin_reduction": "weighted", "absent": "all", "smooth": 0.1},
    "summed": {"margin_reduction": "sum", "power": 3, "false_positive": 0.5},
    "smoothed": {"label_smoothing": 0.1, "gamma": 0.5, "background": "mask"},
}


def made(
    shape: tuple[int, ...],
    classes: int,
    seed: int = 0,
    ignored: int | None = None,
    kind: str = "uint8",
    scale: float = 3.0,
):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, shape).astype(kind)
    if ignored is not None:
        labels[rng.random(shape) < 0.2] = ignored
    return rng.standard_normal((*shape, classes)) * scale, labels


def check(logits: np.ndarray, labels: np.ndarray, spec: LossSpec, dtype: str, dy: float = 0.7) -> None:
    """Value, parts and gradient keep the bound of docs/accuracy.md; our kernels served; nothing is found."""
    narrow = logits.astype(dtype)
    z, y = cupy.asarray(narrow), cupy.asarray(labels)
    with clean(), launch_log() as log, kernel_log() as served:
        value, parts, state = loss_forward(z, y, spec)
        dz = loss_backward(cupy.asarray(dy, dtype), z, y, spec, state)
    assert all(s.by == "fast" and s.device == "cuda" for s in served)
    assert sum("loss_reduce_coefficients" in launch.kernel for launch in log) == 1
    assert sum("loss_gradient" in launch.kernel for launch in log) == (labels.size > 0)
    wide = wider(narrow)
    exact, naive = reference.loss_forward(wide, labels, spec), reference.loss_forward(narrow, labels, spec)
    names = list(exact[1])
    assert set(parts) == set(names)
    together = [np.array([r[0], *(r[1][k] for k in names)], t) for r, t in ((naive, dtype), (exact, wide.dtype))]
    assert_close(np.array([value.get(), *(parts[k].get() for k in names)]), *together)
    gradients = [reference.loss_backward(np.asarray(dy, z.dtype), z, labels, spec, None) for z in (narrow, wide)]
    assert_close(dz, *gradients)
    assert not dz.get()[labels == (spec.ignore_index if spec.ignore_index is not None else -1)].any()


def test_terms_that_the_kernels_do_not_serve_are_added() -> None:
    """Lovasz, the hardest pixels and the metric losses come from the reference, the others from the kernels."""
    terms = (("iou", 0.5), ("jaccard_metric", 1.0), ("top_k", 0.5), ("lovasz", 0.3), ("cross_entropy", 1.0))
    spec = LossSpec(terms, (0.5, 1.0, 2.0, 1.5, 1.0), ignore_index=2, label_smoothing=0.1)
    check(*made((2, 7, 9), 5, 3, ignored=2), spec, "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("shape", "classes"), SHAPES)
def test_equals_the_reference(shape: tuple[int, ...], classes: int, variant: str, dtype: str) -> None:
    settings = VARIANTS[variant]
    if settings.get("background") == "mask" and classes == 2:
        classes = 3
    kind = "int16" if settings.get("ignore_index", 0) < 0 else "uint8"
    spec = LossSpec(EVERY, WEIGHTS[:classes], **settings)
    check(*made(shape, classes, 1, settings.get("ignore_index"), kind), spec, dtype)


@pytest.mark.parametrize("term", [name for name, _ in EVERY])
def test_each_term_alone(term: str) -> None:
    for background in ("train", "mask"):
        check(*made((2, 9, 40), 5, 2), LossSpec(((term, 2.0),), background=background), "float32")


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"])
def test_labels_of_every_integer_type(kind: str) -> None:
    check(*made((2, 5, 13), 5, 3, kind=kind), LossSpec(EVERY, WEIGHTS[:5]), "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_confident_logits_lose_nothing(dtype: str) -> None:
    """Probabilities of 1e-40, whose fifth powers float32 does not have."""
    logits = np.tile(np.array([90.0, 0, -90, 5, 1]), (5, 1))
    check(logits, np.arange(5), LossSpec(EVERY), dtype)
    check(logits * 0.2, np.arange(5), LossSpec(EVERY, background="mask"), dtype)


def test_nearly_right_pixels_keep_their_digits() -> None:
    """1 - p of 1e-7, which is but a bit or two if it comes from a subtraction."""
    check(
        np.tile(np.array([17.0, 0, -1, 1, 0.5]), (3, 1)),
        np.zeros(3, int),
        LossSpec((("focal", 1.0),), gamma=0.5),
        "float32",
    )


def test_many_blocks_and_a_view() -> None:
    logits, labels = made((3, 64, 65), 5, 4)
    check(logits, labels, LossSpec(EVERY, WEIGHTS[:5], background="mask"), "float32")
    z, y = cupy.asarray(logits.astype("f4")), cupy.asarray(labels)
    spec = LossSpec(EVERY)
    value, _, state = loss_forward(z[1:], y[1:], spec)  # starts at no multiple of 16 bytes
    again, _, _ = loss_forward(z[1:].copy(), y[1:].copy(), spec)
    assert value.get() == again.get()
    one = cupy.ones((), "f4")
    assert (
        loss_backward(one, z[1:], y[1:], spec, state) == loss_backward(one, z[1:].copy(), y[1:].copy(), spec, state)
    ).all()


def test_same_bits_in_every_run_and_an_empty_batch() -> None:
    z, y = (cupy.asarray(a) for a in made((2, 40, 41), 5, 5))
    spec = LossSpec(EVERY, WEIGHTS[:5])
    first, second = loss_forward(z, y, spec), loss_forward(z, y, spec)
    assert first[0].get() == second[0].get()
    assert (first[2] == second[2]).all()
    check(np.zeros((0, 4, 4, 5)), np.zeros((0, 4, 4), "uint8"), spec, "float32")


def test_what_is_not_served_falls_back() -> None:
    logits, labels = made((2, 4, 5), 5, 6)
    z, y = cupy.asarray(logits), cupy.asarray(labels)
    specs = [LossSpec((("lovasz", 1.0), ("top_k", 1.0))), LossSpec(EVERY, background=(("margin", "mask"),))]
    for spec in specs:
        with kernel_log() as served:
            value, parts, state = loss_forward(z, y, spec)
            dz = loss_backward(cupy.ones(()), z, y, spec, state)
        assert [s.by for s in served] == ["reference", "reference"]
        with use_kernels("reference"):
            expected = loss_forward(logits, labels, spec)
        assert float(value) == pytest.approx(float(expected[0]), rel=1e-12)
        assert set(parts) == set(expected[1])
        np.testing.assert_allclose(
            dz.get(), reference.loss_backward(1.0, logits, labels, spec, None), rtol=1e-9, atol=1e-15
        )
    wide = np.zeros((2, 17))
    with kernel_log() as served:
        loss_forward(cupy.asarray(wide), cupy.zeros(2, int), LossSpec(EVERY))
    assert served[0].by == "reference"


@pytest.mark.parametrize("classes", [5, 7])
@pytest.mark.parametrize("bad", [-3, 9, 2**40])
def test_labels_out_of_range_are_reported_by_the_next_copy(classes: int, bad: int) -> None:
    """Of the fast and of the plain kernels, forward and backward; never an ignored pixel."""
    logits, labels = made((2, 9, 31), classes, 8, kind="int64")
    right, shown = cupy.asarray(labels), {2**40: "2147483647 or more"}.get(bad, bad)
    labels[1, 2, 30], labels[1, 8, 0] = bad, 77
    z, y, spec = cupy.asarray(logits.astype("f4")), cupy.asarray(labels), LossSpec(EVERY, ignore_index=-100)
    message = rf"labels holds {shown} at \(1, 2, 30\), expected 0 to {classes - 1}, or -100 to ignore"
    value, _, state = loss_forward(z, y, spec)
    with pytest.raises(ValueError, match="loss_forward: " + message):
        fetch([value])
    assert np.isfinite(fetch([loss_forward(z, right, spec)[0]])).all()
    dz = loss_backward(cupy.ones((), "f4"), z, y, spec, state)
    with pytest.raises(ValueError, match="loss_backward: " + message):
        to_numpy(dz)


def test_launch_geometry() -> None:
    assert cuda.sums_launch(513, "float", 5, 1).grid == (2,)
    assert cuda.sums_launch(10**8, "float", 5, 1).grid == (cuda.MOST_PARTS,)
    assert cuda.gradient_launch(129, "double", 7, 0) == cuda.Launch("loss_gradient_plain<double>", (2,), (128,))
    assert cuda.sums_launch(0, "float", 5, 0).threads == 0


@trace_only
def test_memory_is_read_in_whole_sectors() -> None:
    """5 floats per pixel in runs of 16 bytes per lane: 16 sectors of a request's 512 bytes, none read twice; shared
    memory without conflicts.
    """
    logits, labels = made((1, 32, 64), 5, 7)
    z, y = cupy.asarray(logits.astype("f4")), cupy.asarray(labels)
    spec = LossSpec(EVERY, background="mask")
    with clean() as report:
        _, _, state = loss_forward(z, y, spec)
        loss_backward(cupy.ones((), "f4"), z, y, spec, state)
    for name in ("loss_sums", "loss_gradient"):
        kernel = report.kernel(name)
        assert kernel.sectors_per_request_of(kind="load") <= 16
        assert kernel.global_efficiency > 0.9
        assert kernel.bank_conflict_factor < 1.1
    assert report.kernel("loss_gradient").sectors_per_request_of(kind="store") == 16


def _several() -> None:
    check(*made((2, 19, 31), 5, 1), LossSpec(EVERY, WEIGHTS[:5], background="mask"), "float32")


def _plain() -> None:
    check(*made((2, 9, 17), 7, 1), LossSpec(EVERY, WEIGHTS[:7]), "float32")


BARRIER = "load(tile, logits + (size_t)start * WIDE, count);\n    __syncthreads();"
SOURCE = cuda.MODULES["float"]
MUTANTS = [
    Mutant(
        "the tile is used before it is there",
        SOURCE,
        BARRIER,
        BARRIER.replace("__syncthreads();", ""),
        ("trace",),
        _several,
    ),
    Mutant(
        "the last vector of a tile is not cut",
        SOURCE,
        "if (e + VECTOR <= elements) {\n        const",
        "if (e < elements) {\n        const",
        ("check", "trace"),
        _several,
    ),
    Mutant(
        "pixels beyond the last",
        SOURCE,
        "  if (i >= pixels) return;\n",
        "  if (i > pixels) return;\n",
        ("check", "trace"),
        _plain,
    ),
    Mutant(
        "a lane keeps its neighbour's number", SOURCE, "if (lane == k) mine", "if (lane == (k ^ 1)) mine", ANY, _several
    ),
    Mutant(
        "a warp's sums are lost",
        SOURCE,
        "for (int k = 1; k < WARPS; ++k) total",
        "for (int k = 2; k < WARPS; ++k) total",
        ANY,
        _several,
    ),
    Mutant(
        "A and B swapped",
        SOURCE,
        "return state[PER_CLASS + MOST + c] + (c == y ? state[PER_CLASS + c]",
        "return state[PER_CLASS + c] + (c == y ? state[PER_CLASS + MOST + c]",
        ANY,
        _several,
    ),
    Mutant(
        "powers scaled by the wrong class",
        SOURCE,
        "exp(s.power * (z[c] - worst))",
        "exp(s.power * (z[c] - top))",
        ANY,
        lambda: test_confident_logits_lose_nothing("float32"),
    ),
    Mutant(
        "the masked class keeps its gradient", SOURCE, "for (int c = 0; c < FIRST; ++c) mine[c] = 0;", "", ANY, _several
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_planted_mistake_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_caught(mutant, monkeypatch)
