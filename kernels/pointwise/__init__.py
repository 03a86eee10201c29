"""Activations, softmax, dropout: forward and backward."""

from kernels.core.dispatch import operator
from kernels.pointwise import reference

relu_forward = operator(reference.relu_forward, cpu="kernels.pointwise.cpu")
add_relu_forward = operator(reference.add_relu_forward, cpu="kernels.pointwise.cpu")
relu_backward = operator(reference.relu_backward, cpu="kernels.pointwise.cpu")
leaky_relu_forward = operator(reference.leaky_relu_forward)
leaky_relu_backward = operator(reference.leaky_relu_backward)
sigmoid_forward = operator(reference.sigmoid_forward, cpu="kernels.pointwise.cpu")
sigmoid_backward = operator(reference.sigmoid_backward, cpu="kernels.pointwise.cpu")
tanh_forward = operator(reference.tanh_forward, cpu="kernels.pointwise.cpu")
tanh_backward = operator(reference.tanh_backward, cpu="kernels.pointwise.cpu")
silu_forward = operator(reference.silu_forward, cpu="kernels.pointwise.cpu")
silu_backward = operator(reference.silu_backward, cpu="kernels.pointwise.cpu")
gelu_forward = operator(reference.gelu_forward, cpu="kernels.pointwise.cpu")
gelu_backward = operator(reference.gelu_backward, cpu="kernels.pointwise.cpu")
softmax_forward = operator(reference.softmax_forward)
softmax_backward = operator(reference.softmax_backward)
log_softmax_forward = operator(reference.log_softmax_forward)
log_softmax_backward = operator(reference.log_softmax_backward)
dropout_forward = operator(reference.dropout_forward, cpu="kernels.pointwise.cpu")
