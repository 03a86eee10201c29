"""Activations, softmax, dropout: forward and backward."""

from kernels.core.dispatch import operator
from kernels.pointwise import reference

_FAST = {"cpu": "kernels.pointwise.cpu.activations", "cuda": "kernels.pointwise.cuda"}
_SOFTMAX = {**_FAST, "cpu": "kernels.pointwise.cpu.softmax"}

relu_forward = operator(reference.relu_forward, "x any (*S)", **_FAST)
add_relu_forward = operator(
    reference.add_relu_forward, "x any (*S); other any (*S)", cpu="kernels.pointwise.cpu.activations"
)
relu_backward = operator(reference.relu_backward, "dy any (*S); y any (*S)", **_FAST)
leaky_relu_forward = operator(reference.leaky_relu_forward, "x any (*S)", cuda="kernels.pointwise.cuda")
leaky_relu_backward = operator(reference.leaky_relu_backward, "dy any (*S); x any (*S)", cuda="kernels.pointwise.cuda")
sigmoid_forward = operator(reference.sigmoid_forward, "x any (*S)", **_FAST)
sigmoid_backward = operator(reference.sigmoid_backward, "dy any (*S); y any (*S)", **_FAST)
tanh_forward = operator(reference.tanh_forward, "x any (*S)", **_FAST)
tanh_backward = operator(reference.tanh_backward, "dy any (*S); y any (*S)", **_FAST)
silu_forward = operator(reference.silu_forward, "x any (*S)", **_FAST)
silu_backward = operator(reference.silu_backward, "dy any (*S); x any (*S)", **_FAST)
gelu_forward = operator(reference.gelu_forward, "x any (*S)", **_FAST)
gelu_backward = operator(reference.gelu_backward, "dy any (*S); x any (*S)", **_FAST)
softmax_forward = operator(reference.softmax_forward, "x any (*S); where -len(S) <= axis < len(S)", **_SOFTMAX)
softmax_backward = operator(
    reference.softmax_backward, "dy any (*S); y any (*S); where -len(S) <= axis < len(S)", **_SOFTMAX
)
log_softmax_forward = operator(reference.log_softmax_forward, "x any (*S); where -len(S) <= axis < len(S)", **_SOFTMAX)
log_softmax_backward = operator(
    reference.log_softmax_backward, "dy any (*S); y any (*S); where -len(S) <= axis < len(S)", **_SOFTMAX
)
dropout_forward = operator(reference.dropout_forward, "x any (*S)", **{**_FAST, "cpu": "kernels.pointwise.cpu.dropout"})
