"""Dot-product attention and polarized self-attention, forward and backward."""

from kernels.attention import reference
from kernels.core.dispatch import operator

_HEADS = {"cpu": "kernels.attention.flash", "cuda": "kernels.attention.cuda"}
_POLARIZED = {"cpu": "kernels.attention.cpu", "cuda": "kernels.attention.polarized"}

attention_forward = operator(reference.attention_forward, **_HEADS)
attention_backward = operator(reference.attention_backward, **_HEADS)
polarized_channel_forward = operator(reference.polarized_channel_forward, **_POLARIZED)
polarized_channel_backward = operator(reference.polarized_channel_backward, **_POLARIZED)
polarized_spatial_forward = operator(reference.polarized_spatial_forward, **_POLARIZED)
polarized_spatial_backward = operator(reference.polarized_spatial_backward, **_POLARIZED)
