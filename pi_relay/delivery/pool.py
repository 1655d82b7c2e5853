"""The sessions of one next hop: opened no more than needed, kept a while, handed from message to message.

Rules: never more than ``connections_max``, nor more than the other side lets in. A session that ends while it
is idle is forgotten and is nobody's failure. Whoever takes a session gives it back.
It must not know messages, nor why a hop is paused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from pi_relay.delivery.session import Session, SessionFailed
from pi_relay.model import Failure, Scope

IDLE_SECONDS_MAX = 30.0
MESSAGES_PER_SESSION_MAX = 100
CROWDED_SECONDS = 300.0  # how long we believe that it takes no more connections than we had


class Pool:
    def __init__(
        self,
        open_session: Callable[[], Awaitable[Session]],
        connections_max: int,
        idle_seconds_max: float = IDLE_SECONDS_MAX,
    ) -> None:
        self._open_session = open_session
        self._connections_max = connections_max
        self._idle_seconds_max = idle_seconds_max
        self._idle: list[Session] = []  # the last used comes last
        self._busy: set[Session] = set()
        self._opening = 0
        self._leaving: set[asyncio.Future[None]] = set()
        self._waiters: deque[asyncio.Future[Session | None]] = deque()
        self._in_doubt = False  # one was refused, and others are being opened: are we one too many, or all?
        self._crowded_at = 0  # connections that it let in before it refused one
        self._crowded_until = 0.0  # of the loop's clock
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False

    def resize(self, connections_max: int) -> None:
        """Hold no more than so many: take leave of idle ones now, of busy ones as they are given back."""
        if connections_max == self._connections_max:
            return
        self._connections_max = connections_max
        while self._idle and self._is_crowded:
            self._dismiss(self._idle.pop(0))
        if self._may_open():
            self._free_a_place()

    @property
    def _is_crowded(self) -> bool:
        return len(self._idle) + len(self._busy) > self._connections_max

    @property
    def is_empty(self) -> bool:
        return not (self._idle or self._busy or self._opening or self._leaving)

    def take_idle(self) -> Session | None:
        if not self._idle:
            return None
        session = self._idle.pop()
        session.reused = True
        self._busy.add(session)
        return session

    async def take(self, *, fresh: bool = False) -> Session:
        """A kept session, a new one, or the next to be given back; ``fresh``: a new one, if any may be had.

        Raises SessionFailed.
        """
        if fresh and self._idle and not self._may_open():
            self._dismiss(self._idle.pop(0))
        while True:
            session = None if fresh else self.take_idle()
            if session is None and self._may_open():
                session = await self._open()
            if session is None:
                session = await self._wait()
            if session is not None:
                return session

    def give_back(self, session: Session) -> None:
        crowded = self._is_crowded
        self._busy.discard(session)
        if session.wire.broken:
            self._free_a_place()
        elif self._closed or crowded or session.messages >= MESSAGES_PER_SESSION_MAX:
            self._dismiss(session)
        elif (waiter := self._next_waiter()) is not None:
            session.reused = True
            self._busy.add(session)
            waiter.set_result(session)
        else:
            self._keep(session)

    def refuse_waiters(self, failure: Failure) -> None:
        """The hop is paused: whoever waits for a session need not."""
        while (waiter := self._next_waiter()) is not None:
            waiter.set_exception(SessionFailed(failure))

    def retire(self) -> None:
        """Take leave of every session as soon as it is idle."""
        self._closed = True
        for session in self._idle:
            self._dismiss(session)
        self._idle.clear()
        self._stop_sweeping()

    async def close(self, timeout_seconds: float) -> None:
        """Take leave of the idle ones politely, break the busy ones off."""
        self.retire()
        for session in self._busy:
            self._leaving.add(session.wire.closed)
            session.wire.abort("the relay is stopping")
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=timeout_seconds)

    # ── opening ──────────────────────────────────────────────────────────────────────────────────

    def _may_open(self) -> bool:
        if self._in_doubt:
            return False
        limit = self._connections_max
        if self._crowded_at and asyncio.get_running_loop().time() < self._crowded_until:
            limit = min(limit, self._crowded_at)
        return len(self._idle) + len(self._busy) + self._opening < limit

    async def _open(self) -> Session | None:
        """None where the other side may let in no more than we have or are opening: wait for one of those."""
        self._opening += 1
        try:
            session = await self._open_session()
        except SessionFailed as failed:
            self._opening -= 1
            others = len(self._idle) + len(self._busy) + self._opening
            self._in_doubt = bool(others) and failed.failure.scope is Scope.NEXT_HOP
            if self._in_doubt:
                self._settle_doubt()
                return None
            self.refuse_waiters(failed.failure)
            raise
        except BaseException:
            self._opening -= 1
            self._settle_doubt()
            self._free_a_place()
            raise
        self._opening -= 1
        self._busy.add(session)
        self._settle_doubt()
        session.wire.on_idle_end = lambda: self._forget(session)
        return session

    def _settle_doubt(self) -> None:
        """A refusal is quicker than a greeting or a handshake: wait how many are let in, if any."""
        if not self._in_doubt or self._opening:
            return
        self._in_doubt = False
        self._crowded_at = len(self._idle) + len(self._busy)
        self._crowded_until = asyncio.get_running_loop().time() + CROWDED_SECONDS

    async def _wait(self) -> Session | None:
        """The session of somebody who needs it no more; None: there may be a place for a new one."""
        if self._idle:
            return self.take_idle()
        waiter: asyncio.Future[Session | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                session = waiter.result()
                if session is None:
                    self._free_a_place()
                else:
                    self.give_back(session)
            raise

    def _free_a_place(self) -> None:
        if (waiter := self._next_waiter()) is not None:
            waiter.set_result(None)

    def _next_waiter(self) -> asyncio.Future[Session | None] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    # ── keeping ──────────────────────────────────────────────────────────────────────────────────

    def _keep(self, session: Session) -> None:
        loop = asyncio.get_running_loop()
        session.idle_since = loop.time()
        self._idle.append(session)
        if self._sweep_timer is None:
            self._sweep_timer = loop.call_later(self._idle_seconds_max, self._sweep)

    def _sweep(self) -> None:
        """Take leave of what was idle for long; come again when the next one will have been."""
        self._sweep_timer = None
        loop = asyncio.get_running_loop()
        too_old = loop.time() - self._idle_seconds_max
        for session in [each for each in self._idle if each.idle_since <= too_old]:
            self._idle.remove(session)
            self._dismiss(session)
        if self._idle:
            oldest = min(each.idle_since for each in self._idle)
            self._sweep_timer = loop.call_at(oldest + self._idle_seconds_max, self._sweep)

    def _stop_sweeping(self) -> None:
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None

    def _dismiss(self, session: Session) -> None:
        session.wire.on_idle_end = _nobody
        session.wire.quit()
        self._leaving.add(session.wire.closed)
        session.wire.closed.add_done_callback(self._leaving.discard)
        self._free_a_place()

    def _forget(self, session: Session) -> None:
        if session in self._idle:
            self._idle.remove(session)
            self._free_a_place()
        if not self._idle:
            self._stop_sweeping()


def _nobody() -> None:
    pass
