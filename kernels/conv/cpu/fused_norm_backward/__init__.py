"""The gradients of a convolution and of the batch norm after it in one pass.

Worth 8 to 14 % of a step (bench/RESULTS.md, "What each mechanism is worth").
"""
