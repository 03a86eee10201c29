"""Computations captured once and replayed: training steps on the CPU and as CUDA graphs, inference on the CPU."""


class CaptureError(RuntimeError):
    """A step or a network cannot be captured, or has changed since; the message says why."""
