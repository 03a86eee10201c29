"""Batch norm and layer norm on the CPU."""
