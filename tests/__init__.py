"""Tests, in folders that mirror the packages. Run from the repository's root: `python -m pytest`."""
