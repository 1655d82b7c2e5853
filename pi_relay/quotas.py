"""Counts that survive a restart: how much there was in the last minute, hour or day.

A count is a rolling window in buckets: what was counted leaves it with its whole bucket, and never too early.
It goes by the monotonic clock, so that a clock which jumps neither empties nor freezes it. Over a restart the
time that went by is taken from the machine's uptime, over a reboot from the wall clock; where that clock
cannot be believed, now or when the counts were written, none went by and the old counts stand.

Rules: one small file, replaced as a whole, written soon after a change and then once a minute at most while
changes go on, and at a stop: an idle box writes nothing. What a power cut takes is the last minute. The time
is noted beside it, for the next start. It must not know what is counted, nor what follows from it.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pi_relay import maillog
from pi_relay.state import write_durably

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0

BUCKETS = 60  # in a window: an hour goes by minutes
WRITE_SOON_SECONDS = 1.0
WRITES_APART_SECONDS = 60.0
NOTES_APART_SECONDS = 600.0  # of the time
FILE_NAME = "quotas.json"
FORMAT_VERSION = 1


def _nobody() -> None:
    pass


class Window:
    """What was counted in the last ``span_seconds``. ``now`` is monotonic everywhere."""

    __slots__ = ("_bucket_seconds", "_buckets", "_on_counted", "_total", "span_seconds")

    def __init__(self, span_seconds: float, on_counted: Callable[[], None] = _nobody) -> None:
        self.span_seconds = span_seconds
        self._bucket_seconds = span_seconds / BUCKETS
        self._buckets: deque[list[int]] = deque()  # [number, count], the oldest first
        self._total = 0
        self._on_counted = on_counted

    def count(self, now: float, amount: int = 1) -> None:
        """``amount`` < 0 takes back what was counted a moment ago, and has not come true."""
        self._add(int(now // self._bucket_seconds), amount)
        self._on_counted()

    def total(self, now: float) -> int:
        buckets = self._buckets
        while buckets and self._leaves_at(buckets[0][0]) <= now:
            self._total -= buckets.popleft()[1]
        return self._total

    def below_at(self, now: float, limit: int) -> float:
        """When the total will be below ``limit``, if nothing is counted until then."""
        left, at = self.total(now), now
        for number, amount in self._buckets:
            if left < limit:
                break
            left, at = left - amount, self._leaves_at(number)
        return at

    def _add(self, number: int, amount: int) -> None:
        buckets = self._buckets
        if buckets and buckets[-1][0] >= number:
            buckets[-1][1] += amount
        else:
            buckets.append([number, amount])
        self._total += amount

    def _leaves_at(self, number: int) -> float:
        return (number + 1) * self._bucket_seconds + self.span_seconds

    def ages(self, now: float) -> list[tuple[float, int]]:
        """The buckets, as seconds since their end (less than 0: it is not over yet) and their counts."""
        self.total(now)
        return [
            (round(now - (number + 1) * self._bucket_seconds, 1), amount) for number, amount in self._buckets
        ]

    def restore(self, now: float, ages: list[tuple[float, int]]) -> None:
        for age_seconds, amount in ages:
            self._add(math.ceil((now - age_seconds) / self._bucket_seconds) - 1, amount)


class Quotas:
    """The windows of this box by name. ``directory``: where they are kept; None: only in memory.

    ``clock_is_wrong``: whether the wall clock must not be believed. ``note_time`` is called beside a writing.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        clock_is_wrong: Callable[[], bool] = lambda: False,
        note_time: Callable[[], None] = _nobody,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        uptime: Callable[[], tuple[str, float]] | None = None,
    ) -> None:
        self.monotonic = monotonic
        self._path = None if directory is None else directory / FILE_NAME
        self._clock_is_wrong = clock_is_wrong
        self._note_time = note_time
        self._wall = wall
        self._uptime = uptime or _uptime
        self._windows: dict[str, Window] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None
        self._changed = False
        self._written_at = self._noted_at = float("-inf")
        self._closed = False
        self._failed = False
        if self._path is not None:
            self._load(self._path)

    def window(self, name: str, span_seconds: float) -> Window:
        """The window of that name, with what an earlier process counted."""
        key = f"{name} {span_seconds:.0f}"
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Window(span_seconds, self._on_counted)
        return window

    def forget(self, name: str, span_seconds: float) -> None:
        self._windows.pop(f"{name} {span_seconds:.0f}", None)

    def names(self, prefix: str) -> list[str]:
        """The names of the windows that begin so, without the prefix and without their span."""
        return [key[len(prefix) :].rpartition(" ")[0] for key in self._windows if key.startswith(prefix)]

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def _on_counted(self) -> None:
        if self._path is None or self._changed or self._closed:
            return
        self._changed = True
        delay_seconds = max(self._written_at + WRITES_APART_SECONDS - self.monotonic(), WRITE_SOON_SECONDS)
        self._timer = asyncio.get_running_loop().call_later(delay_seconds, self._write_aside)

    def _write_aside(self) -> None:
        """Off the loop: a disk may be slow."""
        self._timer = None
        if self._writing is not None:  # a very slow one
            self._timer = asyncio.get_running_loop().call_later(WRITES_APART_SECONDS, self._write_aside)
            return
        self._changed = False
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, self._write, self._encoded())
        self._writing.add_done_callback(self._written)

    def _written(self, _: asyncio.Future[None]) -> None:
        self._writing = None

    def _write(self, data: bytes) -> None:
        now = self.monotonic()
        self._written_at = now
        assert self._path is not None
        try:
            write_durably(self._path, data)
            self._failed = False
        except OSError as problem:
            if not self._failed:
                maillog.error(f"the counts of quotas cannot be written: {problem}")
            self._failed = True
            return
        if now - self._noted_at >= NOTES_APART_SECONDS:
            self._noted_at = now
            self._note_time()

    async def close(self) -> None:
        """Write how things stand; nothing is written afterwards."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing is not None:
            await asyncio.wait([self._writing])
        now = self.monotonic()
        if self._path is not None and (
            self._changed or any(window.total(now) for window in self._windows.values())
        ):
            await asyncio.to_thread(self._write, self._encoded())

    def _encoded(self) -> bytes:
        now = self.monotonic()
        boot_id, uptime_seconds = self._uptime()
        document = {
            "format_version": FORMAT_VERSION,
            "boot_id": boot_id,
            "uptime_seconds": uptime_seconds,
            "time": None if self._clock_is_wrong() else self._wall(),
            "windows": {key: window.ages(now) for key, window in self._windows.items() if window.total(now)},
        }
        return json.dumps(document, separators=(",", ":")).encode()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def _load(self, path: Path) -> None:
        try:
            document = json.loads(path.read_bytes())
            if document["format_version"] != FORMAT_VERSION:
                raise ValueError("it is of another version")
            then = self.monotonic() - self._seconds_gone_by(document)
            for key, ages in document["windows"].items():
                window = Window(float(key.rpartition(" ")[2]), self._on_counted)
                window.restore(then, ages)
                self._windows[key] = window
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
            self._windows.clear()
            maillog.error(f"the counts of quotas cannot be read, they begin anew: {problem}")

    def _seconds_gone_by(self, document: dict[str, Any]) -> float:
        """Since the file was written; 0 where nobody knows."""
        boot_id, uptime_seconds = self._uptime()
        if boot_id and boot_id == document["boot_id"]:
            return max(uptime_seconds - float(document["uptime_seconds"]), 0.0)
        written_at = document["time"]
        if written_at is None or self._clock_is_wrong():
            return 0.0
        return max(self._wall() - float(written_at), 0.0)


def _uptime() -> tuple[str, float]:
    """Which run of the machine this is, and how long it has been going: no clock's settings matter."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot_id = ""
    return boot_id, time.clock_gettime(time.CLOCK_BOOTTIME)
