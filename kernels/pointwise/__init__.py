"""Activations, softmax, dropout: forward and backward."""

from kernels.core.dispatch import operator
from kernels.pointwise import reference

_FAST = {"cpu": "kernels.pointwise.cpu", "cuda": "kernels.pointwise.cuda"}
_SOFTMAX = {**_FAST, "cpu": "kernels.pointwise.softmax"}

relu_forward = operator(reference.relu_forward, **_FAST)
add_relu_forward = operator(reference.add_relu_forward, cpu="kernels.pointwise.cpu")
relu_backward = operator(reference.relu_backward, **_FAST)
leaky_relu_forward = operator(reference.leaky_relu_forward, cuda="kernels.pointwise.cuda")
leaky_relu_backward = operator(reference.leaky_relu_backward, cuda="kernels.pointwise.cuda")
sigmoid_forward = operator(reference.sigmoid_forward, **_FAST)
sigmoid_backward = operator(reference.sigmoid_backward, **_FAST)
tanh_forward = operator(reference.tanh_forward, **_FAST)
tanh_backward = operator(reference.tanh_backward, **_FAST)
silu_forward = operator(reference.silu_forward, **_FAST)
silu_backward = operator(reference.silu_backward, **_FAST)
gelu_forward = operator(reference.gelu_forward, **_FAST)
gelu_backward = operator(reference.gelu_backward, **_FAST)
softmax_forward = operator(reference.softmax_forward, **_SOFTMAX)
softmax_backward = operator(reference.softmax_backward, **_SOFTMAX)
log_softmax_forward = operator(reference.log_softmax_forward, **_SOFTMAX)
log_softmax_backward = operator(reference.log_softmax_backward, **_SOFTMAX)
dropout_forward = operator(reference.dropout_forward, **{**_FAST, "cpu": "kernels.pointwise.dropout"})
