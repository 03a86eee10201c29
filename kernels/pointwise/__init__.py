"""Activations, softmax, dropout: forward and backward."""

from kernels.core.dispatch import operator
from kernels.pointwise import reference

relu_forward = operator(reference.relu_forward)
relu_backward = operator(reference.relu_backward)
leaky_relu_forward = operator(reference.leaky_relu_forward)
leaky_relu_backward = operator(reference.leaky_relu_backward)
sigmoid_forward = operator(reference.sigmoid_forward)
sigmoid_backward = operator(reference.sigmoid_backward)
tanh_forward = operator(reference.tanh_forward)
tanh_backward = operator(reference.tanh_backward)
silu_forward = operator(reference.silu_forward)
silu_backward = operator(reference.silu_backward)
gelu_forward = operator(reference.gelu_forward)
gelu_backward = operator(reference.gelu_backward)
softmax_forward = operator(reference.softmax_forward)
softmax_backward = operator(reference.softmax_backward)
log_softmax_forward = operator(reference.log_softmax_forward)
log_softmax_backward = operator(reference.log_softmax_backward)
dropout_forward = operator(reference.dropout_forward)
