"""Sigmoid gates and blends, forward and backward."""

from kernels.core.dispatch import operator
from kernels.gate import reference

gate_forward = operator(reference.gate_forward, cpu="kernels.gate.cpu")
gate_backward = operator(reference.gate_backward, cpu="kernels.gate.cpu")
blend_forward = operator(reference.blend_forward)
blend_backward = operator(reference.blend_backward)
