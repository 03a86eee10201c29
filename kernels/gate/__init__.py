"""Sigmoid gates and blends, forward and backward."""

from kernels.core.dispatch import operator
from kernels.gate import reference

_FAST = {"cpu": "kernels.gate.cpu", "cuda": "kernels.gate.cuda"}

gate_forward = operator(reference.gate_forward, **_FAST)
gate_backward = operator(reference.gate_backward, **_FAST)
blend_forward = operator(reference.blend_forward, **_FAST)
blend_backward = operator(reference.blend_backward, **_FAST)
