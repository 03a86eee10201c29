"""Where the time of a step goes: `record` within a program, `python -m engine.profile` for a training step."""

from engine.profile.result import Memory, Profile, record
from engine.profile.rows import Row

__all__ = ["Memory", "Profile", "Row", "record"]
