"""A clock that stands still until it is told to go on, with the timers that hang on it."""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Callable

from pi_relay.queue.manager import Clock


class ManualTimer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class ManualClock(Clock):
    """``wall_seconds`` may be set to anything at any time; ``advance`` moves both clocks."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.wall_seconds = 1_700_000_000.0
        self.wake_ups = 0
        self.timers_made = 0
        self._timers: list[tuple[float, int, Callable[[], None], ManualTimer]] = []

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return self.wall_seconds

    def call_at(self, when: float, callback: Callable[[], None]) -> ManualTimer:  # type: ignore[override]
        timer = ManualTimer()
        self.timers_made += 1
        heapq.heappush(self._timers, (when, self.timers_made, callback, timer))
        return timer

    def armed(self) -> list[float]:
        """When the timers that are set will fire."""
        return sorted(when for when, _, _, timer in self._timers if not timer.cancelled)

    async def advance(self, seconds: float, settle: Callable[[], Awaitable[None]]) -> None:
        """Go on, and let every timer fire at its own moment; ``settle`` waits for what it sets off."""
        end = self.seconds + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, callback, timer = heapq.heappop(self._timers)
            if timer.cancelled:
                continue
            self._go_to(max(when, self.seconds))
            self.wake_ups += 1
            callback()
            await settle()
        self._go_to(end)
        await settle()

    def _go_to(self, seconds: float) -> None:
        self.wall_seconds += seconds - self.seconds
        self.seconds = seconds
