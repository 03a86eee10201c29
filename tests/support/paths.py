"""Where the repository lies."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REAL_TILES = ROOT.parent / "shared" / "data" / "mars_ai4mars_64x128.npz"  # the real tiles, where they are at hand
