"""Winograd convolution.

Worth 18 to 58 % of a step, 57 % of one image (bench/RESULTS.md, "What each mechanism is worth").
"""
