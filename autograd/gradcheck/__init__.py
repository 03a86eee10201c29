"""Gradient checks with their own error bar.

    from autograd import Tensor, gradcheck, ops
    report = gradcheck(ops.conv2d, Tensor(x, requires_grad=True), Tensor(w, requires_grad=True))
    report.verdict, report.table(), report.heatmap()

The gradient is compared along a random direction u with the numerical derivative of phi(t) = <v, f(x + t u) - f(x)>, v
a random cotangent. Central differences at shrinking steps, extrapolated (Ridders), give the derivative and an estimate
of its own error, so no tolerance is
chosen: the bar is ten times that estimate plus round-off. One backward and about 25 forwards test all entries of all
    inputs at once.

ridders.py    the derivative and its error          probe.py     f along a direction, against a cotangent
kinks.py      second differences, conventions       facts.py     layouts, repeatability, exact and complex steps, ...
locate.py     bisection for the wrong entries       report.py    GradReport
check.py      gradcheck, assert_gradients           curves.py    numeric_gradients, step_curve: what pictures are made
of
torch_adapter.py   PyTorch functions under this checker, ours under PyTorch's (the only file that imports torch)
"""

from autograd.gradcheck.check import WIDEST_BAR, assert_gradients, gradcheck
from autograd.gradcheck.curves import StepCurve, numeric_gradients, step_curve
from autograd.gradcheck.facts import Fact
from autograd.gradcheck.kinks import CONVENTIONS, Convention
from autograd.gradcheck.locate import EntryMap, Location, WrongEntry
from autograd.gradcheck.report import FAIL, INCONCLUSIVE, KINK, PASS, GradReport, Trial
from autograd.gradcheck.ridders import FIRST_STEP, SHRINK, STEPS, Tableau, ridders

__all__ = [
    "CONVENTIONS",
    "FAIL",
    "FIRST_STEP",
    "INCONCLUSIVE",
    "KINK",
    "PASS",
    "SHRINK",
    "STEPS",
    "WIDEST_BAR",
    "Convention",
    "EntryMap",
    "Fact",
    "GradReport",
    "Location",
    "StepCurve",
    "Tableau",
    "Trial",
    "WrongEntry",
    "assert_gradients",
    "gradcheck",
    "numeric_gradients",
    "ridders",
    "step_curve",
]
