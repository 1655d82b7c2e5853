"""Joins the relay with whoever watches over it: readiness, status and watchdog of systemd, the notes.

Rules: what the watchdog asks is a table below, each question answered by the room that knows. The words for
`systemctl status` are those of `pi-relay status`; they are put together a moment after something has changed,
and now and then at the watchdog's turn: no timer runs for them on an idle box.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pi_relay import maillog, memory
from pi_relay.restarts import Restarts
from pi_relay.systemd import START_MORE_SECONDS, ServiceManager, watchdog_seconds
from pi_relay.watchdog import Watchdog

if TYPE_CHECKING:
    from pi_relay.delivery import Delivery
    from pi_relay.queue.manager import Manager
    from pi_relay.queue.store import Store
    from pi_relay.submission.server import Server

MEMORY_MAX_BYTES = 192 * 1024 * 1024  # more than any load takes
MEMORY_PER_MESSAGE_BYTES = 2048  # that waits
SHARE_OF_LIMIT = 0.9  # of MemoryMax: before the system kills us
STATUS_DELAY_SECONDS = 1.0  # after a change: next hops may change by the dozen
STATUS_EVERY_TURNS = 10  # of the watchdog, where nothing tells of a change
START_PATIENCE_SECONDS = 3600.0  # for the recovery of a huge queue


class Supervision:
    """``words``: the relay's state in a sentence."""

    def __init__(self, manager: ServiceManager, restarts: Restarts, words: Callable[[], str]) -> None:
        self._manager = manager
        self._restarts = restarts
        self._words = words
        self._watchdog: Watchdog | None = None
        self._store: Store | None = None
        self._stuck = ""  # why the watchdog gets no sign, in words
        self._slow_disk = False
        self._turns = 0
        self._refreshing = False

    # ── start and stop ───────────────────────────────────────────────────────────────────────────

    @contextmanager
    def starting(self) -> Iterator[None]:
        """While the queue is recovered: systemd waits as long as it goes on."""
        self._manager.status("Reading the queue.")
        task = asyncio.get_running_loop().create_task(self._ask_for_time())
        try:
            yield
        finally:
            task.cancel()

    async def _ask_for_time(self) -> None:
        end = time.monotonic() + START_PATIENCE_SECONDS
        while time.monotonic() < end:
            self._manager.wants_more_time()
            await asyncio.sleep(START_MORE_SECONDS / 2)

    def alone(self) -> None:
        """The queue is ours: whatever ran before has ended, and it can be told how."""
        restart = self._restarts.begin()
        if restart is not None:
            maillog.alert(reason=f"the relay was started anew: {restart.reason}")

    def watch(self, store: Store, manager: Manager, delivery: Delivery, server: Server) -> None:
        """Once all of them are at work."""
        self._store = store
        self._watchdog = Watchdog(
            watchdog_seconds(),
            (store.stuck, manager.stuck, delivery.stuck, server.stuck, self._out_of_memory),
            give_sign=self._manager.is_alive,
            withheld=self._withheld,
            checked=self._checked,
        )
        self._watchdog.start()

    def ready(self) -> None:
        self._tell()
        self._manager.ready()

    def stopping(self) -> None:
        if self._watchdog is not None:
            self._watchdog.stop()
            self._watchdog = None
        self._manager.stopping()
        self._manager.status("Stopping.")

    def stopped(self) -> None:
        self._restarts.end()

    @contextmanager
    def reloading(self) -> Iterator[None]:
        self._manager.reloading()
        try:
            yield
        finally:
            self._tell()
            self._manager.ready()

    # ── the status ───────────────────────────────────────────────────────────────────────────────

    def changed(self) -> None:
        """Something happened that `systemctl status` may have to tell."""
        if self._manager.is_there and self._watchdog is not None and not self._refreshing:
            self._refreshing = True
            asyncio.get_running_loop().call_later(STATUS_DELAY_SECONDS, self._refresh)

    def _refresh(self) -> None:
        self._refreshing = False
        if self._watchdog is not None:
            self._tell()

    def _tell(self) -> None:
        with suppress(OSError):  # short of open files: another time
            self._manager.status(f"Stuck, to be restarted: {self._stuck}." if self._stuck else self._words())

    # ── the watchdog ─────────────────────────────────────────────────────────────────────────────

    def _out_of_memory(self) -> str:
        """A leak, in words. What waits in the queue is no leak."""
        waiting = len(self._store.entries) if self._store is not None else 0
        allowed = MEMORY_MAX_BYTES + waiting * MEMORY_PER_MESSAGE_BYTES
        if limit := memory.limit_bytes():
            allowed = min(allowed, int(limit * SHARE_OF_LIMIT))
        used = 0
        with suppress(OSError):  # short of open files, which is no leak
            used = memory.rss_bytes()
        if used <= allowed:
            return ""
        return f"{used / 1e6:.0f} MB of memory are in use, {allowed / 1e6:.0f} MB are allowed"

    def _withheld(self, reason: str) -> None:
        self._stuck = reason
        if reason:
            maillog.alert(reason=f"the watchdog gets no sign of life any more: {reason}")
        else:
            maillog.notice("the watchdog gets its signs of life again")
        self._tell()
        self._restarts.note(reason)

    def _checked(self) -> None:
        """What a restart would not mend is said."""
        self._turns += 1
        slow = self._store.slow_disk() if self._store is not None else ""
        if bool(slow) != self._slow_disk:
            self._slow_disk = bool(slow)
            maillog.alert(reason=f"the queue's disk: {slow or 'it answers again'}")
            self.changed()
        elif self._turns % STATUS_EVERY_TURNS == 0:
            self.changed()
