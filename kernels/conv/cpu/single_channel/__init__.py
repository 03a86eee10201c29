"""Convolutions of one input channel."""
