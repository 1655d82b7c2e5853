"""Scripted next hops for the manager: what each says, when each is paused, and who was tried when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from pi_relay.model import (
    DeliveryReport,
    Envelope,
    Failure,
    HopCondition,
    HopState,
    NextHop,
    Reply,
    Scope,
    StoredMessage,
    WayOut,
)

OPEN = HopState(HopCondition.OPEN)
TAKEN = Reply(250, "2.0.0", "queued", "mx.example")


def failure(scope: Scope, code: int = 450, *, permanent: bool = False, text: str = "no") -> Failure:
    return Failure(scope, Reply(code, "", text, "mx.example"), permanent)


DOWN = failure(Scope.NEXT_HOP, 421, text="cannot connect")
GREYLISTED = failure(Scope.RECIPIENT, 450, text="greylisted")
UNKNOWN = failure(Scope.RECIPIENT, 550, permanent=True, text="no such user")
BAD_PASSWORD = failure(Scope.ACCOUNT, 535, text="bad credentials")

Outcome = Reply | Failure


class Listener(Protocol):
    def hop_changed(self, name: str) -> None: ...


class NextHops:
    """``says[name]``: an outcome, or a function of (envelope, position)."""

    def __init__(self, capacity: int = 4) -> None:
        self.says: dict[str, Outcome | Callable[[Envelope, int], Outcome]] = {}
        self.pauses_on_trouble = False
        self.tried: list[tuple[str, str, tuple[int, ...]]] = []  # queue id, next hop, positions
        self.messages: list[tuple[Envelope, bytes, object]] = []  # those taken
        self.relayed: list[tuple[str, int]] = []  # queue id, position
        self.most_at_once: dict[str, int] = {}
        self.blocked = 0  # attempts held up now
        self.resumed: list[set[str] | None] = []
        self.listener: Listener | None = None
        self._capacity = capacity
        self._states: dict[str, HopState] = {}
        self._at_once: dict[str, int] = {}
        self._gates: dict[str, asyncio.Event] = {}

    # ── what the manager is handed ───────────────────────────────────────────────────────────────

    async def deliver(self, envelope: Envelope, way: WayOut, message: StoredMessage) -> DeliveryReport:
        name = next((each for each in way.via if self._is_free(each)), way.via[-1])
        self.tried.append((envelope.queue_id, name, way.positions))
        self._at_once[name] = self._at_once.get(name, 0) + 1
        self.most_at_once[name] = max(self.most_at_once.get(name, 0), self._at_once[name])
        try:
            gate = self._gates.get(name)
            if gate is None:
                await asyncio.sleep(0)
            else:
                self.blocked += not gate.is_set()
                await gate.wait()
        finally:
            self._at_once[name] -= 1
        return self._report(name, envelope, way, message)

    def hop_state(self, name: str) -> HopState:
        return self._states.get(name, OPEN)

    def capacity(self, _: str) -> int:
        return self._capacity

    def resume(self, names: Iterable[str] | None) -> None:
        self.resumed.append(None if names is None else set(names))
        for name in list(self._states) if names is None else names:
            if self._is_paused(name):
                self.probe(name)

    # ── what the tests do ────────────────────────────────────────────────────────────────────────

    def pause(
        self, name: str, scope: Scope = Scope.NEXT_HOP, until: float = 0.0, reply: Reply | None = None
    ) -> None:
        self._change(name, HopState(HopCondition.PAUSED, scope, until, reply))

    def pace(self, name: str, until: float = 0.0) -> None:
        self._change(name, HopState(HopCondition.PACED, until_monotonic=until))

    def probe(self, name: str) -> None:
        self._change(name, HopState(HopCondition.PROBING, self.hop_state(name).scope))

    def open(self, name: str) -> None:
        self._change(name, OPEN)

    def block(self, name: str) -> None:
        """Attempts at this hop do not end until ``unblock``."""
        self._gates[name] = asyncio.Event()

    def unblock(self, name: str) -> None:
        self.blocked -= self._at_once.get(name, 0)
        self._gates.pop(name).set()

    def tries_of(self, queue_id: str) -> int:
        return sum(1 for tried, _, _ in self.tried if tried == queue_id)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _report(self, name: str, envelope: Envelope, way: WayOut, message: StoredMessage) -> DeliveryReport:
        says = self.says.get(name, TAKEN)
        hop = NextHop(name, f"{name}.example", 587, "starttls")
        results = {}
        for position in way.positions:
            outcome = says(envelope, position) if callable(says) else says
            results[position] = (hop, outcome)
            if isinstance(outcome, Reply):
                self.relayed.append((envelope.queue_id, position))
                self.messages.append((envelope, message.header, message.body))
        outcomes = [outcome for _, outcome in results.values()]
        trouble = [
            each
            for each in outcomes
            if isinstance(each, Failure) and each.scope in (Scope.NEXT_HOP, Scope.ACCOUNT)
        ]
        if trouble and self.pauses_on_trouble:
            self.pause(name, trouble[0].scope, reply=trouble[0].reply)
        elif not trouble and self.hop_state(name).condition is HopCondition.PROBING:
            self.open(name)
        return DeliveryReport(results)

    def _is_free(self, name: str) -> bool:
        """Neither paused, nor probed by another attempt."""
        probing = self.hop_state(name).condition is HopCondition.PROBING
        return not self._is_paused(name) and not (probing and self._at_once.get(name, 0))

    def _is_paused(self, name: str) -> bool:
        return self.hop_state(name).condition is HopCondition.PAUSED

    def _change(self, name: str, state: HopState) -> None:
        self._states[name] = state
        if self.listener is not None:
            self.listener.hop_changed(name)
