"""Passes messages on: the next hops of a way out, tried in turn, and what each recipient got.

Rules: another next hop is tried only where the one before cannot have taken the message, and where one may
have taken it (the end of data went unanswered) that one is asked again. It never raises but for cancellation.
It must not know the queue, nor decide what a failure means.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pi_relay.config import Config, SmartHost
from pi_relay.delivery.deadlines import Deadlines
from pi_relay.delivery.health import OPEN, Health
from pi_relay.delivery.hop import Attempt, Hop
from pi_relay.delivery.pacing import Pacing, limits_of, longest_gap_seconds
from pi_relay.delivery.session import Resolve, Session, TlsContexts, open_session
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
from pi_relay.routes import DIRECT, domain_of
from pi_relay.status import HopStatus

if TYPE_CHECKING:
    from pi_relay.delivery.direct import Direct

CLOSE_SECONDS = 5.0
IN_DOUBT_MAX = 1000
DIRECT_CAPACITY = 4  # attempts at once at one domain
DELIVERY_SECONDS_MAX = 6 * 3600.0  # with all the waiting for others: each step of its own has minutes

# Of several next hops that could not be used, the one is reported whose trouble is nearest to ours to mend.
_TOLD_FIRST = {Scope.ACCOUNT: 2, Scope.NEXT_HOP: 1, Scope.MESSAGE: 0, Scope.RECIPIENT: 0}

Results = dict[int, tuple[NextHop | None, Reply | Failure]]


class Delivery:
    """``on_hop_changed`` is told the name of a smart host that is paused, may be probed, or is open again.

    ``quotas``: where it counts what its limits are about; None: in memory.

    ``clock_is_wrong``: whether no time may be told to others. ``state_directory``: where MTA-STS policies are
    kept; None: nowhere, and none are asked for. ``direct_port``: of MX hosts, for tests.
    """

    def __init__(
        self,
        config: Config,
        *,
        on_hop_changed: Callable[[str], None],
        quotas: Quotas | None = None,
        timeouts: Timeouts | None = None,
        clock_is_wrong: Callable[[], bool] = lambda: False,
        state_directory: Path | None = None,
        direct_port: int = 25,
    ) -> None:
        self._config = config
        self._on_hop_changed = on_hop_changed
        self._quotas = quotas or Quotas()
        self._timeouts = timeouts or Timeouts()
        self._contexts = TlsContexts()
        self._signer = Signer(clock_is_wrong)
        self._state_directory = state_directory
        self._direct_port = direct_port
        self._clock_is_wrong = clock_is_wrong
        self._deadlines = Deadlines()
        self._in_doubt: OrderedDict[tuple[str, int], str] = OrderedDict()  # (queue id, position): hop
        self._hops = {host.name: self._make_hop(host) for host in config.smart_hosts}
        self._direct = self._make_direct()
        self._retired: list[Hop] = []

    def _make_hop(self, host: SmartHost) -> Hop:
        health = Health(host.name, self._config.queue.retry_delays_seconds, self._on_hop_changed)
        pacing = Pacing(
            host.name,
            limits_of(host, self._quotas),
            host.connections_max,
            longest_gap_seconds(self._config.queue.retry_delays_seconds),
            lambda: self._on_hop_changed(host.name),
            monotonic=self._quotas.monotonic,
        )
        return Hop(
            host,
            health,
            pacing,
            self._open_session,
            self._timeouts,
            self._config,
            self._signer,
            self._deadlines,
        )

    def _make_direct(self) -> Direct | None:
        """Imported, like all that it needs, only where a route leads straight to the recipients' servers."""
        config = self._config
        if not _goes_direct(config):
            return None
        from pi_relay.delivery.direct import Direct
        from pi_relay.delivery.mta_sts import Policies
        from pi_relay.delivery.mx import Lookups

        lookups, policies = Lookups(config.direct), None
        if config.direct.mta_sts and self._state_directory is not None:
            policies = Policies(
                self._state_directory,
                lookups,
                tls_context=lambda: self._contexts.get(verify=True),
                clock_is_wrong=self._clock_is_wrong,
            )
        return Direct(
            config,
            lookups,
            policies,
            open_session=self._open_session,
            on_changed=self._on_hop_changed,
            timeouts=self._timeouts,
            signer=self._signer,
            deadlines=self._deadlines,
            port=self._direct_port,
        )

    async def _open_session(self, host: SmartHost, resolve: Resolve | None = None) -> Session:
        with self._deadlines.step(f"connecting to {host.name}", self._timeouts.transaction):
            return await open_session(host, self._config, self._contexts, self._timeouts, resolve)

    # ── delivering ───────────────────────────────────────────────────────────────────────────────

    async def deliver(self, envelope: Envelope, way: WayOut, message: StoredMessage) -> DeliveryReport:
        """Try the way's next hops in turn: a result for each of its positions."""
        with self._deadlines.step(f"a delivery by {', '.join(way.via)}", DELIVERY_SECONDS_MAX):
            return await self._deliver(envelope, way, message)

    async def _deliver(self, envelope: Envelope, way: WayOut, message: StoredMessage) -> DeliveryReport:
        results: Results = {}
        handed_on: set[int] = set()
        positions = way.positions
        via = self._via(envelope, way)
        for name in via:
            made = await self._attempt(name, envelope, positions, message, patient=name == via[-1])
            if made is None:  # the file was changed since
                continue
            attempt, told_by = made
            handed_on |= attempt.notify_handed_on
            for position, outcome in attempt.outcomes.items():
                if position not in attempt.onward or _tells_more(outcome, results.get(position)):
                    results[position] = (told_by.get(position), outcome)
            if self._in_doubt or attempt.in_doubt:
                self._note_doubts(envelope.queue_id, name, attempt)
            positions = tuple(position for position in positions if position in attempt.onward)
            if not positions:
                break
        for position in positions:
            results.setdefault(position, (None, NO_ROUTE))
        return DeliveryReport(results, frozenset(handed_on))

    async def _attempt(
        self,
        name: str,
        envelope: Envelope,
        positions: tuple[int, ...],
        message: StoredMessage,
        *,
        patient: bool,
    ) -> tuple[Attempt, Mapping[int, NextHop]] | None:
        """At the smart host or the domain of this name, and who said what; None where there is none."""
        hop = self._hops.get(name)
        if hop is not None:
            attempt = await hop.attempt(envelope, positions, message, patient=patient)
            return attempt, dict.fromkeys(attempt.outcomes, hop.next_hop)
        domain = domain_of(name)
        if self._direct is None or not domain:
            return None
        return await self._direct.attempt(name, domain, envelope, positions, message, patient=patient)

    def _exists(self, name: str) -> bool:
        return name in self._hops or (self._direct is not None and domain_of(name) != "")

    def _via(self, envelope: Envelope, way: WayOut) -> tuple[str, ...]:
        for position in way.positions if self._in_doubt else ():
            name = self._in_doubt.get((envelope.queue_id, position))
            if name is not None and name in way.via and self._exists(name):
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
        if hop is not None:
            return hop.state
        return self._direct.state(name) if self._direct is not None else OPEN

    def capacity(self, name: str) -> int:
        """How many attempts at once are of use."""
        hop = self._hops.get(name)
        if hop is not None:
            return hop.pacing.capacity
        return DIRECT_CAPACITY if self._direct is not None and name.startswith(DIRECT) else 1

    def resume(self, names: Iterable[str] | None = None) -> None:
        """Lift the pauses of these smart hosts, or of all."""
        direct = self._direct
        every = [*self._hops, *(direct.names() if direct is not None else ())]
        for name in every if names is None else names:
            if name in self._hops:
                self._hops[name].resume()
            elif direct is not None:
                direct.resume(name)

    def stuck(self) -> str:
        """Which step of a delivery is past its deadline, in words; "" while none is."""
        return self._deadlines.missed()

    def hops(self) -> list[HopStatus]:
        """Of every smart host; of direct delivery as a whole, and of the domains that are in trouble."""
        hosts = [hop.status() for hop in self._hops.values()]
        return hosts + (self._direct.status() if self._direct is not None else [])

    # ── changes ──────────────────────────────────────────────────────────────────────────────────

    async def reconfigure(self, config: Config) -> None:
        """Take over a new configuration. What is under way ends as it began.

        A smart host that was changed, or that now hears another name of us, starts without its troubles.
        """
        same_name = config.hostname == self._config.hostname
        same_direct = _is_same_direct(self._config, config)
        old, self._hops, self._config = self._hops, {}, config
        self._contexts = TlsContexts()  # the CA store may have been changed, too
        changed = []
        for host in config.smart_hosts:
            hop = old.get(host.name)
            if hop is not None and hop.host == host and same_name:
                hop.health.delays_seconds = config.queue.retry_delays_seconds
                hop.pacing.gap_max_seconds = longest_gap_seconds(config.queue.retry_delays_seconds)
                hop.config = config
                self._hops[host.name] = old.pop(host.name)
            else:
                self._hops[host.name] = self._make_hop(host)
                changed.append(host.name)
        for hop in old.values():
            hop.health.close()
            hop.pool.retire()
        retired = list(old.values())
        if not same_direct:
            changed += await self._renew_direct(retired)
        elif self._direct is not None:
            self._direct.reconfigure(config)
        self._retired = [hop for hop in (*self._retired, *retired) if not hop.pool.is_empty]
        for name in changed:
            self._on_hop_changed(name)

    async def _renew_direct(self, retired: list[Hop]) -> list[str]:
        """Begin anew with every domain; the names of those whose condition is forgotten."""
        old, self._direct = self._direct, self._make_direct()
        if old is None:
            return [DIRECT]
        retired += old.hops
        await old.close()
        return old.names()

    async def close(self) -> None:
        """Take leave of every next hop; no attempt should be under way any more."""
        if self._direct is not None:
            await self._direct.close()
            self._retired += self._direct.hops
        hops = (*self._hops.values(), *self._retired)
        for hop in hops:
            hop.health.close()
            hop.pacing.close()
        await asyncio.gather(*(hop.pool.close(CLOSE_SECONDS) for hop in hops))


def _goes_direct(config: Config) -> bool:
    return any(DIRECT in route.via for route in config.routes)


def _is_same_direct(before: Config, after: Config) -> bool:
    """Whether what is known of domains holds under the new configuration too."""
    return all(
        each(before) == each(after)
        for each in (
            _goes_direct,
            lambda config: config.direct,
            lambda config: config.hostname,
            lambda config: config.dkim,
            lambda config: config.queue.retry_delays_seconds,
        )
    )


def _tells_more(outcome: Reply | Failure, before: tuple[NextHop | None, Reply | Failure] | None) -> bool:
    if before is None or isinstance(outcome, Reply) or isinstance(before[1], Reply):
        return True
    return _TOLD_FIRST[outcome.scope] >= _TOLD_FIRST[before[1].scope]
