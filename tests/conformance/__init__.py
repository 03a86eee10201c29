"""Conformance with PyTorch by generation: every operator that PyTorch has too, over all arguments that PyTorch allows.

`table` says per operator how to draw its arguments, how to call it here, and how PyTorch computes the same; `check`
runs both and compares value, gradient, dtype and shape, or the error. test_conformance.py runs a slice,
`python -m tests.conformance` as many cases as one likes.
"""
