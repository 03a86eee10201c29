"""The gradient checker: every verdict provoked, planted entries found, and each of its other checks able to fail."""

from __future__ import annotations

import json

import numpy as np
import pytest

from autograd import Function, GradReport, Tensor, assert_gradients, gradcheck, numeric_gradients, ops, random
from autograd.gradcheck import CONVENTIONS, FAIL, INCONCLUSIVE, KINK, PASS, ridders, step_curve

RNG = np.random.default_rng(0)


def leaf(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(1).standard_normal(shape), requires_grad=True)


class Sine(Function):
    """sin, with a backward that can be spoiled: change(gradient) -> gradient."""

    def __init__(self, change=lambda g: g, forward=np.sin) -> None:
        super().__init__()
        self.change, self.compute = change, forward

    def forward(self, x):
        self.save(x)
        return self.compute(x)

    def backward(self, dy):
        (x,) = self.saved
        return self.change(dy * np.cos(x))


def sine(change=lambda g: g):
    return lambda x: Sine(change)(x)


def at(index, factor):
    def change(g):
        g = g.copy()
        g[index] *= factor
        return g

    return change


# -- the derivative ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "slope"), [(np.exp, 1.0), (np.sin, 1.0), (lambda t: 1 / (1 - t), 1.0), (lambda t: t**3 - 2 * t, -2.0)]
)
def test_ridders_is_within_its_own_error(f, slope: float) -> None:
    table = ridders(lambda h: ((f(h) - f(-h)) / (2 * h), 1e-16 / h))
    assert abs(table.value - slope) <= table.error < 1e-10
    assert table.chosen in table.steps
    assert len(table.steps) == len(table.central) == 12


def test_ridders_starts_anew_below_the_edge_of_the_domain() -> None:
    with np.errstate(invalid="ignore"):
        table = ridders(lambda h: ((np.sqrt(1e-3 + h) - np.sqrt(1e-3 - h)) / (2 * h), 1e-16 / h))
    assert np.isnan(table.central[0])
    assert abs(table.value - 0.5 / np.sqrt(1e-3)) <= 10 * table.error < 1e-6


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_pass_and_what_the_report_says() -> None:
    report = gradcheck(
        ops.conv2d, leaf(1, 5, 6, 2), leaf(3, 3, 2, 3), leaf(3), input_names=["x", "w", "b"], name="conv"
    )
    assert (report.verdict, report.ok, bool(report)) == (PASS, True, True)
    assert report.error <= report.bar < 1e-9
    assert report.evaluations < 45
    assert report.size == 60 + 54 + 3
    assert all(f.holds for f in report.facts)
    names = [f.name for f in report.facts]
    assert sum("exact step" in n for n in names) == 3, "a convolution is linear in each of x, w, b"
    assert any("complex" in n for n in names)
    assert sum("layout" in n for n in names) == 3
    assert "conv" in report.table()
    assert report.heatmap() == ""
    assert {"name", "verdict", "error", "bar", "evaluations", "seconds"} <= json.loads(
        json.dumps(report.row(), allow_nan=False)
    ).keys()


def test_fail_names_the_entry() -> None:
    report = gradcheck(sine(at((2, 3), 1.1)), leaf(5, 7), input_names=["x"])
    assert report.verdict == FAIL
    assert not report
    (entry,) = report.location.entries
    assert (entry.leaf, entry.index, entry.place) == ("x", (2, 3), "interior")
    assert entry.ratio == pytest.approx(1.1, rel=1e-6)
    drawn = report.heatmap().splitlines()[1:]
    assert [(i, line.index("@") - 1) for i, line in enumerate(drawn) if "@" in line] == [(2, 3)]
    assert "x[2, 3] (interior)" in report.table()
    assert json.loads(json.dumps(report.row()))["wrong"][0]["index"] == [2, 3]
    with pytest.raises(AssertionError, match=r"x\[2, 3\]"):
        assert_gradients(sine(at((2, 3), 1.1)), leaf(5, 7), input_names=["x"])


def test_kink_needs_a_convention_to_be_ok() -> None:
    x = Tensor(np.array([-1.0, 0.0, 2.0, 0.0, 0.5]), requires_grad=True)
    named, unnamed, wrong = (gradcheck(ops.relu, x, convention=c) for c in ("below", None, "above"))
    assert (named.verdict, named.ok) == (KINK, True)
    assert (unnamed.verdict, unnamed.ok) == (KINK, False)
    assert wrong.verdict == FAIL
    assert named.kinks == [(0, (1,)), (0, (3,))]
    assert np.isfinite(named.kink_distance[0][[1, 3]]).all()
    assert np.isinf(named.kink_distance[0][[0, 2, 4]]).all()
    assert "AGAINST the convention" in wrong.table()


def test_a_wrong_smooth_entry_is_found_beside_a_kink() -> None:
    class Half(Function):
        def forward(self, x):
            self.save(x)
            return x.clip(0, None)

        def backward(self, dy):
            g = dy * (self.saved[0] > 0)
            g[2] *= 0.5
            return g

    report = gradcheck(
        lambda x: Half()(x), Tensor(np.array([-1.0, 0.0, 2.0, 0.5]), requires_grad=True), convention="below"
    )
    assert report.verdict == FAIL
    assert [e.index for e in report.location.entries] == [(2,)]
    assert "a factor 2 is missing" in report.table()


def test_a_gradient_outside_the_two_slopes_fails_without_a_convention() -> None:
    class Three(Function):
        def forward(self, x):
            self.save(x)
            return np.abs(x)

        def backward(self, dy):
            return dy * np.where(self.saved[0] == 0, 3.0, np.sign(self.saved[0]))

    assert gradcheck(lambda x: Three()(x), Tensor(np.array([0.0, 1.0]), requires_grad=True)).verdict == FAIL


@pytest.mark.parametrize(
    ("fn", "x", "holds", "fails"),
    [
        (ops.relu, [0.0, 1, -1], "below", "above"),
        (ops.leaky_relu, [0.0, 1, -1], "below", "above"),
        (lambda x: ops.max(x, axis=-1), [[1.0, 2, 2, 0], [3, 3, 1, 0]], "share", "first"),
        (lambda x: ops.max(x, axis=-1), [[1.0, 2, 2, 0], [3, 3, 1, 0]], "any", "last"),
        (lambda x: ops.max_pool2d(ops.reshape(x, (1, 2, 4, 1)), 2), [1.0, 1, 2, 0, 1, 0, 2, 2], "first", "last"),
        (lambda x: ops.max_pool2d(ops.reshape(x, (1, 2, 4, 1)), 2), [1.0, 1, 2, 0, 1, 0, 2, 2], "first", "share"),
    ],
)
def test_conventions_of_the_operators(fn, x, holds: str, fails: str) -> None:
    for seed in range(5):
        x = Tensor(np.array(x), requires_grad=True) if not isinstance(x, Tensor) else x
        assert gradcheck(fn, x, convention=holds, seed=seed).verdict == KINK
        assert gradcheck(fn, x, convention=fails, seed=seed).verdict == FAIL
    assert all(c.text for c in CONVENTIONS.values())


def test_a_kink_just_beside_the_point_is_left_and_counted() -> None:
    report = gradcheck(ops.relu, Tensor(np.array([-1.0, 1e-8, 2.0]), requires_grad=True))
    assert report.verdict == PASS
    assert report.resampled >= 1
    assert report.row()["resampled"] == report.resampled
    none_left = gradcheck(ops.relu, Tensor(np.array([-1.0, 1e-8, 2.0]), requires_grad=True), resamples=0)
    assert none_left.verdict == INCONCLUSIVE
    assert "kink" in none_left.table()


def test_inconclusive_when_the_function_is_rough_or_random_or_not_finite() -> None:
    class Rough(Function):
        def forward(self, x):
            return x + 1e-6 * np.sin(1e12 * x)

        def backward(self, dy):
            return dy

    rough = gradcheck(lambda x: Rough()(x), leaf(4), invariants=False)
    assert rough.verdict == INCONCLUSIVE
    assert rough.resampled == 3
    loose = gradcheck(lambda x: ops.dropout(x, 0.5), leaf(40))
    assert loose.verdict == INCONCLUSIVE
    assert "fix the seed" in loose.table()
    with np.errstate(all="ignore"):
        assert (
            gradcheck(ops.log, Tensor(np.array([1.0, -1.0]), requires_grad=True), invariants=False).verdict
            == INCONCLUSIVE
        )

    def seeded(x):
        random.seed(0)
        return ops.dropout(x, 0.5)

    assert gradcheck(seeded, leaf(40)).verdict == PASS


def test_a_function_near_the_edge_of_its_domain_passes() -> None:
    assert gradcheck(ops.log, Tensor(np.array([0.02, 1.0]), requires_grad=True)).verdict == PASS


def test_leaves_are_put_back_and_unused_inputs_have_a_zero_gradient() -> None:
    x, y = leaf(3), leaf(4)
    before = x.data, y.data
    assert gradcheck(lambda a, b: a * a, x, y).verdict == PASS
    assert (x.data is before[0], y.data is before[1]) == (True, True)
    assert gradcheck(lambda a, b: ops.mul(a, b.sum()), x, y).verdict == PASS


def test_several_outputs_and_directions() -> None:
    report = gradcheck(lambda x: ops.split(x, (1, 2)), leaf(4, 3), directions=5)
    assert report.verdict == PASS
    assert len(report.trials) == 5
    assert "5: error / bar median" in report.table()
    assert len({t.analytic for t in report.trials}) == 5
    wrong = gradcheck(sine(at(0, 1.01)), leaf(6), directions=3)
    assert [t.verdict for t in wrong.trials] == [FAIL] * 3


# -- localisation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "place"),
    [((0, 0, 0, 0), "corner"), ((0, 31, 7, 1), "border"), ((0, 12, 30, 0), "interior"), ((0, 31, 31, 2), "corner")],
)
def test_bisection_finds_one_entry_in_a_few_dozen_evaluations(index, place: str) -> None:
    for factor in (0.0, 1.1, -1.0):
        report = gradcheck(sine(at(index, factor)), leaf(1, 32, 32, 3), maps=False)
        assert [(e.index, e.place) for e in report.location.entries] == [(index, place)]
        assert report.location.complete
        assert report.location.evaluations <= 8 * 12 + 8, "12 = log2(4096) halvings"
        assert report.location.entries[0].ratio == pytest.approx(factor, rel=1e-5, abs=1e-8)


def test_bisection_finds_entries_of_several_inputs() -> None:
    class Product(Function):
        def forward(self, x, y):
            self.save(x, y)
            return x * y

        def backward(self, dy):
            x, y = self.saved
            return at(5, 2.0)(dy * y), at(7, -1.0)(dy * x)

    report = gradcheck(
        lambda x, y: Product()(x, y),
        leaf(40),
        Tensor(np.random.default_rng(2).uniform(1, 2, 40), requires_grad=True),
        maps=False,
    )
    assert {(e.leaf, e.index) for e in report.location.entries} == {("input 0", (5,)), ("input 1", (7,))}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: 0.5 * g, "a factor 2 is missing"),
        (lambda g: -g, "the sign is wrong"),
        (lambda g: 0 * g, "the analytic gradient is 0"),
        (at((slice(None), -1), 0.98), "index 5 of axis 1, the last"),
        (at((slice(None), slice(None), 0), 0.98), "index 0 of axis 2, the first"),
        (lambda g: np.flip(g, 1).copy(), "flipped along axis 1"),
        (lambda g: np.roll(g, 1, 2), r"shifted by \+1 along axis 2"),
        (lambda g: g.transpose(0, 2, 1).copy(), "axes 1 and 2 swapped"),
        (lambda g: g.astype(np.float32).astype(np.float64), "float32"),
        (lambda g: g + 1e-3, "zero cotangent"),
    ],
)
def test_what_the_wrong_entries_have_in_common(change, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        assert_gradients(sine(change), leaf(2, 6, 6))


# -- the other checks -------------------------------------------------------------------------------------------------


def broken(report: GradReport) -> list[str]:
    assert report.verdict == FAIL
    return [f.name for f in report.facts if not f.holds]


def test_inputs_that_are_written_to() -> None:
    def fn(x):
        out = Sine()(x)
        x.data[0] = 1.0
        return out

    assert "inputs unchanged" in broken(gradcheck(fn, leaf(4)))

    labels = np.zeros(3, int)

    def counting(x, y):
        y[0] += 1
        return Sine()(x)

    assert "inputs unchanged" in broken(gradcheck(counting, leaf(4), labels))


def test_a_backward_that_does_not_repeat() -> None:
    calls = iter(range(100))
    assert "backward repeats bit by bit" in broken(
        gradcheck(sine(lambda g: g * (1 + 2e-16 * (next(calls) % 2))), leaf(4))
    )


def test_a_backward_that_ignores_the_cotangent() -> None:
    found = broken(gradcheck(sine(lambda g: g + 1.0), leaf(4)))
    assert {"zero cotangent, zero gradient", "doubled cotangent, doubled gradient"} <= set(found)


def test_a_backward_that_writes_to_the_cotangent() -> None:
    class Greedy(Function):
        def forward(self, x):
            return x * 2

        def backward(self, dy):
            result = 2 * dy
            dy *= 0
            return result

    assert "cotangent unchanged" in broken(gradcheck(lambda x: Greedy()(x), leaf(4)))


def test_a_forward_that_believes_in_contiguous_arrays() -> None:
    def in_memory_order(x):
        return np.sin(x.ravel(order="K").reshape(x.shape))

    found = broken(gradcheck(lambda x: Sine(forward=in_memory_order)(x), leaf(3, 4)))
    assert "layout: Fortran order" in found

    def refuses(x):
        if x.strides[0] == 0:
            raise ValueError("no broadcast views here")
        return np.sin(x)

    assert broken(gradcheck(lambda x: Sine(forward=refuses)(x), leaf(3, 4))) == ["layout: broadcast view"]


def test_the_exact_step_sees_what_the_finite_difference_cannot() -> None:
    """An error of 1e-12 of the gradient lies below the difference's bar; a linear operator allows no such excuse."""

    class Triple(Function):
        def forward(self, x):
            return 3 * x

        def backward(self, dy):
            return 3 * (1 + 1e-12) * dy

    report = gradcheck(lambda x: Triple()(x), Tensor(np.ones(1), requires_grad=True))
    assert report.trials[0].verdict == PASS
    assert any("exact step" in name for name in broken(report))


def test_the_complex_step_is_a_second_opinion() -> None:
    report = gradcheck(sine(lambda g: g * (1 + 1e-12)), Tensor(np.ones(1), requires_grad=True))
    assert report.trials[0].verdict == PASS
    assert broken(report) == ["complex step (second opinion)"]
    names = [f.name for f in gradcheck(ops.sigmoid, leaf(4)).facts]
    assert not any("complex" in n for n in names), "sigmoid is computed with |x|, which is not analytic"


def test_gradients_of_the_wrong_shape_or_dtype_fail() -> None:
    assert "shape (1, 4)" in gradcheck(sine(lambda g: g[None]), leaf(4)).table()
    assert "float32" in gradcheck(sine(lambda g: g.astype(np.float32)), leaf(4)).table()
    assert gradcheck(sine(lambda g: None), leaf(4)).verdict == FAIL


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradcheck(ops.tanh, Tensor(np.ones(3))), ValueError, "no input requires gradients"),
        (
            lambda: gradcheck(ops.tanh, Tensor(np.ones(3, np.float32), requires_grad=True)),
            TypeError,
            "input 0 is float32; finite differences need",
        ),
        (
            lambda: gradcheck(ops.tanh, leaf(3), convention="left"),
            ValueError,
            "convention is 'left', expected one of below",
        ),
        (
            lambda: gradcheck(ops.tanh, leaf(3), convention="below", convention_input=1),
            ValueError,
            "convention_input is 1",
        ),
        (lambda: gradcheck(ops.tanh, leaf(3), input_names=["x", "y"]), ValueError, "2 input_names for 1 inputs"),
        (lambda: gradcheck(ops.tanh, leaf(3), directions=0), ValueError, "directions is 0"),
        (lambda: gradcheck(lambda x: 3.0, leaf(3)), ValueError, "gave float, expected at least one Tensor"),
    ],
)
def test_bad_arguments_are_named(call, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# -- pictures and PyTorch ---------------------------------------------------------------------------------------------


def test_numeric_gradients_agree_entry_by_entry() -> None:
    for m in numeric_gradients(ops.conv2d, leaf(1, 5, 4, 2), leaf(3, 3, 2, 2), input_names=["x", "w"]):
        assert m.leaf in ("x", "w")
        assert np.abs(m.difference).max() < 1e-8
        assert np.abs(m.analytic).max() > 0.1


def test_the_step_curve_is_a_v() -> None:
    curve = step_curve(ops.tanh, leaf(5))
    best = int(curve.error.argmin())
    assert 1e-8 < curve.steps[best] < 1e-3
    assert curve.error[0] > 1e3 * curve.error[best]
    assert curve.error[-1] > 1e3 * curve.error[best]
    assert curve.estimate < 1e-10
    assert curve.analytic_error <= 10 * curve.estimate


def test_pytorch_functions_under_this_checker_and_ours_under_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: the adapter has nothing to adapt")
    from autograd.gradcheck.torch_adapter import to_torch, torch_gradcheck

    x, w = (
        torch.randn(*s, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
        for s in ((3, 5), (4, 5))
    )
    assert torch_gradcheck(torch.nn.functional.linear, x, w).verdict == PASS
    assert torch_gradcheck(torch.nn.functional.softplus, x).verdict == PASS
    at_zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch_gradcheck(torch.relu, at_zero, convention="below").verdict == KINK
    assert torch.autograd.gradcheck(to_torch(ops.tanh), (x,))
    assert not torch.autograd.gradcheck(to_torch(sine(lambda g: 2 * g)), (x,), raise_exception=False)

    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, t):
            return t**2

        @staticmethod
        def backward(ctx, dy):
            return dy

    assert torch_gradcheck(Bad.apply, x).verdict == FAIL
