"""Benchmarks: one script per kernel family and one for whole steps, over shared builders."""
