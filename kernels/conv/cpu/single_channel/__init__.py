"""Convolutions of one input channel.

The first layer alone takes a third of PyTorch's time; within a whole step the gain is lost in the noise
(bench/RESULTS.md, "What each mechanism is worth").
"""
