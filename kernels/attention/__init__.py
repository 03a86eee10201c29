"""Dot-product attention and polarized self-attention, forward and backward."""

from kernels.attention import reference
from kernels.core.dispatch import operator

attention_forward = operator(reference.attention_forward)
attention_backward = operator(reference.attention_backward)
polarized_channel_forward = operator(reference.polarized_channel_forward)
polarized_channel_backward = operator(reference.polarized_channel_backward)
polarized_spatial_forward = operator(reference.polarized_spatial_forward)
polarized_spatial_backward = operator(reference.polarized_spatial_backward)
