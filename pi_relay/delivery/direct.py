"""Straight to the recipients' own servers: a domain as a next hop, and the MX hosts that domains share.

How a domain is tried
    - Its MX hosts are looked up anew and tried in order, each with what is still waiting: on after any
      failure that may pass (no connection, no TLS where it is demanded, 4yz), never after a 5yz to a
      recipient, nor where the end of data went unanswered: that host alone is asked again.
    - Only a domain is paused, never an MX host: the trouble of one domain delays no other.
    - Sessions are kept by host, so that domains with the same MX host share them.
    - TLS: where it is offered, unverified, and in clear else; by an MTA-STS policy that is enforced, or for a
      message that demands it (REQUIRETLS), verified or not at all. A message may waive the policy
      (TLS-Required: No, RFC 8689 5), unless it demands TLS as well.
    - Where we are among the MX hosts, by name or because one leads to a listener of ours, those of the same
      or a higher preference number are not tried (RFC 5321 5.1); where none is left, the mail would come back
      to us: it fails.

Rules: what a reply means is lifecycle's to say. It must not know smart hosts, nor the queue.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pi_relay import maillog
from pi_relay.config import Config, SmartHost
from pi_relay.delivery.deadlines import Deadlines
from pi_relay.delivery.health import Health, Unjudged
from pi_relay.delivery.hop import NO_REQUIRETLS, Attempt, Hop
from pi_relay.delivery.mta_sts import Policies, Policy
from pi_relay.delivery.mx import Exchanger, LookupFailed, Lookups
from pi_relay.delivery.pacing import Pacing, longest_gap_seconds
from pi_relay.delivery.session import Address, Resolve, Session, SessionFailed
from pi_relay.delivery.signing import Signer
from pi_relay.delivery.timeouts import Timeouts
from pi_relay.headers import waives_tls
from pi_relay.lifecycle import LOOPED, Stage, connection_failure, leads_back
from pi_relay.model import (
    Envelope,
    Failure,
    HopCondition,
    HopState,
    NextHop,
    Reply,
    Scope,
    StoredMessage,
)
from pi_relay.routes import DIRECT
from pi_relay.status import HopStatus

SMTP_PORT = 25
SESSIONS_PER_HOST_MAX = 4
EXCHANGERS_TRIED_MAX = 10  # in one attempt
TRYING_SECONDS_MAX = 300.0  # after that none is begun with
DOMAINS_MAX = 1000
HOSTS_MAX = 200
TROUBLED_SHOWN_MAX = 50

Outcome = Reply | Failure
OpenSession = Callable[[SmartHost, Resolve], Awaitable[Session]]


@dataclass(slots=True)
class Domain:
    """A recipient's domain as a next hop."""

    name: str
    health: Health
    attempts: int = 0  # under way

    @property
    def is_waited_for(self) -> bool:
        """In trouble, and mail waits: where it does, the end of a pause is followed by an attempt."""
        paused = self.health.state.condition is HopCondition.PAUSED
        return paused or (self.health.trouble is not None and self.attempts > 0)


@dataclass(slots=True)
class Host:
    """An MX host, whichever domains it serves."""

    hop: Hop
    attempts: int = 0  # under way

    async def carry(
        self, attempt: Attempt, envelope: Envelope, positions: Sequence[int], message: StoredMessage
    ) -> None:
        self.attempts += 1
        try:
            await self.hop.carry(attempt, envelope, positions, message)
        finally:
            self.attempts -= 1


class Direct:
    """Every domain that mail goes to. ``on_changed`` is told the name of one whose condition changes."""

    def __init__(
        self,
        config: Config,
        lookups: Lookups,
        policies: Policies | None,
        *,
        open_session: OpenSession,
        on_changed: Callable[[str], None],
        timeouts: Timeouts,
        signer: Signer,
        deadlines: Deadlines | None = None,
        port: int = SMTP_PORT,
    ) -> None:
        self.config = config
        self._lookups = lookups
        self._policies = policies
        self._open_session = open_session
        self._on_changed = on_changed
        self._timeouts = timeouts
        self._signer = signer
        self._deadlines = deadlines or Deadlines()
        self._port = port
        self._domains: OrderedDict[str, Domain] = OrderedDict()  # by the next hop's name, the last used last
        self._hosts: OrderedDict[tuple[str, bool], Host] = OrderedDict()  # name, whether TLS is demanded
        self._in_doubt: OrderedDict[tuple[str, int], str] = OrderedDict()  # (queue id, position): MX host
        self._last_success_at: float | None = None

    # ── what the others ask of a next hop ────────────────────────────────────────────────────────

    def state(self, name: str) -> HopState:
        domain = self._domains.get(name)
        return domain.health.state if domain is not None else Unjudged.state

    def resume(self, name: str) -> None:
        if name in self._domains:
            self._domains[name].health.resume()

    def names(self) -> list[str]:
        return list(self._domains)

    def status(self) -> list[HopStatus]:
        """Of the whole, and of the domains in trouble, those used last."""
        last = self._last_success_at
        troubled = [each.health.status() for each in reversed(self._domains.values()) if each.is_waited_for]
        return [HopStatus(DIRECT, "unknown" if last is None else "ok", last), *troubled[:TROUBLED_SHOWN_MAX]]

    # ── an attempt ───────────────────────────────────────────────────────────────────────────────

    async def attempt(
        self,
        name: str,
        domain: str,
        envelope: Envelope,
        positions: Sequence[int],
        message: StoredMessage,
        *,
        patient: bool,
    ) -> tuple[Attempt, dict[int, NextHop]]:
        """Try the positions, all of that domain: an outcome for each, and whose it is."""
        attempt, told_by = Attempt(), dict[int, NextHop]()
        known = self._domain(name)
        known.attempts += 1
        try:
            trouble = await known.health.gate(
                lambda: self._try(attempt, told_by, known, domain, envelope, positions, message),
                patient=patient,
            )
        finally:
            known.attempts -= 1
        if trouble is not None:
            attempt.pass_over(positions, trouble)
        no_host = NextHop(name, domain, self._port, "may")
        return attempt, {position: told_by.get(position, no_host) for position in attempt.outcomes}

    async def _try(
        self,
        attempt: Attempt,
        told_by: dict[int, NextHop],
        known: Domain,
        domain: str,
        envelope: Envelope,
        positions: Sequence[int],
        message: StoredMessage,
    ) -> None:
        try:
            exchangers = self._without_us(domain, await self._lookups.exchangers(domain))
            policy = await self._policy(domain, envelope, message)
        except LookupFailed as failed:
            attempt.pass_over(positions, failed.failure, onward=failed.failure.scope is Scope.NEXT_HOP)
            self._judge(known, attempt)
            return
        waiting: Sequence[int] = positions
        now = asyncio.get_running_loop().time
        last_begin = now() + TRYING_SECONDS_MAX
        for exchanger in self._to_try(envelope, positions, exchangers):
            inner = Attempt()
            host = exchanger.host
            refusal = self._refusal(host, policy, envelope)
            secure = _demands_tls(policy, envelope)
            if refusal is not None:
                inner.pass_over(waiting, refusal)
            else:
                await self._host(host, secure=secure).carry(inner, envelope, waiting, message)
            back = next((each for each in inner.outcomes.values() if leads_back(each)), None)
            if back is not None:
                attempt.pass_over(waiting, back, onward=False)  # but who may yet pass by another host waits
                break
            _note_tested(policy, host, inner.tls)
            next_hop = NextHop(host, host, self._port, _tls_policy(secure), tls_used=inner.tls)
            self._take_over(attempt, told_by, inner, next_hop, envelope.queue_id)
            waiting = [each for each in waiting if _may_go_on(inner, each)]
            if not waiting or now() > last_begin:
                break
        self._judge(known, attempt)

    async def _policy(self, domain: str, envelope: Envelope, message: StoredMessage) -> Policy | None:
        if self._policies is None:
            return None
        policy = await self._policies.policy(domain)
        waived = policy is not None and not envelope.requiretls and waives_tls(message.header)
        return None if waived else policy

    def _to_try(
        self, envelope: Envelope, positions: Sequence[int], exchangers: Sequence[Exchanger]
    ) -> Sequence[Exchanger]:
        """In their order; where one of them may have the message already, that one alone."""
        for position in positions if self._in_doubt else ():
            host = self._in_doubt.get((envelope.queue_id, position))
            alone = [each for each in exchangers if each.host == host]
            if alone:
                return alone
        return exchangers[:EXCHANGERS_TRIED_MAX]

    def _without_us(self, domain: str, exchangers: Sequence[Exchanger]) -> Sequence[Exchanger]:
        own = self.config.hostname.lower().rstrip(".")
        ours = [each.preference for each in exchangers if each.host == own]
        left = [each for each in exchangers if not ours or each.preference < min(ours)]
        if not left:
            text = f"mail for {domain} would come back to this relay, which is its mail server by the DNS"
            raise LookupFailed(Failure(Scope.RECIPIENT, Reply(554, LOOPED, text), permanent=True))
        return left

    def _refusal(self, host: str, policy: Policy | None, envelope: Envelope) -> Failure | None:
        """Why this MX host may not get the message at all."""
        if policy is not None and policy.mode != "none" and not policy.allows(host):
            words = f"{host} is none of the mail servers that the MTA-STS policy of {policy.domain} allows"
            if policy.mode == "enforce":
                return connection_failure(Stage.TLS, words)
            maillog.notice(f"{words} (it is only being tested)")
        if envelope.requiretls and (policy is None or policy.mode == "none" or not policy.allows(host)):
            return NO_REQUIRETLS  # nothing says that the MX host is the right one (RFC 8689 4.2.1)
        return None

    def _take_over(
        self,
        attempt: Attempt,
        told_by: dict[int, NextHop],
        inner: Attempt,
        next_hop: NextHop,
        queue_id: str,
    ) -> None:
        """What one MX host said becomes what the domain said, where it tells more than what is known."""
        for position, outcome in inner.outcomes.items():
            onward, before = position in inner.onward, attempt.outcomes.get(position)
            if before is None or not onward or _tells_more(attempt, position, outcome):
                attempt.outcomes[position], told_by[position] = outcome, next_hop
            if before is None and onward:
                attempt.onward.add(position)
            elif not onward:
                attempt.onward.discard(position)
            if not onward:  # it has been asked, and said something
                self._in_doubt.pop((queue_id, position), None)
        for position in inner.in_doubt:
            self._in_doubt[queue_id, position] = next_hop.host
        while len(self._in_doubt) > DOMAINS_MAX:
            self._in_doubt.popitem(last=False)
        attempt.in_doubt |= inner.in_doubt
        attempt.notify_handed_on |= inner.notify_handed_on

    def _judge(self, known: Domain, attempt: Attempt) -> None:
        """The domain is in trouble where no host of it had anything to say of the mail."""
        failures = [each for each in attempt.outcomes.values() if isinstance(each, Failure)]
        if len(failures) < len(attempt.outcomes):
            self._last_success_at = time.time()
        troubles = [each for each in failures if each.scope is Scope.NEXT_HOP]
        if troubles and len(troubles) == len(attempt.outcomes):
            known.health.failed(troubles[0])
        else:
            known.health.succeeded()

    # ── domains and hosts ────────────────────────────────────────────────────────────────────────

    def _domain(self, name: str) -> Domain:
        known = self._domains.get(name)
        if known is None:
            delays = self.config.queue.retry_delays_seconds
            self._forget_domains()
            known = self._domains[name] = Domain(name, Health(name, delays, self._on_changed))
        self._domains.move_to_end(name)
        return known

    def _forget_domains(self) -> None:
        """Those that nobody needs now: nothing is lost with them."""
        if len(self._domains) < DOMAINS_MAX:
            return
        for name, known in list(self._domains.items()):
            if not (known.is_waited_for or known.attempts):
                known.health.close()
                del self._domains[name]
                if len(self._domains) < DOMAINS_MAX:
                    return

    def _host(self, name: str, *, secure: bool) -> Host:
        key = name, secure
        host = self._hosts.get(key)
        if host is None:
            self._forget_hosts()
            host = self._hosts[key] = Host(self._make_hop(name, secure=secure))
        self._hosts.move_to_end(key)
        return host

    def _make_hop(self, name: str, *, secure: bool) -> Hop:
        host = SmartHost(
            name, name, self._port, tls=_tls_policy(secure), connections_max=SESSIONS_PER_HOST_MAX
        )
        gap_max_seconds = longest_gap_seconds(self.config.queue.retry_delays_seconds)
        pacing = Pacing(name, (), SESSIONS_PER_HOST_MAX, gap_max_seconds, lambda: None)
        return Hop(
            host,
            Unjudged(),
            pacing,
            lambda host: self._open_session(host, self._addresses),
            self._timeouts,
            self.config,
            self._signer,
            self._deadlines,
            is_exchanger=True,
        )

    async def _addresses(self, host: str, port: int) -> list[Address]:
        try:
            found = [ipaddress.ip_address(each) for each in await self._lookups.addresses(host)]
        except LookupFailed as failed:
            raise SessionFailed(failed.failure) from None
        families = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [(families[each.version], (str(each), port)) for each in found]

    def _forget_hosts(self) -> None:
        """Those that nobody uses now, with the sessions that are kept for later."""
        for key, host in list(self._hosts.items()):
            if len(self._hosts) < HOSTS_MAX:
                return
            if not host.attempts:
                host.hop.pacing.close()
                host.hop.pool.retire()
                del self._hosts[key]

    # ── changes ──────────────────────────────────────────────────────────────────────────────────

    def reconfigure(self, config: Config) -> None:
        """Take over what changes nothing that is known of domains and hosts."""
        self.config = config
        for hop in self.hops:
            hop.config = config

    async def close(self) -> None:
        """Begin nothing any more; sessions under way end as they began (their pools are in ``hops``)."""
        for domain in self._domains.values():
            domain.health.close()
        for hop in self.hops:
            hop.pacing.close()
            hop.pool.retire()
        if self._policies is not None:
            await self._policies.close()
        await self._lookups.close()

    @property
    def hops(self) -> list[Hop]:
        return [host.hop for host in self._hosts.values()]


def _tls_policy(secure: bool) -> str:
    return "starttls" if secure else "may"


def _demands_tls(policy: Policy | None, envelope: Envelope) -> bool:
    return envelope.requiretls or (policy is not None and policy.mode == "enforce")


def _note_tested(policy: Policy | None, host: str, tls: str) -> None:
    if policy is not None and policy.mode == "testing" and tls == "none":
        maillog.notice(f"{host} got mail in clear: the MTA-STS policy of {policy.domain} is only tested")


def _may_go_on(inner: Attempt, position: int) -> bool:
    """Whether the next MX host may be tried for this recipient."""
    outcome = inner.outcomes.get(position)
    if not isinstance(outcome, Failure) or position in inner.in_doubt:
        return False
    return position in inner.onward or not outcome.permanent


def _tells_more(attempt: Attempt, position: int, outcome: Outcome) -> bool:
    """Of two hosts that did not get to the mail: one that may yet do, rather than one that never will."""
    before = attempt.outcomes[position]
    return (
        position in attempt.onward
        and isinstance(before, Failure)
        and isinstance(outcome, Failure)
        and (before.permanent or not outcome.permanent)
    )
