"""For all tests: how long an example of Hypothesis takes is the machine's affair, never a failure."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("pi-relay", deadline=None)
settings.load_profile("pi-relay")
