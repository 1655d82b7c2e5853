"""By when each step of a delivery must have ended, whatever the other side does.

Every step has its own time-outs, which end it long before; a step past its deadline is stuck in a defect of
ours. Rules: only watched, nothing is ended in here. It must not know sessions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Deadlines:
    """The steps under way. ``monotonic``: seconds."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._moments: dict[object, tuple[float, str]] = {}

    @contextmanager
    def step(self, what: str, seconds: float) -> Iterator[None]:
        """Something that must have ended after so many seconds."""
        key = object()
        self._moments[key] = (self._monotonic() + seconds, what)
        try:
            yield
        finally:
            del self._moments[key]

    def missed(self) -> str:
        """The step that is longest past its deadline, in words; "" where none is."""
        moment, what = min(self._moments.values(), default=(float("inf"), ""))
        late_seconds = self._monotonic() - moment
        return f"{what} should have ended {late_seconds:.0f} s ago" if late_seconds > 0 else ""
