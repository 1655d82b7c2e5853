"""How fast a next hop is fed: no faster than its limits allow, and slower where it says it is too much.

Limits: what the provider counts, as the file gives it. The pace of a minute is waited out: mail waits for
this next hop and for no other. Where the quota of an hour or a day is spent, the hop is as good as paused
until there is room again, and mail takes the next way out, if there is one. That is the office's own affair:
like ACCOUNT trouble it uses up no message's schedule.

Throttling: 421, 432, and 450 or 451 to MAIL. Fewer connections, and a gap before each transaction, longer
each time. With every message that it takes both come back a step, and after some minutes without throttling
all is as before. Where it goes on refusing at the longest gap, slowing down is of no use, and the hop has to
be paused.

Rules: what is under way counts as if it were taken, until it turns out not to be: a limit is never run into.
No timer while a hop is open and has not asked for less; a message that waits costs nothing here. It must
not know sessions, nor which messages there are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from pi_relay import maillog
from pi_relay.config import SmartHost
from pi_relay.model import Failure, HopCondition, HopState, Reply, Scope
from pi_relay.quotas import DAY, HOUR, MINUTE, Quotas, Window

FIRST_GAP_SECONDS = 1.0
GAP_MAX_SECONDS = 60.0
GAP_SHARE = 0.5  # of the first retry delay: beyond it a pause is no worse than slowing down
TAKEN_FOR_A_CONNECTION = 20  # messages, until one connection more is tried after throttling
THROTTLING_FORGOTTEN_SECONDS = 300.0  # after the last of it, however little was sent since

OPEN = HopState(HopCondition.OPEN)

# What the provider counts (True: recipients rather than messages), by the key of the file.
_LIMITS: tuple[tuple[str, float, bool], ...] = (
    ("messages_per_minute_max", MINUTE, False),
    ("messages_per_hour_max", HOUR, False),
    ("messages_per_day_max", DAY, False),
    ("recipients_per_day_max", DAY, True),
)


@dataclass(frozen=True, slots=True)
class Limit:
    key: str
    maximum: int
    window: Window
    of_recipients: bool = False

    @property
    def is_waited_out(self) -> bool:
        """Rather than passed by: a minute is soon over."""
        return self.window.span_seconds <= MINUTE

    def __str__(self) -> str:
        return f"{self.key} ({self.maximum}) is reached"


def limits_of(host: SmartHost, quotas: Quotas) -> tuple[Limit, ...]:
    """Those that the file sets; what an earlier process counted goes on."""
    limits = []
    for key, span_seconds, of_recipients in _LIMITS:
        if maximum := getattr(host, key):
            what = "recipients" if of_recipients else "messages"
            window = quotas.window(f"smart_hosts.{host.name} {what}", span_seconds)
            limits.append(Limit(key, maximum, window, of_recipients))
    return tuple(limits)


def longest_gap_seconds(retry_delays_seconds: Sequence[float]) -> float:
    """Between transactions with a next hop that asks for less."""
    return min(retry_delays_seconds[0] * GAP_SHARE, GAP_MAX_SECONDS)


class Pacing:
    """One next hop's. ``on_changed`` is called after each change of ``state``.

    ``connections``: how many at once it bears now. ``gap_max_seconds``: the longest gap that makes sense.
    """

    def __init__(
        self,
        name: str,
        limits: Sequence[Limit],
        connections_max: int,
        gap_max_seconds: float,
        on_changed: Callable[[], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.state = OPEN
        self.reason = ""  # in words, "" while it is open
        self.connections = connections_max
        self.gap_max_seconds = gap_max_seconds
        self._limits = limits
        self._connections_max = connections_max
        self._on_changed = on_changed
        self._monotonic = monotonic
        self._messages_under_way = 0
        self._recipients_under_way = 0
        self._gap_seconds = 0.0
        self._not_before = 0.0
        self.throttled_by: Reply | None = None  # while it is slowed down for that
        self._deaf_until = 0.0  # to throttling replies to what was begun before we slowed down
        self._taken_in_a_row = 0
        self._timer: asyncio.TimerHandle | None = None
        self._forgetting: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False
        self._see()

    @property
    def capacity(self) -> int:
        """How many transactions at once are of use."""
        now = self._monotonic()
        room = [limit.maximum - limit.window.total(now) for limit in self._limits]
        return max(min(self.connections, *room), 1) if room else self.connections

    @property
    def until(self) -> float | None:
        """Wall clock: when mail may go again. None: now, or not known."""
        left_seconds = self.state.until_monotonic - self._monotonic()
        return time.time() + left_seconds if 0 < left_seconds < float("inf") else None

    @property
    def is_slowed(self) -> bool:
        """By the next hop's own words, or a spent quota: more than the pace of a minute."""
        return self.throttled_by is not None or self.state.condition is HopCondition.PAUSED

    def spent(self) -> Failure:
        """What an attempt is told that found the quota spent."""
        return Failure(Scope.ACCOUNT, Reply(451, "4.4.5", f"we wait: {self.reason}"), permanent=False)

    # ── turns ────────────────────────────────────────────────────────────────────────────────────

    async def turn(self, recipients: int) -> Turn | None:
        """Wait until a transaction for so many recipients may begin.

        The turn may be for fewer of them. None: the quota is spent, or nobody minds this hop any more.
        """
        while self.state.condition is HopCondition.PACED:
            if self._closed:
                return None
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        if self.state.condition is HopCondition.PAUSED:
            return None
        turn = Turn(self, min(recipients, self._room_for_recipients()))
        self._messages_under_way += 1
        self._recipients_under_way += turn.recipients
        if self._gap_seconds:
            self._not_before = self._monotonic() + self._gap_seconds
        self._update()
        return turn

    def _room_for_recipients(self) -> int:
        now = self._monotonic()
        room = [
            limit.maximum - limit.window.total(now) - self._recipients_under_way
            for limit in self._limits
            if limit.of_recipients
        ]
        return min(room) if room else 1_000_000

    def turn_over(self, turn: Turn) -> None:
        self._messages_under_way -= 1
        self._recipients_under_way -= turn.recipients
        if turn.taken:
            now = self._monotonic()
            for limit in self._limits:
                limit.window.count(now, turn.taken if limit.of_recipients else 1)
        self._update()

    # ── throttling ───────────────────────────────────────────────────────────────────────────────

    def throttled(self, reply: Reply) -> bool:
        """The next hop wants less, and gets it. False: that is of no use any more, it keeps refusing."""
        now = self._monotonic()
        if now < self._deaf_until:
            return True
        longer_seconds = 2 * self._gap_seconds or min(FIRST_GAP_SECONDS, self.gap_max_seconds)
        if longer_seconds > self.gap_max_seconds:
            return False
        self._gap_seconds = longer_seconds
        self._not_before = self._deaf_until = now + longer_seconds
        self._taken_in_a_row = 0
        self.connections = max(self.connections // 2, 1)
        self.throttled_by = reply
        self._forget_later()
        maillog.paused(next_hop=self.name, reason=f"throttled: {reply}", until=time.time() + longer_seconds)
        self._update()
        return True

    def took(self) -> None:
        """The next hop took a message: what it was spared comes back, step by step."""
        if self.throttled_by is None:
            return
        self._gap_seconds /= 2
        if self._gap_seconds < FIRST_GAP_SECONDS / 2:
            self._gap_seconds = self._not_before = 0.0
        self._taken_in_a_row += 1
        if self._taken_in_a_row % TAKEN_FOR_A_CONNECTION == 0 and self.connections < self._connections_max:
            self.connections += 1
        if not self._gap_seconds and self.connections == self._connections_max:
            self._forget()
        self._update()

    def resume(self) -> None:
        """Forget that it was too much. What the limits say stands."""
        self._gap_seconds = self._not_before = self._deaf_until = 0.0
        self.connections = self._connections_max
        self._forget()
        self._update()

    def _forget_later(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        self._forgetting = loop.call_later(THROTTLING_FORGOTTEN_SECONDS, self.resume)

    def _forget(self) -> None:
        if self.throttled_by is not None:
            self.throttled_by = None
            maillog.resumed(next_hop=self.name)
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None

    def close(self) -> None:
        """Whoever waits here does so no longer."""
        self._closed = True
        self._stop_waiting()
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None
        self._wake()

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ── the state ────────────────────────────────────────────────────────────────────────────────

    def _update(self) -> None:
        before = self.state
        if not self._see():
            return
        self._say(before.condition, self.state.condition)
        self._wake()
        self._on_changed()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _see(self) -> bool:
        """Look how things stand, and set the timer by it; whether anything has changed."""
        now = self._monotonic()
        state, self.reason = self._look(now)
        if state == self.state:
            return False
        self._stop_waiting()
        self.state = state
        if (
            state.condition is not HopCondition.OPEN
            and state.until_monotonic < float("inf")
            and not self._closed
        ):
            self._timer = asyncio.get_running_loop().call_later(state.until_monotonic - now, self._on_time)
        return True

    def _on_time(self) -> None:
        self._timer = None
        self.state = HopState(self.state.condition)  # so that a timer which came early is set anew
        self._update()

    def _look(self, now: float) -> tuple[HopState, str]:
        """The state, and why."""
        spent = self._full_until(now, waited_out=False)
        if spent is not None:
            until, limit = spent
            return HopState(HopCondition.PAUSED, Scope.ACCOUNT, until), str(limit)
        full = self._full_until(now, waited_out=True)
        if full is not None:
            until, limit = full
            return HopState(HopCondition.PACED, until_monotonic=until), str(limit)
        if now < self._not_before:
            words = f"it asked for less: {self.throttled_by}"
            return HopState(HopCondition.PACED, until_monotonic=self._not_before), words
        for limit in self._limits:
            under_way = self._recipients_under_way if limit.of_recipients else self._messages_under_way
            if limit.window.total(now) + under_way >= limit.maximum:
                return HopState(
                    HopCondition.PACED, until_monotonic=float("inf")
                ), f"{limit} by what is under way"
        return OPEN, ""

    def _full_until(self, now: float, *, waited_out: bool) -> tuple[float, Limit] | None:
        """Of the limits of that kind that are reached, the one that lasts longest."""
        found: tuple[float, Limit] | None = None
        for limit in self._limits:
            if limit.is_waited_out is waited_out and limit.window.total(now) >= limit.maximum:
                until = limit.window.below_at(now, limit.maximum)
                if found is None or until > found[0]:
                    found = until, limit
        return found

    def _say(self, before: HopCondition, after: HopCondition) -> None:
        """Of a quota that is spent, and free again; the pace of a minute is nothing to tell."""
        if after is HopCondition.PAUSED and before is not after:
            maillog.paused(next_hop=self.name, reason=self.reason, until=self.until)
        elif before is HopCondition.PAUSED and before is not after:
            maillog.resumed(next_hop=self.name)


class Turn:
    """One transaction's, for so many ``recipients``. ``taken``: of how many the other side took it (or may
    have): to be set before it ends."""

    __slots__ = ("_pacing", "recipients", "taken")

    def __init__(self, pacing: Pacing, recipients: int) -> None:
        self.recipients = recipients
        self.taken = 0
        self._pacing = pacing

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pacing.turn_over(self)
