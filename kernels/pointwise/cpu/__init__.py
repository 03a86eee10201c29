"""Activations, softmax and dropout on the CPU."""
