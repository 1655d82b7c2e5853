"""Whether a next hop can be used now: its trouble, its pauses, and how they end.

Rules: trouble of the next hop or of our account with it pauses the whole hop, along the retry delays,
longer each time. When a pause is over one attempt may probe; what it finds decides for everybody. Somebody is
told of account trouble when it begins, and again each day: it does not pass of itself.
It must not know sessions, nor messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from pi_relay import maillog
from pi_relay.model import Failure, HopCondition, HopState, Scope
from pi_relay.status import HopStatus

ALERT_REPEATS_AFTER_SECONDS = 86_400.0

OPEN = HopState(HopCondition.OPEN)


class Unjudged:
    """In the place of Health for a host that is never paused itself: whoever uses it is."""

    state = OPEN
    trouble: Failure | None = None
    delays_seconds: Sequence[float] = ()

    def succeeded(self) -> None:
        pass

    def failed(self, failure: Failure) -> None:
        pass

    def resume(self) -> None:
        pass

    def close(self) -> None:
        pass


class Health:
    """One next hop's. ``on_changed`` is called after each change of its condition."""

    def __init__(self, name: str, delays_seconds: Sequence[float], on_changed: Callable[[str], None]) -> None:
        self.name = name
        self.delays_seconds = delays_seconds
        self.state = OPEN
        self.trouble: Failure | None = None
        self._on_changed = on_changed
        self._pauses = 0  # since it last was well
        self._last_success_at: float | None = None  # wall clock, to be shown
        self._last_error = ""
        self._pause_timer: asyncio.TimerHandle | None = None
        self._alert_timer: asyncio.TimerHandle | None = None
        self._probe: asyncio.Future[None] | None = None

    def status(self) -> HopStatus:
        """Trouble is shown until it is disproved: a pause that is over has not mended anything yet."""
        if self.trouble is None:
            state = "unknown" if self._last_success_at is None else "ok"
            return HopStatus(self.name, state, self._last_success_at, self._last_error)
        left_seconds = max(self.state.until_monotonic - time.monotonic(), 0.0)
        return HopStatus(
            self.name, "paused", self._last_success_at, self._last_error, time.time() + left_seconds
        )

    # ── what attempts find ───────────────────────────────────────────────────────────────────────

    def succeeded(self) -> None:
        self._last_success_at = time.time()
        if self.trouble is not None:
            self._open()

    def failed(self, failure: Failure) -> None:
        """Trouble of NEXT_HOP or ACCOUNT scope. Others of the same moment make a pause no longer."""
        self._last_error = str(failure.reply)
        now_worse = failure.scope is Scope.ACCOUNT and self.state.scope is Scope.NEXT_HOP
        if self.state.condition is not HopCondition.PAUSED or now_worse:
            self._pause(failure)

    def resume(self) -> None:
        """Lift the pause: one attempt may probe at once, and the pauses begin from the shortest."""
        self._pauses = 0
        if self.state.condition is HopCondition.PAUSED:
            self._let_probe()

    async def gate(self, attempt: Callable[[], Awaitable[None]], *, patient: bool) -> Failure | None:
        """Make the attempt if the next hop may be tried now, else say what is wrong with it.

        ``patient``: it is worth while to wait for a probe under way.
        """
        if patient:
            await self.probe_over()
        if self.trouble is None:
            await attempt()
            return None
        if not self.begin_probe():
            return self.trouble
        try:
            await attempt()
        finally:
            self.probe_ended()
        return None

    async def probe_over(self) -> None:
        """Wait until no probe is under way."""
        while self._probe is not None:
            await asyncio.shield(self._probe)

    def begin_probe(self) -> bool:
        """Whether this attempt may be the probe of a hop in trouble; then ``probe_ended`` must follow."""
        if self.state.condition is not HopCondition.PROBING or self._probe is not None:
            return False
        self._probe = asyncio.get_running_loop().create_future()
        return True

    def probe_ended(self) -> None:
        if self._probe is not None:
            self._probe.set_result(None)
            self._probe = None
        if self.state.condition is HopCondition.PROBING:  # it found nothing out: let another one try
            self._on_changed(self.name)

    def close(self) -> None:
        for timer in (self._pause_timer, self._alert_timer):
            if timer is not None:
                timer.cancel()
        self._pause_timer = self._alert_timer = None

    # ── conditions ───────────────────────────────────────────────────────────────────────────────

    def _pause(self, failure: Failure) -> None:
        delay_seconds = self.delays_seconds[min(self._pauses, len(self.delays_seconds) - 1)]
        self._pauses += 1
        loop = asyncio.get_running_loop()
        was_account = self.state.scope is Scope.ACCOUNT
        self.trouble = failure
        if self._pause_timer is not None:
            self._pause_timer.cancel()
        self._pause_timer = loop.call_later(delay_seconds, self._let_probe)
        maillog.paused(next_hop=self.name, reason=self._last_error, until=time.time() + delay_seconds)
        if failure.scope is not Scope.ACCOUNT:
            self._stop_alerts()
        elif not was_account:
            self._alert()
        until = time.monotonic() + delay_seconds
        self._change(HopState(HopCondition.PAUSED, failure.scope, until, failure.reply))

    def _let_probe(self) -> None:
        if self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None
        self._change(HopState(HopCondition.PROBING, self.state.scope, reply=self.state.reply))

    def _open(self) -> None:
        self.close()
        self.trouble = None
        self._pauses = 0
        maillog.resumed(next_hop=self.name)
        self._change(OPEN)

    def _change(self, state: HopState) -> None:
        self.state = state
        self._on_changed(self.name)

    def _alert(self) -> None:
        maillog.alert(
            reason=f"the next hop does not accept us, mail waits: {self._last_error}", next_hop=self.name
        )
        self._alert_timer = asyncio.get_running_loop().call_later(ALERT_REPEATS_AFTER_SECONDS, self._alert)

    def _stop_alerts(self) -> None:
        if self._alert_timer is not None:
            self._alert_timer.cancel()
            self._alert_timer = None
