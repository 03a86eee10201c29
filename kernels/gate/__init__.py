"""Sigmoid gates and blends, forward and backward."""

from kernels.core.dispatch import operator
from kernels.gate import reference

_GATE = "x (*S, C); z (*S, 1 | C)"
_BLEND = f"{_GATE}; other (*S, C)"
_FAST = {"cpu": "kernels.gate.cpu", "cuda": "kernels.gate.cuda"}

gate_forward = operator(reference.gate_forward, _GATE, **_FAST)
gate_backward = operator(reference.gate_backward, f"{_GATE}; dy (*S, C)", **_FAST)
blend_forward = operator(reference.blend_forward, _BLEND, **_FAST)
blend_backward = operator(reference.blend_backward, f"{_BLEND}; dy (*S, C)", **_FAST)
