"""Brings each message to its end: due, attempt, settle.

Life of a record here: *in a line* (due, waiting for room or for its paused way), *under way* (an attempt, or
a settlement), or *resting* until its next slot. A record that only stands in paused lines is *parked*.

Rules:
- Event driven. One timer, for the earliest thing that time alone brings about; nothing polls, and a message
  that waits for a paused next hop costs nothing.
- lifecycle decides, this module carries out: first the reports are made durable, then the envelope is stored,
  then the message may go (laws 2 and 3 of store.py).
- A message's ways out are attempted and settled each by itself; settlements of one envelope never overlap.
- Attempts in flight are bounded for each next hop and in all. Envelopes are loaded when their turn comes.
- The monotonic clock schedules; the wall clock only goes into what is stored and said.
It must not know sockets, nor what a reply means.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pi_relay import dsn, lifecycle, maillog
from pi_relay.config import Config
from pi_relay.lifecycle import Attempt, Report, ReportKind, Results, Schedule, Settlement
from pi_relay.model import (
    DeliveryReport,
    Envelope,
    HopCondition,
    HopState,
    Kind,
    QueueRefusal,
    RecipientStatus,
    Reply,
    Scope,
    StoredMessage,
    WayOut,
)
from pi_relay.queue.store import CorruptMessage, Store
from pi_relay.queue.waiting import Activity, Line, Moments, Park, Record, Via
from pi_relay.routes import domain_of, to_domain, via_for, ways_out

ATTEMPTS_MAX = 100  # in flight, over all next hops
DIRECT_SHARE = 0.6  # of them, at all domains together: they may all be slow, and smart hosts need room
UNROUTED_ATTEMPTS_MAX = 4  # of messages that no route takes
FATES_MAX = 64  # messages whose fate somebody may still ask for
STILL_UNDELIVERABLE_SECONDS_MIN = 86_400.0  # after a start, whatever the clock says

LINES_KEPT_MAX = 64  # empty ones: every domain of direct delivery has its own
PARKS_KEPT_MAX = 256

UNSORTED: Via = ("",)  # the line of messages whose ways out have not been looked up yet
NOWHERE = ""  # the "next hop" of messages that no route takes

LATE_SECONDS_MAX = 30.0  # of the timer, before something must be wrong with us
TICK_SECONDS = 0.001  # what a timer may come too early


class Clock:
    """Time as the manager sees it; tests bring their own."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def call_at(self, when: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call back at the monotonic time ``when``."""
        return asyncio.get_running_loop().call_at(when, callback)


@dataclass(frozen=True, slots=True)
class Fate:
    """What has become of a message. ``state``: as in `queue list`, or "relayed", "failed", "deleted"."""

    state: str
    attempts: int
    next_hop: str = ""
    reply: Reply | None = None
    next_attempt_at: float | None = None

    @property
    def final(self) -> bool:
        return self.state in ("relayed", "failed", "deleted", "held")


Deliver = Callable[[Envelope, WayOut, StoredMessage], Awaitable[DeliveryReport]]


class Manager:
    def __init__(
        self,
        store: Store,
        config: Config,
        *,
        deliver: Deliver,
        hop_state: Callable[[str], HopState],
        capacity: Callable[[str], int],
        resume: Callable[[Iterable[str] | None], None] = lambda _: None,
        clock: Clock | None = None,
        attempts_max: int = ATTEMPTS_MAX,
    ) -> None:
        """``deliver``: tries a way out, never raises but for cancellation. ``capacity``: the attempts that a
        next hop bears at once. ``resume``: lifts the pauses of the next hops named, None: of all."""
        self._store = store
        self._config = config
        self._schedule = Schedule(config.queue)
        self._deliver = deliver
        self._hop_state = hop_state
        self._capacity = capacity
        self._resume = resume
        self._clock = clock or Clock()
        self._attempts_max = attempts_max
        self._direct_max = max(int(attempts_max * DIRECT_SHARE), 1)

        self._records: dict[str, Record] = {}
        self._lines: dict[Via, Line] = {}
        self._parks: dict[tuple[Via, ...], Park] = {}
        self._parks_kept_max = PARKS_KEPT_MAX
        self._all_hops = _hops_of(config)
        self._slots = Moments(self._wakes_at)
        self._warnings = Moments(self._may_warn)
        self._undeliverable: dict[str, float] = {}  # held for the postmaster until then, oldest first
        self._delay_reports: dict[str, str] = {}  # by the message they are about
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

        self._in_flight: dict[str, int] = {}
        self._in_flight_total = 0
        self._in_flight_direct = 0
        self._probing: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._chores: list[tuple[Record, bool]] = []  # to be settled without an attempt; True: only a warning
        self._detours: dict[str, Via] = {}
        self._fates: dict[str, Fate] = {}
        self._watchers: dict[str, list[asyncio.Future[None]]] = {}
        self._totals = dict.fromkeys(("relayed", "deferred", "failed"), 0)
        self._stopping = False
        store.on_committed = self._committed

    # ── start, stop, reload ──────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Everything that waits is due now, oldest first; this attempt is beside the schedule."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        for queue_id, entry in sorted(self._store.entries.items()):
            original = lifecycle.delayed_original(queue_id)
            if original and original not in self._store.entries:
                self._drop_delay_report(queue_id)
                continue
            if original:
                self._delay_reports[original] = queue_id
            if entry.held:
                if entry.held == lifecycle.UNDELIVERABLE:
                    left = (entry.next_attempt_at or wall) - wall
                    left = min(max(left, STILL_UNDELIVERABLE_SECONDS_MIN), lifecycle.UNDELIVERABLE_SECONDS)
                    self._undeliverable[queue_id] = now + left
                continue
            delay = self._schedule.delay_before(entry.slots_used)
            left = (entry.next_attempt_at or wall) - wall
            record = Record(queue_id, entry.slots_used, now + (left if 0 < left < delay else delay))
            self._records[queue_id] = record
            self._push(record, UNSORTED)
        self._fill_all()
        self._arm()

    async def stop(self, grace_seconds: float) -> None:
        """Let what is under way end within the grace; break the rest off: it stays as it is stored."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for queue_id in list(self._watchers):
            self._tell_watchers(queue_id)

    def reconfigure(self, config: Config) -> None:
        """Look all routes up again; whatever waits for a paused way is judged anew."""
        waiting = [record for record in self._records.values() if record.waits_in]
        for record in waiting:
            self._unpark(record)
            record.waits_in = ()
        self._config = config
        self._schedule = Schedule(config.queue)
        self._all_hops = _hops_of(config)
        self._lines.clear()
        self._parks.clear()
        for record in self._records.values():
            record.vias = ()
        for record in waiting:
            self._push(record, UNSORTED)
        self._fill_all()
        self._arm()

    # ── what the other rooms tell ────────────────────────────────────────────────────────────────

    def _committed(self, envelope: Envelope) -> None:
        """The store has a new message, durable."""
        queue_id = envelope.queue_id
        if self._stopping or envelope.held or queue_id in self._records:
            return
        if queue_id not in self._store.entries:  # removed in the meantime
            return
        record = self._records[queue_id] = Record(queue_id, envelope.slots_used, self._clock.monotonic())
        record.vias = tuple(way.via for way in self._ways(envelope))
        lines = [self._push(record, via) for via in record.vias]
        for line in lines:
            self._fill(line)
        if record.waits_in:
            self._settle_down(record)
            if record.park is not None:
                self._say_passed_over(envelope, record)
                self._store.let_go(queue_id)

    def hop_changed(self, name: str) -> None:
        """A next hop is paused, may be probed, or is open again."""
        now = self._clock.monotonic()
        for park in self._parks.values():
            if name in park.hops:
                park.run(now, self._schedule_runs(park.vias))
        for line in list(self._lines.values()):
            if name not in line.hops:
                continue
            if self._is_paused(line.hops):
                for record in line:
                    if record.park is None and record.activity is None:
                        self._settle_down(record)
            else:
                self._fill(line)
        self._arm()

    # ── what an admin asks ───────────────────────────────────────────────────────────────────────

    async def retry(self, ids: Iterable[str] | None = None) -> list[str]:
        """Try these messages now (None: all), beside the schedule. Lifts the pauses in their way.

        Held ones stay held. Returns the ids of those that will be tried.
        """
        wanted = self._records if ids is None else [each for each in ids if each in self._records]
        chosen = [self._records[queue_id] for queue_id in sorted(wanted)]
        hops: set[str] | None = None
        if ids is not None and all(record.vias for record in chosen):
            hops = {name for record in chosen for via in record.vias for name in via}
        for record in chosen:
            self._stand_in_line(record, record.vias or (UNSORTED,))
        self._resume(hops)
        self._fill_all()
        self._arm()
        return [record.queue_id for record in chosen]

    async def hold(self, ids: Iterable[str]) -> list[str]:
        """Keep these back until they are released. While one is attempted: after that."""
        return [
            queue_id for queue_id in ids if await self._when_quiet(queue_id, partial(self._hold, queue_id))
        ]

    async def release(self, ids: Iterable[str]) -> list[str]:
        """Let held messages go on; undeliverable ones begin again."""
        return [
            queue_id for queue_id in ids if queue_id in self._store.entries and await self._release(queue_id)
        ]

    async def delete(self, ids: Iterable[str], bounce: bool = False) -> list[str]:
        """Remove these, with a report to the sender if ``bounce``. While one is attempted: after that."""
        return [
            queue_id
            for queue_id in ids
            if await self._when_quiet(queue_id, partial(self._delete, queue_id, bounce))
        ]

    def state_of(self, queue_id: str) -> str:
        """ "queued", "deferred", "held" or "attempting"; "" for an unknown id."""
        entry = self._store.entries.get(queue_id)
        if entry is None:
            return ""
        if entry.held:
            return "held"
        record = self._records.get(queue_id)
        if record is not None and record.activity is not None:
            return "attempting"
        passed_over = record is not None and (record.park is not None or record.slots_used)
        return "deferred" if entry.attempts or entry.slots_used or passed_over else "queued"

    def next_attempt_at(self, queue_id: str) -> float | None:
        """Wall clock; of a parked message when its pause ends; None: at once, or not known."""
        record, entry = self._records.get(queue_id), self._store.entries.get(queue_id)
        if record is not None and record.park is not None:
            states = [self._hop_state(name) for name in record.park.hops]
            ends = [state.until_monotonic for state in states if state.condition is HopCondition.PAUSED]
            return self._clock.wall() + min(ends) - self._clock.monotonic() if ends else None
        return entry.next_attempt_at if entry is not None and not entry.held else None

    def stuck(self) -> str:
        """Why mail does not move although it could, in words; "" while it does."""
        if self._stopping:
            return ""
        first = min(self._moments(), default=None)
        late_seconds = 0.0 if first is None else self._clock.monotonic() - first
        if late_seconds > LATE_SECONDS_MAX:
            return f"what is due is {late_seconds:.0f} s late"
        if self._in_flight_total < self._attempts_max and any(map(self._could_go, self._lines.values())):
            return "messages that are due are not tried although there is room"
        return ""

    def _could_go(self, line: Line) -> bool:
        """While anything is under way by a next hop, its end moves on those that wait for the same one."""
        hop = self._choose(line) if next(iter(line), None) is not None else None
        return hop is not None and not self._in_flight.get(hop)

    def totals(self) -> dict[str, int]:
        """Messages (not our own reports) since the start: relayed; failed for somebody; deferred times."""
        return dict(self._totals)

    def send_by(self, queue_id: str, via: Via = ()) -> None:
        """Before a test message is put: its fate is remembered, and by ``via`` the routes are passed by."""
        if via:
            self._detours[queue_id] = via
        self._remember_fate(queue_id, Fate("queued", 0))

    async def wait_for_fate(
        self, queue_id: str, seen_attempts: int = -1, wait_seconds: float | None = None
    ) -> Fate | None:
        """What becomes of a message: when it is settled, held, or tried more often than ``seen_attempts``;
        as things stand after ``wait_seconds`` (None: only its end is waited for). None for an unknown id."""
        deadline = None if wait_seconds is None else asyncio.get_running_loop().time() + wait_seconds
        while True:
            fate = self._fate(queue_id)
            if fate is None or fate.final or (deadline is not None and fate.attempts > max(seen_attempts, 0)):
                return fate
            if self._stopping:
                return fate
            change = asyncio.get_running_loop().create_future()
            self._watchers.setdefault(queue_id, []).append(change)
            try:
                async with asyncio.timeout_at(deadline):
                    await change
            except TimeoutError:
                return self._fate(queue_id)

    # ── lines, parks and moments ─────────────────────────────────────────────────────────────────

    def _ways(self, envelope: Envelope) -> tuple[WayOut, ...]:
        ways = ways_out(self._config, envelope)
        detour = self._detours.get(envelope.queue_id)
        if detour is None:
            return ways
        groups: dict[Via, list[int]] = {}
        for position in (position for way in ways for position in way.positions):
            via = to_domain(detour, envelope.recipients[position].forward_path)
            groups.setdefault(via, []).append(position)
        return tuple(WayOut(tuple(positions), via) for via, positions in groups.items())

    def _line(self, via: Via) -> Line:
        line = self._lines.get(via)
        if line is None:
            line = self._lines[via] = Line(via, self._all_hops if via == UNSORTED else via)
        return line

    def _push(self, record: Record, via: Via) -> Line:
        line = self._line(via)
        entry = self._store.entries.get(record.queue_id)
        if entry is not None:  # else it was found damaged by another reader
            line.push(record, device=entry.device, is_report=entry.kind is not Kind.MAIL)
        return line

    def _stand_in_line(self, record: Record, vias: Iterable[Via]) -> list[Line]:
        """Make it due by these ways out, where it neither stands nor is under way yet."""
        under_way = record.activity.under_way if record.activity is not None else ()
        return [
            self._push(record, via) for via in vias if via not in record.waits_in and via not in under_way
        ]

    def _settle_down(self, record: Record) -> None:
        """Nothing is under way for this record: park it, or let it rest until its next slot."""
        if len(record.waits_in) < max(len(record.vias), 1):
            self._rest_until_slot(record)
        elif all(self._is_paused(self._line(via).hops) for via in record.waits_in):
            self._park(record)
        # otherwise it waits for room, which has no moment

    def _rest_until_slot(self, record: Record) -> None:
        now = self._clock.monotonic()
        warning_at = self._warning_at(record, now, record.due - now)
        record.wake_at = record.due if warning_at is None else min(record.due, warning_at)
        self._slots.add(record.wake_at, record.queue_id)
        self._arm(record.wake_at)

    def _park(self, record: Record) -> None:
        now = self._clock.monotonic()
        vias = record.waits_in
        park = self._parks.get(vias)
        if park is None:
            self._forget_parks()
            hops = frozenset(name for via in vias for name in self._line(via).hops)
            park = self._parks[vias] = Park(vias, hops, Moments(partial(self._expires_at, vias)))
            park.run(now, self._schedule_runs(vias))
        next_slot_in = max(record.due - now, 0.0)
        if (at := self._warning_at(record, now, next_slot_in)) is not None and self._another_is_open(park):
            self._warnings.add(at, record.queue_id)
            self._arm(at)
        clock = park.clock(now)
        record.park = park
        record.due = clock + next_slot_in
        record.wake_at = clock + self._schedule.until_used_up(record.slots_used, next_slot_in)
        park.expiries.add(record.wake_at, record.queue_id)
        if park.running:
            self._arm(park.moment(record.wake_at, now))

    def _forget_parks(self) -> None:
        """Those that nobody is in any more: with direct delivery there is one for each domain in trouble."""
        if len(self._parks) < self._parks_kept_max:
            return
        used = {record.park for record in self._records.values() if record.park is not None}
        self._parks = {vias: park for vias, park in self._parks.items() if park in used}
        self._parks_kept_max = max(PARKS_KEPT_MAX, 2 * len(self._parks))

    def _unpark(self, record: Record) -> None:
        """Back to the monotonic clock, with the slots counted that were passed over."""
        record.wake_at = None
        if record.park is None:
            return
        now = self._clock.monotonic()
        next_slot_in = record.due - record.park.clock(now)
        record.slots_used, next_slot_in = self._schedule.passed_over(record.slots_used, next_slot_in)
        record.due = now + next_slot_in
        record.park = None

    def _forget(self, queue_id: str) -> None:
        record = self._records.pop(queue_id, None)
        if record is not None:
            record.waits_in = ()
            record.wake_at = record.park = None
        self._detours.pop(queue_id, None)

    def _is_paused(self, hops: Iterable[str]) -> bool:
        """All of them; a way that does not exist is not paused."""
        paused = False
        for name in hops:
            if self._hop_state(name).condition is not HopCondition.PAUSED:
                return False
            paused = True
        return paused

    def _in_own_trouble(self, hops: Iterable[str]) -> bool:
        """A next hop of this way does not accept us: nothing that waits for it is the recipients' fault."""
        states = map(self._hop_state, hops)
        return any(
            state.condition is not HopCondition.OPEN and state.scope is Scope.ACCOUNT for state in states
        )

    def _schedule_runs(self, vias: tuple[Via, ...]) -> bool:
        """Whether slots pass while all these ways are paused."""
        hops = [self._line(via).hops for via in vias]
        return all(map(self._is_paused, hops)) and not all(map(self._in_own_trouble, hops))

    def _another_is_open(self, park: Park) -> bool:
        return any(self._carries(name) for name in self._all_hops if name not in park.hops)

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def _wakes_at(self, at: float, queue_id: str) -> bool:
        record = self._records.get(queue_id)
        return record is not None and record.wake_at == at and record.park is None

    def _expires_at(self, vias: tuple[Via, ...], at: float, queue_id: str) -> bool:
        record = self._records.get(queue_id)
        return (
            record is not None
            and record.wake_at == at
            and record.park is not None
            and record.park is self._parks.get(vias)
        )

    def _may_warn(self, _: float, queue_id: str) -> bool:
        record = self._records.get(queue_id)
        return (
            record is not None
            and record.park is not None
            and (entry := self._store.entries.get(queue_id)) is not None
            and not entry.delay_reported
        )

    def _warning_at(self, record: Record, now: float, next_slot_in: float) -> float | None:
        """When the sender should hear of the delay; None: never, already, or that moment is over."""
        after = self._config.queue.delay_warning_after_seconds
        entry = self._store.entries.get(record.queue_id)
        if not after or entry is None or entry.delay_reported or entry.kind is not Kind.MAIL:
            return None
        at = now + after - self._schedule.waited_seconds(record.slots_used, next_slot_in)
        return at if at > now else None

    def _arm(self, at: float | None = None) -> None:
        """See that the timer fires in time. ``at``: only this moment is new."""
        if self._stopping:
            return
        if at is None:
            at = min(self._moments(), default=None)
            if at is None or (self._timer is not None and self._timer_at != at):
                self._disarm()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        self._disarm()
        self._timer_at = at
        self._timer = self._clock.call_at(at, self._on_time)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _moments(self) -> Iterator[float]:
        now = self._clock.monotonic()
        for first in (self._slots.first(), self._warnings.first()):
            if first is not None:
                yield first
        for park in self._parks.values():
            first = park.expiries.first() if park.running else None
            if first is not None:
                yield park.moment(first, now)
        yield from self._undeliverable.values()

    def _on_time(self) -> None:
        self._timer = None
        now = self._clock.monotonic() + TICK_SECONDS
        for queue_id in self._slots.pop_until(now):
            self._wake(self._records[queue_id], now)
        for queue_id in self._warnings.pop_until(now):
            self._chore(self._records[queue_id], only_warn=True)
        for park in self._parks.values():
            if park.running:
                for queue_id in park.expiries.pop_until(park.clock(now)):
                    self._chore(self._records[queue_id], only_warn=False)
        for queue_id in [each for each, until in self._undeliverable.items() if until <= now]:
            self._purge(queue_id)
        self._arm()

    def _wake(self, record: Record, now: float) -> None:
        """A resting record's moment: its slot, or the time to tell the sender of the delay."""
        record.wake_at = None
        if record.due > now:
            if record.activity is None:
                self._chore(record, only_warn=True)
            return
        for line in self._stand_in_line(record, record.vias or (UNSORTED,)):
            self._fill(line)
        if record.activity is None and record.waits_in:
            self._settle_down(record)

    # ── turns ────────────────────────────────────────────────────────────────────────────────────

    def _choose(self, line: Line) -> str | None:
        """The next hop under whose bound the first of the line may be tried now."""
        if not line.hops:
            return NOWHERE if self._in_flight.get(NOWHERE, 0) < UNROUTED_ATTEMPTS_MAX else None
        for name in line.hops:
            condition = self._hop_state(name).condition
            if condition is HopCondition.PAUSED:
                continue
            if self._in_flight_direct >= self._direct_max and domain_of(name):
                return None
            if condition is HopCondition.PACED:
                if line.via != UNSORTED:
                    return None
                continue
            if condition is HopCondition.PROBING:
                if name in self._probing:
                    continue
                return name
            if self._in_flight.get(name, 0) < self._capacity(name):
                return name
            if line.via != UNSORTED:
                return None
        return None

    def _fill(self, line: Line) -> None:
        """Begin as many attempts by this way out as there is room for."""
        while not self._stopping and self._in_flight_total < self._attempts_max:
            hop = self._choose(line)
            if hop is None:
                return
            record = line.pop()
            if record is None:
                self._forget_line(line)
                return
            self._occupy(hop)
            self._run(self._work(hop, line, record, self._begin(record, line.via)))

    def _forget_line(self, line: Line) -> None:
        """With direct delivery there is one for each domain. Another of the same way may have begun since."""
        if len(self._lines) > LINES_KEPT_MAX and line.is_empty and self._lines.get(line.via) is line:
            del self._lines[line.via]

    def _fill_all(self) -> None:
        for line in list(self._lines.values()):
            self._fill(line)

    def _occupy(self, hop: str) -> None:
        self._in_flight_total += 1
        self._in_flight_direct += bool(domain_of(hop))
        self._in_flight[hop] = self._in_flight.get(hop, 0) + 1
        if hop and self._hop_state(hop).condition is HopCondition.PROBING:
            self._probing.add(hop)

    def _vacate(self, hop: str) -> None:
        self._in_flight_total -= 1
        self._in_flight_direct -= bool(domain_of(hop))
        left = self._in_flight[hop] - 1
        if left:
            self._in_flight[hop] = left
        else:
            del self._in_flight[hop]
        self._probing.discard(hop)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, hop: str, line: Line, record: Record, activity: Activity) -> None:
        """One attempt, and then whatever is next by the same next hop."""
        while True:
            try:
                await self._attempt(line, record, activity, hop)
            finally:
                self._vacate(hop)
            following = self._next_by(hop)
            if following is None:
                break
            line, record = following
            self._occupy(hop)
            activity = self._begin(record, line.via)
        self._forget_line(line)
        if self._in_flight_total == self._attempts_max - 1 or self._in_flight_direct == self._direct_max - 1:
            self._fill_all()

    def _next_by(self, hop: str) -> tuple[Line, Record] | None:
        if self._stopping:
            return None
        for via, line in self._lines.items():
            if (hop in line.hops or not hop) and self._choose(line) == hop:
                record = line.pop()
                if record is not None:
                    if len(self._lines) > 1:
                        self._lines[via] = self._lines.pop(via)  # to the end of the round
                    return line, record
        return None

    # ── attempts ─────────────────────────────────────────────────────────────────────────────────

    async def _attempt(self, line: Line, record: Record, activity: Activity, hop: str) -> None:
        """Try one way out of a message and settle what comes of it."""
        try:
            loaded = await self._load(record)
            if loaded is None:
                return
            envelope, message = loaded
            if activity.envelope is None:
                activity.envelope = envelope
            way = self._way_for(line, record, activity, hop)
            if way is not None:
                activity.flying.update(way.positions)  # until settled: routes may change meanwhile
                try:
                    results, handed_on = await self._try(activity.envelope, way, message)
                    await self._settle(record, activity, message, results, handed_on)
                finally:
                    activity.flying.difference_update(way.positions)
            elif not record.vias:  # nobody is pending
                await self._settle(record, activity, message, {})
        except Exception as defect:
            self._put_off(record, defect)
        finally:
            self._end(record, activity, line.via)

    def _put_off(self, record: Record, defect: Exception) -> None:
        """Our own defect while settling: the message stays as it is stored, for another slot."""
        maillog.error(f"unexpected while settling {record.queue_id}", defect)
        record.due = self._clock.monotonic() + self._schedule.delay_before(record.slots_used)

    def _begin(self, record: Record, via: Via) -> Activity:
        self._unpark(record)
        activity = record.activity
        if activity is None:
            entry = self._store.entries.get(record.queue_id)
            activity = record.activity = Activity(entry.attempts + 1 if entry else 1)
        elif via in activity.tried:
            activity.number += 1
        activity.tried.add(via)
        activity.under_way.add(via)
        activity.tasks += 1
        if len(record.vias) > 1 and record.due > self._clock.monotonic():
            self._rest_until_slot(record)  # the other ways have their own time
        return activity

    def _end(self, record: Record, activity: Activity, via: Via) -> None:
        activity.tasks -= 1
        activity.under_way.discard(via)
        if self._stopping or self._records.get(record.queue_id) is not record:
            if not activity.tasks:
                record.activity = None
        elif activity.tasks:
            self._stand_in_line(record, [via for via in record.vias if self._is_paused(via)])
            if record.due > self._clock.monotonic():  # else what else is under way will see to it
                self._rest_until_slot(record)
        elif activity.afterwards:
            record.waits_in = ()
            self._run(self._afterwards(record, activity))
        else:
            record.activity = None
            self._rest(record)

    async def _afterwards(self, record: Record, activity: Activity) -> None:
        """What the admin asked for while the message was under way."""
        while activity.afterwards:
            await activity.afterwards.pop(0)()
        record.activity = None
        self._rest(record)

    def _rest(self, record: Record) -> None:
        """Nothing is under way any more: stand in line for what is paused, else wait for the next slot."""
        if self._stopping or self._records.get(record.queue_id) is not record:
            return
        overdue = record.due <= self._clock.monotonic()
        for line in self._stand_in_line(
            record, [via for via in record.vias if overdue or self._is_paused(via)]
        ):
            self._fill(line)
        if record.activity is None:
            self._settle_down(record)

    async def _load(self, record: Record) -> tuple[Envelope, StoredMessage] | None:
        """None where there is nothing to attempt."""
        try:
            return await self._store.load(record.queue_id)
        except KeyError:
            self._forget(record.queue_id)
        except CorruptMessage:
            self._forget(record.queue_id)
            self._finish_fate(record.queue_id, Fate("deleted", 0))
        except OSError as problem:
            maillog.error(f"cannot read message {record.queue_id}: {problem}")
            maillog.alert(reason="the queue's disk is failing", queue_id=record.queue_id)
            record.due = self._clock.monotonic() + self._schedule.delay_before(record.slots_used)
        return None

    def _way_for(self, line: Line, record: Record, activity: Activity, hop: str) -> WayOut | None:
        """The way out that this line stands for, as routes are now; otherwise the record changes lines."""
        assert activity.envelope is not None
        ways = self._ways(activity.envelope)
        record.vias = tuple(way.via for way in ways)
        for way in ways:
            fits = way.via == line.via or (line.via is UNSORTED and len(ways) == 1 and hop in way.via)
            if fits or (not way.via and not hop):
                activity.tried.add(way.via)
                positions = tuple(each for each in way.positions if each not in activity.flying)
                return WayOut(positions, way.via) if positions else None
        for moved in self._stand_in_line(record, record.vias):
            self._fill(moved)
        return None

    async def _try(
        self, envelope: Envelope, way: WayOut, message: StoredMessage
    ) -> tuple[Results, frozenset[int]]:
        if not way.via:
            self._alert_no_route(envelope, way)
            return dict.fromkeys(way.positions, (None, lifecycle.NO_ROUTE)), frozenset()
        try:
            report = await self._deliver(envelope, way, message)
            if not report.results.keys() >= set(way.positions):
                raise RuntimeError("a delivery report leaves recipients out")
            return report.results, report.notify_handed_on
        except Exception as defect:
            maillog.error(f"unexpected while attempting {envelope.queue_id}", defect)
            return dict.fromkeys(way.positions, (None, lifecycle.unexpected(defect))), frozenset()

    # ── settling ─────────────────────────────────────────────────────────────────────────────────

    async def _settle(
        self,
        record: Record,
        activity: Activity,
        message: StoredMessage,
        results: Results,
        handed_on: frozenset[int] = frozenset(),
        *,
        delay_due: bool = False,
    ) -> None:
        assert activity.envelope is not None
        if lifecycle.wholly_relayed(activity.envelope, results, handed_on):
            self._relayed(activity.envelope, activity.number, results)
            return
        async with activity.settling:
            envelope = activity.envelope
            attempt = self._known(record, activity, results, delay_due)
            settlement = lifecycle.settle(self._config, self._schedule, envelope, attempt, results, handed_on)
            if delay_due and not settlement.durable:
                return  # a warning that could not leave
            try:
                await self._put_reports(settlement, message)
            except Exception as problem:  # law 2: what nobody can be told of has not happened yet
                expected = isinstance(problem, QueueRefusal | OSError)
                maillog.error(
                    f"cannot store a report about {record.queue_id}: {problem}", None if expected else problem
                )
                maillog.alert(reason="a report cannot be stored, its message waits", queue_id=record.queue_id)
                settlement = self._without_reports(envelope, attempt, results)
            await self._carry_out(record, activity, settlement)

    def _relayed(self, envelope: Envelope, number: int, results: Results) -> None:
        """The everyday end: everybody has it."""
        delay_seconds = max(self._clock.wall() - envelope.accepted_at, 0.0)
        for position, recipient in enumerate(envelope.recipients):
            next_hop, reply = results[position]
            assert isinstance(reply, Reply)
            maillog.relayed(
                queue_id=envelope.queue_id,
                to=recipient.forward_path,
                next_hop=next_hop.name if next_hop else "",
                reply=reply,
                attempt=number,
                delay_seconds=delay_seconds,
                tls=next_hop.tls_used if next_hop else "",
            )
        if envelope.kind is Kind.MAIL:
            self._totals["relayed"] += 1
        self._gone(envelope.queue_id)
        if self._fates:
            next_hop, reply = results[len(envelope.recipients) - 1]
            name = next_hop.name if next_hop else ""
            self._finish_fate(envelope.queue_id, Fate("relayed", number, name, reply))  # type: ignore[arg-type]

    def _known(self, record: Record, activity: Activity, results: Results, delay_due: bool) -> Attempt:
        """What lifecycle is told beside the results."""
        assert activity.envelope is not None
        ways = self._ways(activity.envelope)
        own = frozenset(each for way in ways if self._in_own_trouble(way.via) for each in way.positions)
        waiting = frozenset(
            each for way in ways if self._is_about_to_be_tried(record, way) for each in way.positions
        )
        return Attempt(
            number=activity.number if results else activity.number - 1,
            now=self._clock.wall(),
            slots_used=record.slots_used,
            next_slot_in_seconds=record.due - self._clock.monotonic() - TICK_SECONDS,
            in_flight=frozenset(activity.flying | waiting) - results.keys(),
            own_trouble=own,
            kept_by=self._kept_by(ways),
            delay_due=delay_due,
            can_carry=partial(self._can_carry, activity.envelope.device),
        )

    def _kept_by(self, ways: Iterable[WayOut]) -> dict[int, Reply]:
        """Of the positions whose way out is in trouble, paused or not: why they are not tried."""
        return {
            position: self._passed_over(way)
            for way in ways
            if way.via and (self._hop_state(way.via[0]).reply or self._is_paused(way.via))
            for position in way.positions
        }

    def _passed_over(self, way: WayOut) -> Reply:
        return lifecycle.passed_over(self._hop_state(way.via[0]))

    def _is_about_to_be_tried(self, record: Record, way: WayOut) -> bool:
        return way.via in record.waits_in and not self._is_paused(way.via)

    def _can_carry(self, device: str, address: str) -> bool:
        via = via_for(self._config, "", address, device)
        return any(map(self._carries, to_domain(via, address)))

    def _carries(self, name: str) -> bool:
        """Now, or when its pace allows."""
        return self._hop_state(name).condition in (HopCondition.OPEN, HopCondition.PACED)

    async def _put_reports(self, settlement: Settlement, message: StoredMessage) -> None:
        """Durable before the original forgets (law 2). Raises QueueRefusal or OSError."""
        for report in settlement.reports:
            await self._put_report(report, settlement, message)

    async def _put_report(self, report: Report, settlement: Settlement, message: StoredMessage) -> None:
        envelope, now = settlement.envelope, self._clock.wall()
        body = message.body if isinstance(message.body, bytes) else None
        left = self._schedule.until_used_up(envelope.slots_used, settlement.next_slot_in_seconds)
        header, content = dsn.compose(
            report,
            dsn.Original(envelope, message.header, body),
            hostname=self._config.hostname,
            language=self._config.language,
            now=now,
            retry_until=now + left,
        )
        own = lifecycle.report_envelope(
            envelope,
            report,
            now,
            header_size_bytes=len(header),
            message_size_bytes=len(header) + len(content),
        )
        await self._store.put(own, header, content)
        if report.kind is ReportKind.DELAYED:
            self._delay_reports[envelope.queue_id] = report.queue_id

    def _without_reports(self, envelope: Envelope, attempt: Attempt, results: Results) -> Settlement:
        """A report cannot be kept: settle what went well, and come back to the rest at another slot."""
        relayed = {each: outcome for each, outcome in results.items() if isinstance(outcome[1], Reply)}
        slots_used = min(attempt.slots_used, self._schedule.slots - 1)
        later = replace(
            attempt,
            slots_used=slots_used,
            next_slot_in_seconds=self._schedule.delay_before(slots_used),
            can_carry=lambda _: False,
        )
        return lifecycle.settle(self._config, self._schedule, envelope, later, relayed)

    async def _carry_out(self, record: Record, activity: Activity, settlement: Settlement) -> None:
        """The reports are durable: say what happened, store what is left."""
        envelope = settlement.envelope
        self._say(settlement, activity.number)
        self._count(settlement)
        if settlement.finished:
            self._gone(envelope.queue_id)
        else:
            activity.envelope = envelope
            record.slots_used = envelope.slots_used
            record.due = self._clock.monotonic() + settlement.next_slot_in_seconds
            record.vias = tuple(way.via for way in self._ways(envelope))
            await self._write(envelope, durable=settlement.durable)
        if settlement.undeliverable:
            self._keep_undeliverable(envelope.queue_id)
        self._note_fate(settlement, activity.number)

    async def _write(self, envelope: Envelope, *, durable: bool) -> bool:
        """Store an envelope. Where the disk fails, say so: after a start the message goes on from before."""
        try:
            await self._store.settle(envelope, durable=durable)
        except KeyError:
            self._forget(envelope.queue_id)  # it was found damaged by another reader
            return False
        except (QueueRefusal, OSError) as problem:
            maillog.error(f"cannot store what became of {envelope.queue_id}: {problem}")
            maillog.alert(reason="the queue's disk is failing", queue_id=envelope.queue_id)
            return False
        return True

    def _gone(self, queue_id: str) -> None:
        """Law 3 has been kept: the message may go, and so may a delay report that is of no use any more."""
        if queue_id in self._store.entries:
            self._store.remove(queue_id)
        self._forget(queue_id)
        if self._undeliverable:
            self._undeliverable.pop(queue_id, None)
        if not self._delay_reports:
            return
        report_id = self._delay_reports.pop(queue_id, None)
        if report_id is not None and report_id in self._store.entries:
            self._drop_delay_report(report_id)
        elif (original := lifecycle.delayed_original(queue_id)) in self._delay_reports:
            del self._delay_reports[original]

    def _drop_delay_report(self, report_id: str) -> None:
        """It has not left yet, and says nothing any more. While it is attempted: after that."""

        async def drop() -> None:
            if report_id in self._store.entries:
                self._store.remove(report_id)
                self._forget(report_id)
                maillog.deleted(queue_id=report_id, reason="the delayed message is settled")

        record = self._records.get(report_id)
        if record is not None and record.activity is not None:
            record.activity.afterwards.append(drop)
        else:
            self._forget(report_id)
            self._run(drop())

    # ── undeliverable ────────────────────────────────────────────────────────────────────────────

    def _keep_undeliverable(self, queue_id: str) -> None:
        """Hold it for the admin to see, but neither for ever nor without number."""
        self._forget(queue_id)
        self._undeliverable[queue_id] = self._clock.monotonic() + lifecycle.UNDELIVERABLE_SECONDS
        maillog.held(queue_id=queue_id, reason=lifecycle.UNDELIVERABLE)
        maillog.alert(reason="a message failed, and nobody can be told: it is held", queue_id=queue_id)
        report_id = self._delay_reports.pop(queue_id, None)
        if report_id is not None:
            self._drop_delay_report(report_id)
        while len(self._undeliverable) > lifecycle.UNDELIVERABLE_MAX:
            self._purge(next(iter(self._undeliverable)))
        self._arm()

    def _purge(self, queue_id: str) -> None:
        self._undeliverable.pop(queue_id, None)
        entry = self._store.entries.get(queue_id)
        if entry is not None and entry.held == lifecycle.UNDELIVERABLE:
            self._store.remove(queue_id)
            maillog.deleted(queue_id=queue_id, reason="undeliverable, and held long enough")

    # ── chores: settlements without an attempt ───────────────────────────────────────────────────

    def _chore(self, record: Record, *, only_warn: bool) -> None:
        """Settle what time has brought about; one message after the other."""
        self._begin(record, UNSORTED)
        record.waits_in = ()
        if not only_warn:  # the timer may have come a moment early
            record.slots_used = self._schedule.slots
        self._chores.append((record, only_warn))
        if len(self._chores) == 1:
            self._run(self._do_chores())

    async def _do_chores(self) -> None:
        while self._chores and not self._stopping:
            record, only_warn = self._chores[0]
            try:
                await self._do_chore(record, only_warn)
            finally:
                self._chores.pop(0)

    async def _do_chore(self, record: Record, only_warn: bool) -> None:
        activity = record.activity
        assert activity is not None
        try:
            loaded = await self._load(record)
            if loaded is not None:
                activity.envelope, message = loaded
                await self._settle(record, activity, message, {}, delay_due=only_warn)
        except Exception as defect:
            self._put_off(record, defect)
        finally:
            self._end(record, activity, UNSORTED)

    # ── the admin's will ─────────────────────────────────────────────────────────────────────────

    async def _when_quiet(self, queue_id: str, act: Callable[[], Awaitable[None]]) -> bool:
        """Act now, or after what is under way. False for an unknown id."""
        if queue_id not in self._store.entries:
            return False
        record = self._records.get(queue_id)
        if record is not None and record.activity is not None:
            record.activity.afterwards.append(act)
        else:
            await act()
        return True

    async def _hold(self, queue_id: str) -> None:
        entry = self._store.entries.get(queue_id)
        if entry is None or entry.held:
            return
        self._forget(queue_id)
        with suppress(KeyError, CorruptMessage):
            envelope = await self._store.load_envelope(queue_id)
            if not await self._write(replace(envelope, held="admin", next_attempt_at=None), durable=True):
                self._committed(envelope)
                return
            maillog.held(queue_id=queue_id, reason="admin")
            self._finish_fate(queue_id, Fate("held", envelope.attempts))
        self._arm()

    async def _release(self, queue_id: str) -> bool:
        entry = self._store.entries[queue_id]
        record = self._records.get(queue_id)
        if record is not None and record.activity is not None:
            record.activity.afterwards.append(partial(self._let_go, queue_id))
            return True
        if not entry.held:
            return False
        await self._let_go(queue_id)
        return True

    async def _let_go(self, queue_id: str) -> None:
        entry = self._store.entries.get(queue_id)
        if entry is None or not entry.held:
            return
        with suppress(KeyError, CorruptMessage):
            envelope = await self._store.load_envelope(queue_id)
            if envelope.held == lifecycle.UNDELIVERABLE:
                envelope = lifecycle.begin_again(envelope)
                self._undeliverable.pop(queue_id, None)
            else:
                envelope = replace(envelope, held="", next_attempt_at=None)
            await self._write(envelope, durable=True)
            maillog.released(queue_id=queue_id)
            self._committed(envelope)

    async def _delete(self, queue_id: str, bounce: bool) -> None:
        if queue_id not in self._store.entries:
            return
        attempts = self._store.entries[queue_id].attempts
        self._forget(queue_id)
        if bounce and not await self._bounce(queue_id):
            return
        self._gone(queue_id)
        maillog.deleted(queue_id=queue_id, reason="by the administrator")
        self._finish_fate(queue_id, Fate("deleted", attempts))
        self._arm()

    async def _bounce(self, queue_id: str) -> bool:
        """Report everybody who is pending as failed; False where that cannot be."""
        try:
            envelope, message = await self._store.load(queue_id)
        except (KeyError, CorruptMessage):
            return False
        settlement = lifecycle.give_up(self._config, envelope, self._clock.wall())
        try:
            await self._put_reports(settlement, message)
        except (QueueRefusal, OSError) as problem:
            maillog.error(f"cannot store a report about {queue_id}: {problem}")
            self._committed(envelope)
            return False
        self._say(settlement, envelope.attempts)
        self._count(settlement)
        return True

    # ── what is said ─────────────────────────────────────────────────────────────────────────────

    def _say(self, settlement: Settlement, number: int) -> None:
        envelope = settlement.envelope
        delay_seconds = max(self._clock.wall() - envelope.accepted_at, 0.0)
        for event in settlement.events:
            to = envelope.recipients[event.position].forward_path
            next_hop = event.next_hop.name if event.next_hop else ""
            match event.status:
                case RecipientStatus.RELAYED:
                    maillog.relayed(
                        queue_id=envelope.queue_id,
                        to=to,
                        next_hop=next_hop,
                        reply=event.reply,
                        attempt=number,
                        delay_seconds=delay_seconds,
                        tls=event.next_hop.tls_used if event.next_hop else "",
                    )
                case RecipientStatus.FAILED:
                    maillog.failed(
                        queue_id=envelope.queue_id,
                        to=to,
                        next_hop=next_hop,
                        reply=event.reply,
                        dsn=event.dsn,
                    )
                case RecipientStatus.PENDING:
                    maillog.deferred(
                        queue_id=envelope.queue_id,
                        to=to,
                        next_hop=next_hop,
                        reply=event.reply,
                        next_attempt_at=envelope.next_attempt_at,
                    )

    def _say_passed_over(self, envelope: Envelope, record: Record) -> None:
        """A message that comes while its way is paused: tell once why it stays."""
        at = self.next_attempt_at(record.queue_id)
        for way in self._ways(envelope):
            for position in way.positions:
                maillog.deferred(
                    queue_id=envelope.queue_id,
                    to=envelope.recipients[position].forward_path,
                    next_hop=way.via[0],
                    reply=self._passed_over(way),
                    next_attempt_at=at,
                )
        if envelope.kind is Kind.MAIL:
            self._totals["deferred"] += 1

    def _alert_no_route(self, envelope: Envelope, way: WayOut) -> None:
        """Once for each message."""
        last_replies = {envelope.recipients[position].last_reply for position in way.positions}
        if lifecycle.NO_ROUTE.reply not in last_replies:
            maillog.alert(reason="no route of the file takes a waiting message", queue_id=envelope.queue_id)

    def _count(self, settlement: Settlement) -> None:
        if settlement.envelope.kind is not Kind.MAIL:
            return
        said = {event.status for event in settlement.events}
        if RecipientStatus.FAILED in said:
            self._totals["failed"] += 1
        elif settlement.finished:
            self._totals["relayed"] += 1
        if RecipientStatus.PENDING in said:
            self._totals["deferred"] += 1

    # ── fates ────────────────────────────────────────────────────────────────────────────────────

    def _fate(self, queue_id: str) -> Fate | None:
        """As things stand."""
        known = self._fates.get(queue_id)
        if known is not None and known.final and known.state != "held":
            return known
        entry = self._store.entries.get(queue_id)
        if entry is None:
            return known
        state, at = self.state_of(queue_id), self.next_attempt_at(queue_id)
        if known is None:
            return self._remember_fate(queue_id, Fate(state, entry.attempts, next_attempt_at=at))
        return replace(known, state=state, attempts=entry.attempts, next_attempt_at=at)

    def _remember_fate(self, queue_id: str, fate: Fate) -> Fate:
        """Only for those that somebody asks for."""
        self._fates.pop(queue_id, None)
        self._fates[queue_id] = fate
        if len(self._fates) > FATES_MAX:
            del self._fates[next(iter(self._fates))]
        return fate

    def _note_fate(self, settlement: Settlement, number: int) -> None:
        queue_id = settlement.envelope.queue_id
        if queue_id not in self._fates or not settlement.events:
            return
        worst = min(settlement.events, key=lambda event: _BADNESS[event.status])
        state = "deferred"
        if settlement.finished or settlement.undeliverable:
            failed = any(each.status is RecipientStatus.FAILED for each in settlement.envelope.recipients)
            state = "failed" if failed else "relayed"
        next_hop = worst.next_hop.name if worst.next_hop else ""
        self._finish_fate(queue_id, Fate(state, number, next_hop, worst.reply))

    def _finish_fate(self, queue_id: str, fate: Fate) -> None:
        if queue_id in self._fates:
            self._fates[queue_id] = fate
            self._tell_watchers(queue_id)

    def _tell_watchers(self, queue_id: str) -> None:
        for change in self._watchers.pop(queue_id, ()):
            if not change.done():
                change.set_result(None)


_BADNESS = {RecipientStatus.FAILED: 0, RecipientStatus.PENDING: 1, RecipientStatus.RELAYED: 2}


def _hops_of(config: Config) -> tuple[str, ...]:
    """Every name in the routes, in order."""
    return tuple(dict.fromkeys(name for route in config.routes for name in route.via))
