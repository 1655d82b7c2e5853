"""Where messages wait in memory: in a line for their turn, in a park while all their ways are paused.

Purpose: ten thousand waiting messages must cost little memory and no time at all. A line belongs to one way
out; whatever stands in it is due and goes as soon as the way is open and has room. While it is paused nothing
in it moves, so that a next hop that goes and comes back costs no work by the message.
A park keeps the time of messages that only stand in paused lines: its clock runs while the schedule does,
and the moment at which a message's schedule is used up is found by that clock, not by a timer of its own.
Rules: plain data, no tasks, no clock, no disk. It must not know why anything is due.
"""

from __future__ import annotations

from asyncio import Lock
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from heapq import heapify, heappop, heappush

from pi_relay.model import Envelope

Via = tuple[str, ...]


class Activity:
    """What is under way for a message: attempts by some of its ways out, or something to be settled."""

    __slots__ = ("afterwards", "envelope", "flying", "number", "settling", "tasks", "tried", "under_way")

    def __init__(self, number: int) -> None:
        self.number = number  # of the attempt
        self.envelope: Envelope | None = None  # as last settled
        self.flying: set[int] = set()  # positions that are being tried
        self.under_way: set[Via] = set()
        self.tried: set[Via] = set()  # those over included
        self.tasks = 0
        self.settling = Lock()  # settlements of one envelope never overlap
        self.afterwards: list[Callable[[], Awaitable[None]]] = []  # what the admin asked for meanwhile


class Record:
    """What the manager knows of a message that is not held and not yet settled, beside its store entry."""

    __slots__ = ("activity", "due", "park", "queue_id", "slots_used", "vias", "waits_in", "wake_at")

    def __init__(self, queue_id: str, slots_used: int, due: float) -> None:
        self.queue_id = queue_id
        self.slots_used = slots_used  # those passed over included
        self.due = due  # the next slot, by the monotonic clock; by the park's while parked
        self.vias: tuple[Via, ...] = ()  # its ways out when last looked at; () = not known
        self.waits_in: tuple[Via, ...] = ()  # the lines it stands in
        self.park: Park | None = None
        self.wake_at: float | None = None  # its valid entry among the moments, or in the park's
        self.activity: Activity | None = None  # while something is under way


class Line:
    """The messages that are due by one way out: our reports first, then the devices in turn."""

    __slots__ = ("_alone", "_devices", "_reports", "hops", "via")

    def __init__(self, via: Via, hops: tuple[str, ...]) -> None:
        self.via = via
        self.hops = hops
        self._alone = (via,)
        self._reports: deque[Record] = deque()
        self._devices: dict[str, deque[Record]] = {}

    def push(self, record: Record, *, device: str, is_report: bool) -> None:
        record.waits_in = (*record.waits_in, self.via) if record.waits_in else self._alone
        if is_report:
            self._reports.append(record)
            return
        turn = self._devices.get(device)
        if turn is None:
            turn = self._devices[device] = deque()
        turn.append(record)

    @property
    def is_empty(self) -> bool:
        return not (self._reports or self._devices)

    def __iter__(self) -> Iterator[Record]:
        for turn in (self._reports, *self._devices.values()):
            yield from (record for record in turn if self.via in record.waits_in)

    def pop(self) -> Record | None:
        """Whose turn it is; those taken out of the line meanwhile are skipped."""
        while record := self._take():
            if self.via in record.waits_in:
                left = record.waits_in
                record.waits_in = () if len(left) == 1 else tuple(via for via in left if via != self.via)
                return record
        return None

    def _take(self) -> Record | None:
        if self._reports:
            return self._reports.popleft()
        for device, turn in self._devices.items():
            record = turn.popleft()
            del self._devices[device]
            if turn:
                self._devices[device] = turn  # to the end of the round
            return record
        return None


class Moments:
    """Messages by the moment at which something has to be done for them; the earliest first."""

    def __init__(self, is_valid: Callable[[float, str], bool]) -> None:
        """``is_valid(at, queue_id)``: whether an entry still holds; stale ones are dropped when met."""
        self._heap: list[tuple[float, str]] = []
        self._is_valid = is_valid
        self._sweep_at = 64

    def add(self, at: float, queue_id: str) -> None:
        heappush(self._heap, (at, queue_id))
        if len(self._heap) > self._sweep_at:
            self._heap = [entry for entry in self._heap if self._is_valid(*entry)]
            heapify(self._heap)
            self._sweep_at = 2 * len(self._heap) + 64

    def first(self) -> float | None:
        while self._heap and not self._is_valid(*self._heap[0]):
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_until(self, now: float) -> list[str]:
        due = []
        while self._heap and self._heap[0][0] <= now:
            at, queue_id = heappop(self._heap)
            if self._is_valid(at, queue_id):
                due.append(queue_id)
        return due


class Park:
    """Messages with the same ways out, all of them paused. Its clock stands still in ACCOUNT trouble."""

    __slots__ = ("_clock_seconds", "_since", "expiries", "hops", "vias")

    def __init__(self, vias: tuple[Via, ...], hops: frozenset[str], expiries: Moments) -> None:
        self.vias = vias
        self.hops = hops
        self.expiries = expiries
        self._clock_seconds = 0.0
        self._since: float | None = None  # None: it stands still

    @property
    def running(self) -> bool:
        return self._since is not None

    def clock(self, now: float) -> float:
        return self._clock_seconds + (now - self._since if self._since is not None else 0.0)

    def run(self, now: float, running: bool) -> None:
        self._clock_seconds = self.clock(now)
        self._since = now if running else None

    def moment(self, at: float, now: float) -> float:
        """The monotonic time at which a running clock will show ``at``."""
        return now + at - self.clock(now)
