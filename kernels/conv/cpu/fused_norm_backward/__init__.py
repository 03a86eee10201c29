"""The gradients of a convolution and of the batch norm after it in one pass."""
