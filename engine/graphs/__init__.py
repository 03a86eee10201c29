"""Computations captured once and replayed."""
