"""Passes messages on: the next hops of a way out, tried in turn, and what each recipient got.

Rules: another next hop is tried only where the one before cannot have taken the message, and where one may
have taken it (the end of data went unanswered) that one is asked again. It never raises but for cancellation.
It must not know the queue, nor decide what a failure means.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable

from pi_relay.config import Config, SmartHost
from pi_relay.delivery.health import OPEN, Health
from pi_relay.delivery.hop import Attempt, Hop
from pi_relay.delivery.pacing import Pacing, limits_of
from pi_relay.delivery.session import Session, TlsContexts, open_session
from pi_relay.delivery.signing import Signer
from pi_relay.delivery.timeouts import Timeouts
from pi_relay.lifecycle import NO_ROUTE
from pi_relay.model import (
    DeliveryReport,
    Envelope,
    Failure,
    HopState,
    NextHop,
    Reply,
    Scope,
    StoredMessage,
    WayOut,
)
from pi_relay.quotas import Quotas
from pi_relay.status import HopStatus

CLOSE_SECONDS = 5.0
IN_DOUBT_MAX = 1000
GAP_SHARE = 0.5  # of the first retry delay: beyond it a pause is no worse than slowing down

# Of several next hops that could not be used, the one is reported whose trouble is nearest to ours to mend.
_TOLD_FIRST = {Scope.ACCOUNT: 2, Scope.NEXT_HOP: 1, Scope.MESSAGE: 0, Scope.RECIPIENT: 0}

Results = dict[int, tuple[NextHop | None, Reply | Failure]]


class Delivery:
    """``on_hop_changed`` is told the name of a smart host that is paused, may be probed, or is open again.

    ``quotas``: where it counts what its limits are about; None: in memory.

    ``clock_is_wrong``: whether no time may be told to others.
    """

    def __init__(
        self,
        config: Config,
        *,
        on_hop_changed: Callable[[str], None],
        quotas: Quotas | None = None,
        timeouts: Timeouts | None = None,
        clock_is_wrong: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._on_hop_changed = on_hop_changed
        self._quotas = quotas or Quotas()
        self._timeouts = timeouts or Timeouts()
        self._contexts = TlsContexts()
        self._signer = Signer(clock_is_wrong)
        self._in_doubt: OrderedDict[tuple[str, int], str] = OrderedDict()  # (queue id, position): hop
        self._hops = {host.name: self._make_hop(host) for host in config.smart_hosts}
        self._retired: list[Hop] = []

    def _make_hop(self, host: SmartHost) -> Hop:
        health = Health(host.name, self._config.queue.retry_delays_seconds, self._on_hop_changed)
        pacing = Pacing(
            host.name,
            limits_of(host, self._quotas),
            host.connections_max,
            self._gap_max_seconds(self._config),
            lambda: self._on_hop_changed(host.name),
            monotonic=self._quotas.monotonic,
        )
        return Hop(host, health, pacing, self._open_session, self._timeouts, self._config, self._signer)

    def _gap_max_seconds(self, config: Config) -> float:
        return config.queue.retry_delays_seconds[0] * GAP_SHARE

    async def _open_session(self, host: SmartHost) -> Session:
        return await open_session(host, self._config, self._contexts, self._timeouts)

    # ── delivering ───────────────────────────────────────────────────────────────────────────────

    async def deliver(self, envelope: Envelope, way: WayOut, message: StoredMessage) -> DeliveryReport:
        """Try the way's next hops in turn: a result for each of its positions."""
        results: Results = {}
        handed_on: set[int] = set()
        positions = way.positions
        via = self._via(envelope, way)
        for name in via:
            hop = self._hops.get(name)
            if hop is None:  # the file was changed since
                continue
            attempt = await hop.attempt(envelope, positions, message, patient=name == via[-1])
            handed_on |= attempt.notify_handed_on
            for position, outcome in attempt.outcomes.items():
                if position not in attempt.onward or _tells_more(outcome, results.get(position)):
                    results[position] = (hop.next_hop, outcome)
            if self._in_doubt or attempt.in_doubt:
                self._note_doubts(envelope.queue_id, name, attempt)
            positions = tuple(position for position in positions if position in attempt.onward)
            if not positions:
                break
        for position in positions:
            results.setdefault(position, (None, NO_ROUTE))
        return DeliveryReport(results, frozenset(handed_on))

    def _via(self, envelope: Envelope, way: WayOut) -> tuple[str, ...]:
        for position in way.positions if self._in_doubt else ():
            name = self._in_doubt.get((envelope.queue_id, position))
            if name in way.via and name in self._hops:
                return (name,)
        return way.via

    def _note_doubts(self, queue_id: str, name: str, attempt: Attempt) -> None:
        """Remember who may have a message although it did not say so, until it says something."""
        for position in attempt.outcomes:
            if position not in attempt.onward:
                self._in_doubt.pop((queue_id, position), None)
        for position in attempt.in_doubt:
            self._in_doubt[queue_id, position] = name
        while len(self._in_doubt) > IN_DOUBT_MAX:
            self._in_doubt.popitem(last=False)

    # ── the next hops ────────────────────────────────────────────────────────────────────────────

    def hop_state(self, name: str) -> HopState:
        """An unknown name is open: an attempt then says what is wrong with it."""
        hop = self._hops.get(name)
        return OPEN if hop is None else hop.state

    def capacity(self, name: str) -> int:
        """How many attempts at once are of use."""
        hop = self._hops.get(name)
        return 1 if hop is None else hop.pacing.capacity

    def resume(self, names: Iterable[str] | None = None) -> None:
        """Lift the pauses of these smart hosts, or of all."""
        for name in self._hops if names is None else names:
            if name in self._hops:
                self._hops[name].resume()

    def hops(self) -> list[HopStatus]:
        return [hop.status() for hop in self._hops.values()]

    # ── changes ──────────────────────────────────────────────────────────────────────────────────

    async def reconfigure(self, config: Config) -> None:
        """Take over a new configuration. What is under way ends as it began.

        A smart host that was changed, or that now hears another name of us, starts without its troubles.
        """
        same_name = config.hostname == self._config.hostname
        old, self._hops, self._config = self._hops, {}, config
        self._contexts = TlsContexts()  # the CA store may have been changed, too
        changed = []
        for host in config.smart_hosts:
            hop = old.get(host.name)
            if hop is not None and hop.host == host and same_name:
                hop.health.delays_seconds = config.queue.retry_delays_seconds
                hop.pacing.gap_max_seconds = self._gap_max_seconds(config)
                hop.config = config
                self._hops[host.name] = old.pop(host.name)
            else:
                self._hops[host.name] = self._make_hop(host)
                changed.append(host.name)
        for hop in old.values():
            hop.health.close()
            hop.pool.retire()
        self._retired = [hop for hop in (*self._retired, *old.values()) if not hop.pool.is_empty]
        for name in changed:
            self._on_hop_changed(name)

    async def close(self) -> None:
        """Take leave of every next hop; no attempt should be under way any more."""
        hops = (*self._hops.values(), *self._retired)
        for hop in hops:
            hop.health.close()
            hop.pacing.close()
        await asyncio.gather(*(hop.pool.close(CLOSE_SECONDS) for hop in hops))


def _tells_more(outcome: Reply | Failure, before: tuple[NextHop | None, Reply | Failure] | None) -> bool:
    if before is None or isinstance(outcome, Reply) or isinstance(before[1], Reply):
        return True
    return _TOLD_FIRST[outcome.scope] >= _TOLD_FIRST[before[1].scope]
