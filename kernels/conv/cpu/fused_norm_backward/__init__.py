"""The gradients of a convolution and of the batch norm behind it in one pass."""
