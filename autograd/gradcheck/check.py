"""The check itself: `gradcheck` and its assert form."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autograd.gradcheck import facts
from autograd.gradcheck.kinks import CONVENTIONS, KinkTest, displaced_derivative, one_sided_interval
from autograd.gradcheck.locate import STEP, WHOLE_MAP, entry_maps, from_maps, locate
from autograd.gradcheck.probe import Probe
from autograd.gradcheck.report import FAIL, INCONCLUSIVE, KINK, PASS, WORSE, GradReport, Trial
from autograd.gradcheck.ridders import FIRST_STEP, Tableau, ridders
from autograd.tensor import Tensor

WIDEST_BAR = 1e-5  # a wider bar proves nothing
SAFETY = 10.0  # the bar in units of the estimated error
SECOND_LADDER = 0.6  # the first step of the second opinion, in units of the first's
NUDGE = 2.0**-10  # distance of a resampled point from the given one
MAP_SECONDS = 5.0  # CPU time that whole maps may cost on FAIL


def gradcheck(
    fn: Callable[..., Any],
    *inputs: Any,
    parameters: Sequence[Tensor] | None = None,
    seed: int = 0,
    directions: int = 1,
    name: str | None = None,
    input_names: Sequence[str] | None = None,
    first_step: float = FIRST_STEP,
    convention: str | None = None,
    convention_input: int = 0,
    resamples: int = 3,
    invariants: bool = True,
    locate_errors: bool = True,
    maps: bool = True,
) -> GradReport:
    """Check the gradient of fn(*inputs) with respect to every float64 input that requires it and to `parameters`.

    fn: an operator, your own Function's wrapper, a module or a loss; it returns a Tensor or a tuple of Tensors and must
        be deterministic.
    inputs: Tensors (checked when requires_grad) or anything else (passed through).
    parameters: further Tensors to check; by default those of fn, if it is a module (has `named_parameters`).
    name, input_names: names of the operator and of the inputs in the report.
    directions: how many random directions; the worst is reported, all are in `.trials`.   first_step: the tableau's
        largest step.
    convention: the gradient at kinks, a key of CONVENTIONS ('below', 'first', 'share', ...), with
        `convention_input` the number of the checked input that decides the side. Without it a kink only needs a value
        between the one-sided slopes, and its verdict KINK is not `ok`.
    resamples: how many nearby points may be drawn when kinks near x make the bar too wide.
    invariants: also the checks of autograd.gradcheck.facts.   locate_errors: search for the wrong entries on FAIL, by
        bisection.
    maps: on FAIL of a small function also the whole gradient entry by entry, for `.heatmap()` and to find what the
    wrong entries have in common.

    The verdict is FAIL when |analytic - numeric| exceeds ten times the estimated error of the numeric derivative plus
    round-off, and does so again with other steps. Raises TypeError when a checked array is not float64, ValueError when
    there is nothing to check.
    """
    name = name or str(getattr(fn, "__name__", type(fn).__name__))
    leaves, names, count = checked_leaves(name, fn, inputs, parameters, input_names)
    if convention is not None and convention not in CONVENTIONS:
        raise ValueError(f"gradcheck of {name}: convention is {convention!r}, expected one of {', '.join(CONVENTIONS)}")
    if not 0 <= convention_input < len(leaves):
        raise ValueError(
            f"gradcheck of {name}: convention_input is {convention_input}, expected 0 to {len(leaves) - 1}"
        )
    if directions < 1:
        raise ValueError(f"gradcheck of {name}: directions is {directions}, expected at least 1")
    start = time.perf_counter()
    originals = [leaf.data for leaf in leaves]
    report = GradReport(
        name, PASS, 0.0, 0.0, 0.0, 0.0, 0, 0.0, seed=seed, size=sum(x.size for x in originals), convention=convention
    )
    side = None if convention is None else (convention, convention_input)
    probes: list[Probe] = []
    try:
        for k in range(directions):
            for attempt in range(resamples + 1):
                rng = np.random.default_rng((seed, k, attempt) if attempt else (seed, k))
                if attempt:
                    report.resampled += 1
                    _nudge(leaves, originals, rng)
                trial, probe, kinks = _direction(fn, inputs, leaves, names, rng, first_step, side, report)
                probes.append(probe)
                if trial.verdict != INCONCLUSIVE:
                    break
            report.trials.append(trial)
            if not report.kinks:
                report.kinks = kinks.where()
                report.kink_distance = kinks.distance
            if k == 0 and invariants:
                _invariants(report, probe, count, trial)
            if trial.verdict == FAIL and trial.smooth and locate_errors and report.location is None:
                _locate(report, probe, maps)
            for leaf, x in zip(leaves, originals, strict=True):
                leaf.data = x
    except _BrokenBackward as error:
        report.notes.append(str(error))
        report.verdict = FAIL
    finally:
        for leaf, x in zip(leaves, originals, strict=True):
            leaf.data = x
    report.evaluations = sum(probe.evaluations for probe in probes)
    _conclude(report)
    report.seconds = time.perf_counter() - start
    return report


def assert_gradients(fn: Callable[..., Any], *inputs: Any, **settings: Any) -> GradReport:
    """`gradcheck` that raises AssertionError with the table unless the report is `ok` (PASS, or KINK with a named
    convention).
    """
    report = gradcheck(fn, *inputs, **settings)
    if not report.ok:
        raise AssertionError("\n".join(["gradient check", report.table(), report.heatmap()]).rstrip())
    return report


class _BrokenBackward(Exception):
    """backward raised: a gradient of the wrong shape or dtype, none at all, or an error of its own."""


def checked_leaves(
    name: str,
    fn: Any,
    inputs: Sequence[Any],
    parameters: Sequence[Tensor] | None,
    input_names: Sequence[str] | None = None,
) -> tuple[list[Tensor], list[str], int]:
    """The checked Tensors, their names, and how many of them are inputs. Raises as `gradcheck` does."""
    if input_names is not None and len(input_names) != len(inputs):
        raise ValueError(f"gradcheck of {name}: got {len(input_names)} input_names for {len(inputs)} inputs")
    called = input_names or [f"input {k}" for k in range(len(inputs))]
    found = [(called[k], x) for k, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
    count = len(found)
    known = {id(p): n for n, p in fn.named_parameters()} if hasattr(fn, "named_parameters") else {}
    if parameters is None:
        parameters = [p for _, p in fn.named_parameters()] if known else ()
    found += [(known.get(id(p), f"parameter {k}"), p) for k, p in enumerate(parameters)]
    if not found:
        raise ValueError(f"gradcheck of {name}: no input requires gradients and no parameters were given")
    for what, leaf in found:
        if leaf.dtype != np.float64:
            raise TypeError(f"gradcheck of {name}: {what} is {leaf.dtype}; finite differences need float64")
    return [x for _, x in found], [n for n, _ in found], count


def _nudge(leaves: list[Tensor], originals: list[Any], rng: np.random.Generator) -> None:
    from autograd.gradcheck.probe import moved, signed

    for leaf, x in zip(leaves, originals, strict=True):
        leaf.data = moved(x, NUDGE, signed(rng, x.shape))


def _direction(
    fn: Callable[..., Any],
    inputs: Sequence[Any],
    leaves: list[Tensor],
    names: list[str],
    rng: np.random.Generator,
    first_step: float,
    side: tuple[str, int] | None,
    report: GradReport,
) -> tuple[Trial, Probe, KinkTest]:
    before = facts.snapshot([leaf.data for leaf in leaves], tuple(inputs))
    try:
        probe = Probe(fn, inputs, leaves, names, rng)
    except RuntimeError as error:
        raise _BrokenBackward(f"backward raised: {error}") from error
    if not report.facts:
        report.facts += facts.unchanged(probe, before)
    kinks = KinkTest(probe)
    trial = _judge(probe, ridders(_difference(probe, kinks), first_step), first_step)
    if kinks.confirm():
        trial = _judge_kink(probe, kinks, trial, first_step, side)
    elif not all(np.isfinite(out).all() for out in probe.outputs):
        trial.verdict = INCONCLUSIVE
        trial.notes.append("the function is not finite at the point")
    elif trial.verdict == FAIL and trial.error * probe.scale() <= kinks.near_jumps():
        trial.verdict = INCONCLUSIVE
        trial.notes.append("a kink lies so close to the point that the difference sees both slopes")
    elif trial.verdict == PASS and trial.bar > WIDEST_BAR:
        trial.verdict = INCONCLUSIVE
        trial.notes.append(
            f"the error bar {trial.bar:.1e} is too wide to say anything; is there a kink within the steps?"
        )
    return trial, probe, kinks


def _difference(probe: Probe, kinks: KinkTest | None) -> Callable[[float], tuple[float, float]]:
    noise = probe.noise()

    def difference(h: float) -> tuple[float, float]:
        plus = probe.differences(h)
        minus = probe.differences(-h)
        if kinks is not None:
            kinks.add(h, plus, minus)
        return (probe.against_v(plus) - probe.against_v(minus)) / (2 * h), noise / h

    return difference


def _judge(probe: Probe, table: Tableau, first_step: float) -> Trial:
    """PASS or FAIL. A FAIL is believed only when a second tableau, with other steps, does not contradict the first."""
    scale = probe.scale()
    analytic = probe.analytic()
    numeric = table.value
    estimate = table.error
    if abs(analytic - numeric) > SAFETY * estimate + probe.rounding():
        second = ridders(_difference(probe, None), first_step * SECOND_LADDER)
        estimate = max(estimate, second.error, abs(second.value - numeric))
        numeric = second.value if second.error < table.error else numeric
    error = abs(analytic - numeric) / scale
    bar = (SAFETY * estimate + probe.rounding()) / scale
    return Trial(PASS if error <= bar else FAIL, analytic, numeric, error, bar, table)


def _judge_kink(probe: Probe, kinks: KinkTest, trial: Trial, first_step: float, side: tuple[str, int] | None) -> Trial:
    """Some outputs have a kink at x: the others must agree as usual, these with the convention or with any mixture of
    the two slopes.

    A FAIL among the smooth outputs leaves the probe with their cotangent, so that the wrong entries can be searched
    for.
    """
    hit = kinks.at_point
    all_v = probe.v
    outputs = sum(int(h.sum()) for h in hit)
    try:
        probe.v = [np.where(h, 0.0, v) for h, v in zip(hit, all_v, strict=True)]
        if any(v.any() for v in probe.v):
            probe.gradients = probe.backward(probe.forward(), probe.v)
            trial = _judge(probe, ridders(_difference(probe, None), first_step), first_step)
            if trial.verdict == FAIL:
                trial.notes.append(f"wrong where the function is smooth ({outputs} outputs with a kink were left out)")
                return trial
        probe.v = [np.where(h, v, 0.0) for h, v in zip(hit, all_v, strict=True)]
        probe.gradients = probe.backward(probe.forward(), probe.v)
        trial = _at_kink(probe, trial, outputs, side)
        return trial
    finally:
        if trial.verdict != FAIL or not trial.smooth:
            probe.v = all_v
            probe.gradients = probe.backward(probe.forward(), probe.v)


def _at_kink(probe: Probe, trial: Trial, outputs: int, side: tuple[str, int] | None) -> Trial:
    scale = probe.scale()
    analytic = probe.analytic()
    if side is not None and side[0] != "any":
        convention = CONVENTIONS[side[0]]
        numeric, estimate = displaced_derivative(probe, convention, side[1])
        text = convention.text
    else:
        low, high, estimate = one_sided_interval(probe)
        numeric = min(max(analytic, low), high)
        text = f"{CONVENTIONS['any'].text}, {low:.6g} to {high:.6g}"
    error = abs(analytic - numeric) / scale
    bar = (SAFETY * estimate + probe.rounding()) / scale
    holds = error <= bar
    notes = [
        f"{outputs} outputs have a kink at this point; {'as documented' if holds else 'AGAINST the convention'}: {text}"
    ]
    return Trial(KINK if holds else FAIL, analytic, numeric, error, bar, trial.tableau, notes, smooth=False)


def _invariants(report: GradReport, probe: Probe, count: int, trial: Trial) -> None:
    allowance = trial.bar * probe.scale() + probe.rounding()
    try:
        report.facts += facts.repeatable(probe)
        if not all(f.holds for f in report.facts if f.name == "deterministic"):
            return
        report.facts += facts.layouts(probe, count, allowance)
        report.facts += facts.broadcast_views(probe, count)
        report.facts += facts.exact_steps(probe, count)
        if trial.verdict != KINK:
            report.facts += facts.complex_step(probe, trial.numeric, allowance)
    except RuntimeError as error:
        raise _BrokenBackward(f"backward raised: {error}") from error


def _locate(report: GradReport, probe: Probe, maps: bool) -> None:
    """The wrong entries: by bisection; for small inputs also by whole maps, which see the ones that hide from it."""
    report.location = locate(probe)
    started = time.process_time()
    probe.phi(0.0)
    if maps and probe.size <= WHOLE_MAP and 4 * probe.size * (time.process_time() - started) < MAP_SECONDS:
        report.maps = entry_maps(probe)
        largest = max(float(np.abs(m.numeric).max(initial=0)) for m in report.maps)
        whole = from_maps(report.maps, max(1e-9 * largest, SAFETY * probe.noise() / STEP))
        whole.evaluations = report.location.evaluations
        report.location = whole


def _conclude(report: GradReport) -> None:
    """The worst direction speaks for all; a broken invariant is a FAIL, a function that is not deterministic proves
    nothing.
    """
    if report.trials:
        worst = max(report.trials, key=lambda t: (WORSE.index(t.verdict), t.ratio))
        report.analytic = worst.analytic
        report.numeric = worst.numeric
        report.error = worst.error
        report.bar = worst.bar
        if report.verdict != FAIL:
            report.verdict = worst.verdict
        report.notes += worst.notes
    broken = [f for f in report.facts if not f.holds]
    report.notes += [str(f) for f in broken]
    names = {f.name for f in broken}
    if "deterministic" in names and "inputs unchanged" not in names:
        report.verdict = INCONCLUSIVE
    elif broken:
        report.verdict = FAIL
