"""Gives systemd its sign of life, but only while the work really moves.

systemd restarts whoever says nothing for WatchdogSec (docs/operation.md). The sign goes out from the event
loop, so that a blocked loop gives none; and each room is asked whether it is at work or stuck. What is not
ours to mend by a restart (a slow disk, a dead network, a paused next hop) is no reason to withhold it.

Rules: one timer, at half of what systemd allows, and none where it does not ask. A reason must be given twice
in a row: what passes by itself restarts nobody. It must not know the rooms, nor end the process itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

Check = Callable[[], str]  # why the work does not move, in words; "" while it does


class Watchdog:
    """``give_sign``: says that we live. ``withheld``: is told the reason, once, when the signs stop, and ""
    when they go on. ``checked``: called at every turn."""

    def __init__(
        self,
        seconds: float,
        checks: Sequence[Check],
        *,
        give_sign: Callable[[], None],
        withheld: Callable[[str], None],
        checked: Callable[[], None] = lambda: None,
    ) -> None:
        self._turn_seconds = seconds / 2
        self._checks = checks
        self._give_sign = give_sign
        self._withheld = withheld
        self._checked = checked
        self._suspicions: frozenset[Check] = frozenset()
        self._withholds = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Does nothing where systemd asks for no sign."""
        if self._turn_seconds > 0:
            self._give_sign()
            self._set_timer()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._turn_seconds, self._turn)

    def _turn(self) -> None:
        self._set_timer()
        reason = self._reason()
        if not reason:
            self._give_sign()
        if bool(reason) != self._withholds:
            self._withholds = bool(reason)
            self._withheld(reason)
        self._checked()

    def _reason(self) -> str:
        """What was found at this turn and at the one before."""
        found = {check: reason for check in self._checks if (reason := check())}
        lasting = [reason for check, reason in found.items() if check in self._suspicions]
        self._suspicions = frozenset(found)
        return "; ".join(lasting)
