"""The layout of the parameters of a network in one flat vector."""

from __future__ import annotations

LINE = 16  # parameters that share a weight decay: every tensor begins a cache line of the flat vector
