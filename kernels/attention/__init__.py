"""Dot-product attention and polarized self-attention, forward and backward."""

from kernels.attention import reference
from kernels.core.dispatch import operator

_QKV = "q (N, A, T, D); k (N, A, S, D); v (N, A, S, E); mask? bool float < (N, A, T, S)"
_CHANNEL = "x (N, L, C); wq (C); wv (C, I); bv (I); wz (I, C); bz (C); gain (C); offset (C)"
_SPATIAL = "x (N, L, C); wq (C, I); bq (I); wv (C, I); bv (I)"
_HEADS = {"cpu": "kernels.attention.cpu.flash", "cuda": "kernels.attention.cuda.dot_product"}
_POLARIZED = {"cpu": "kernels.attention.cpu.polarized", "cuda": "kernels.attention.cuda.polarized"}

attention_forward = operator(reference.attention_forward, _QKV, **_HEADS)
attention_backward = operator(
    reference.attention_backward, f"{_QKV}; do (N, A, T, E); o (N, A, T, E); lse (N, A, T)", **_HEADS
)
polarized_channel_forward = operator(reference.polarized_channel_forward, _CHANNEL, **_POLARIZED)
polarized_channel_backward = operator(reference.polarized_channel_backward, f"{_CHANNEL}; dy (N, L, C)", **_POLARIZED)
polarized_spatial_forward = operator(reference.polarized_spatial_forward, _SPATIAL, **_POLARIZED)
polarized_spatial_backward = operator(reference.polarized_spatial_backward, f"{_SPATIAL}; dy (N, L, C)", **_POLARIZED)
