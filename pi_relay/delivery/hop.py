"""An attempt at one next hop: may it carry the message, a session, the transactions, what they tell of it.

Rules: what a next hop gets of a message (its reverse-path, its header block) is derived anew for each
transaction, in outgoing.py. An idle session that turns out dead costs nothing but a fresh one. A hop as
a whole is judged by every attempt: trouble of its own or of our account pauses it, any other answer opens it;
where it only asks for less it is slowed down first (pacing.py).
It must not know which other next hops there are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from pi_relay import maillog
from pi_relay.config import Config, SmartHost, Wrong, a_labels
from pi_relay.delivery.deadlines import Deadlines
from pi_relay.delivery.health import Health, Unjudged
from pi_relay.delivery.outgoing import Outgoing, derive, guises
from pi_relay.delivery.pacing import OPEN, Pacing
from pi_relay.delivery.pool import Pool
from pi_relay.delivery.session import Session, SessionFailed
from pi_relay.delivery.signing import Signer, SigningFailed
from pi_relay.delivery.timeouts import Timeouts
from pi_relay.delivery.transaction import Extensions, Outcome, Transaction, commands, transact
from pi_relay.lifecycle import is_throttling, of_an_exchanger, send_as_denied, unexpected
from pi_relay.model import (
    Envelope,
    Failure,
    FileSpan,
    HopCondition,
    HopState,
    NextHop,
    Reply,
    Scope,
    StoredMessage,
)
from pi_relay.status import HopStatus

SIZE_RESERVE_BYTES = 4096  # a next hop counts what it adds itself, too

TOO_LARGE = Failure(Scope.MESSAGE, Reply(552, "5.3.4", "the message is larger than the next hop takes"), True)
NO_SMTPUTF8 = Failure(
    Scope.MESSAGE, Reply(553, "5.6.7", "the message needs SMTPUTF8, which the next hop does not offer"), True
)
NO_REQUIRETLS = Failure(
    Scope.MESSAGE,
    Reply(550, "5.7.30", "the message demands TLS all the way (REQUIRETLS), which is not to be had there"),
    True,
)
NO_8BITMIME = Failure(
    Scope.MESSAGE, Reply(554, "5.6.3", "the message needs 8BITMIME, which the next hop does not offer"), True
)

_OF_THE_HOP = (Scope.NEXT_HOP, Scope.ACCOUNT)


@dataclass(slots=True)
class Attempt:
    """What one next hop made of the positions it was tried with."""

    outcomes: dict[int, Reply | Failure] = field(default_factory=dict)  # by position in the envelope
    onward: set[int] = field(default_factory=set)  # those that the next in ``via`` may try
    in_doubt: set[int] = field(default_factory=set)  # the end of data went unanswered: it may have them
    notify_handed_on: set[int] = field(default_factory=set)
    tls: str = ""  # how the last session was protected, in words for the log

    def pass_over(self, positions: Sequence[int], failure: Failure, *, onward: bool = True) -> None:
        """No transaction was made for them; what an earlier one said of some of them stands."""
        for position in positions:
            if position not in self.outcomes:
                self.outcomes[position] = failure
                if onward:
                    self.onward.add(position)


class Hop:
    """``is_exchanger``: a recipient's MX host rather than a smart host of ours."""

    def __init__(
        self,
        host: SmartHost,
        health: Health | Unjudged,
        pacing: Pacing,
        open_session: Callable[[SmartHost], Awaitable[Session]],
        timeouts: Timeouts,
        config: Config,
        signer: Signer,
        deadlines: Deadlines,
        *,
        is_exchanger: bool = False,
    ) -> None:
        self.is_exchanger = is_exchanger
        self.config = config
        self.host = host
        self.health = health
        self.pacing = pacing
        self.pool = Pool(lambda: open_session(host), host.connections_max)
        self.next_hop = NextHop(
            host.name, host.host, host.port, host.tls, host.name if host.auth == "password" else ""
        )
        self._timeouts = timeouts
        self._signer = signer
        self._deadlines = deadlines

    @property
    def state(self) -> HopState:
        """Whether mail may be tried here now: the trouble it is in, then its pace; and what was said."""
        health, pacing = self.health.state, self.pacing
        state = health if pacing.state is OPEN or health.condition is HopCondition.PAUSED else pacing.state
        said = health.reply or pacing.throttled_by
        return state if state.reply is said else replace(state, reply=said)

    def status(self) -> HopStatus:
        assert isinstance(self.health, Health)
        pacing = self.pacing
        return replace(
            self.health.status(), pace=pacing.reason, paced_until=pacing.until, is_slowed=pacing.is_slowed
        )

    def resume(self) -> None:
        """Lift its pause, and what it was spared after throttling."""
        self.health.resume()
        self.pacing.resume()
        self.pool.resize(self.pacing.connections)

    async def attempt(
        self, envelope: Envelope, positions: Sequence[int], message: StoredMessage, *, patient: bool
    ) -> Attempt:
        """Try the positions here: an outcome for each. Raises nothing but cancellation.

        ``patient``: there is no other way, so that it is worth while to wait for a probe under way.
        """
        attempt = Attempt()
        limit_bytes = self.host.message_size_max_bytes
        if limit_bytes and _size_bytes(message) + SIZE_RESERVE_BYTES > limit_bytes:
            attempt.pass_over(positions, TOO_LARGE)
            return attempt
        assert isinstance(self.health, Health)
        trouble = await self.health.gate(
            lambda: self.carry(attempt, envelope, positions, message), patient=patient
        )
        if trouble is not None:
            attempt.pass_over(positions, trouble)
        return attempt

    async def carry(
        self, attempt: Attempt, envelope: Envelope, positions: Sequence[int], message: StoredMessage
    ) -> None:
        """Whatever condition it is in. What became of the positions is written into ``attempt``."""
        try:
            await self._transactions(attempt, envelope, positions, message)
        except SessionFailed as failed:
            failure = failed.failure
            if self.is_exchanger:
                failure = of_an_exchanger(failure, in_session=False)
            self._in_trouble(failure)  # whatever it said: it did not even let us begin
            attempt.pass_over(positions, failure)
        except SigningFailed as failed:  # nothing of it is this hop's, or another's, to mend
            attempt.pass_over(positions, failed.failure, onward=False)
        except Exception as problem:
            maillog.error(f"delivery of {envelope.queue_id} to {self.host.name}", problem)
            attempt.pass_over(positions, unexpected(problem), onward=False)

    async def _transactions(
        self, attempt: Attempt, envelope: Envelope, positions: Sequence[int], message: StoredMessage
    ) -> None:
        """As many as it takes: the other side may take some recipients only, or not our sender."""
        waiting, fresh = positions, False
        ways_to_appear = guises(self.host, envelope)
        guise = next(ways_to_appear)
        while waiting:
            outgoing = await derive(self.config, envelope, message, guise=guise, signer=self._signer)
            turn = await self.pacing.turn(len(waiting))
            if turn is None:
                attempt.pass_over(waiting, self.pacing.spent())
                return
            waiting, later = waiting[: turn.recipients], waiting[turn.recipients :]
            with turn:
                session = await self._session(fresh=fresh)
                try:
                    extensions = session.extensions
                    paths = _forward_paths(envelope, waiting, extensions)
                    smtputf8 = _needs_smtputf8(envelope, paths, outgoing)
                    attempt.tls = _protection(session)
                    unfit = _unfit(envelope, outgoing.message, session, smtputf8)
                    if unfit is not None:
                        attempt.pass_over([*waiting, *later], unfit, onward=unfit is not NO_8BITMIME)
                        return
                    transaction = self._transaction(envelope, waiting, paths, outgoing, extensions, smtputf8)
                    seconds = self._timeouts.transaction_for(transaction.size_bytes)
                    with self._deadlines.step(f"a transaction with {self.host.name}", seconds):
                        outcome = await transact(
                            session.wire,
                            transaction,
                            extensions,
                            self._timeouts,
                            reset=session.left_open,
                        )
                    session.left_open = outcome.left_open
                    session.messages += 1
                    turn.taken = _taken(outcome)
                    fresh = outcome.unanswered and session.reused
                    if fresh:
                        waiting = [*waiting, *later]
                        continue  # it had died while it was idle
                    if self.is_exchanger:
                        outcome.results = [
                            of_an_exchanger(each, in_session=True) if isinstance(each, Failure) else each
                            for each in outcome.results
                        ]
                    outgoing.note(envelope.queue_id, self.host.name)
                    denied = self._take_down(attempt, waiting, outcome, envelope, extensions)
                    if denied and (other := next(ways_to_appear, None)):
                        waiting, guise = [*denied, *later], other
                        continue
                    # Before a broken session makes room for a new one.
                    trouble = self._judge(*outcome.results)
                    waiting = [*(waiting[place] for place in outcome.put_off), *later]
                    if trouble is not None:
                        onward = outcome.unanswered or trouble.scope is Scope.ACCOUNT
                        attempt.pass_over(waiting, trouble, onward=onward)
                        return
                finally:
                    self.pool.give_back(session)

    async def _session(self, *, fresh: bool) -> Session:
        session = None if fresh else self.pool.take_idle()
        return session or await self.pool.take(fresh=fresh)

    def _transaction(
        self,
        envelope: Envelope,
        positions: Sequence[int],
        paths: Sequence[str],
        outgoing: Outgoing,
        extensions: Extensions,
        smtputf8: bool,
    ) -> Transaction:
        recipients = [
            recipient if recipient.forward_path == path else replace(recipient, forward_path=path)
            for path, recipient in zip(
                paths, (envelope.recipients[position] for position in positions), strict=True
            )
        ]
        reverse_path, message = outgoing.reverse_path, outgoing.message
        return commands(envelope, recipients, reverse_path, message, extensions, smtputf8=smtputf8)

    def _take_down(
        self,
        attempt: Attempt,
        positions: Sequence[int],
        outcome: Outcome,
        envelope: Envelope,
        extensions: Extensions,
    ) -> list[int]:
        """Write what was said of the positions into the attempt; those refused for their sender."""
        denied = []
        for position, said in zip(positions, outcome.results, strict=True):
            attempt.outcomes[position] = said
            attempt.onward.discard(position)
            if isinstance(said, Reply):
                if extensions.dsn and envelope.recipients[position].notify:
                    attempt.notify_handed_on.add(position)
            elif said.scope is Scope.ACCOUNT:
                attempt.onward.add(position)
                if send_as_denied(said):
                    denied.append(position)
            elif said.scope is Scope.NEXT_HOP and outcome.unanswered:
                attempt.onward.add(position)
        if outcome.in_doubt:
            attempt.in_doubt.update(positions[place] for place in outcome.accepted)
        return denied

    def _judge(self, *said: Reply | Failure) -> Failure | None:
        """What an attempt tells of the hop as a whole: any word of its own trouble, unless it took mail."""
        if any(isinstance(each, Reply) for each in said):
            self.health.succeeded()
            self.pacing.took()
            self.pool.resize(self.pacing.connections)
            return None
        failures = [each for each in said if isinstance(each, Failure)]
        trouble = next((each for each in failures if each.scope in _OF_THE_HOP), None)
        throttling = next(filter(is_throttling, failures), None)
        if throttling is not None and self.health.trouble is None and self._slow_down(throttling):
            return throttling
        if trouble is None:
            self.health.succeeded()
        else:
            self._in_trouble(trouble)
        return trouble

    def _in_trouble(self, trouble: Failure) -> None:
        self.health.failed(trouble)
        self.pool.refuse_waiters(trouble)

    def _slow_down(self, throttling: Failure) -> bool:
        """False where that has not helped: then it is trouble like any other."""
        slower = self.pacing.throttled(throttling.reply)
        self.pool.resize(self.pacing.connections)
        return slower


def _taken(outcome: Outcome) -> int:
    """For how many recipients the other side took the message, or may have."""
    taken = sum(isinstance(each, Reply) for each in outcome.results)
    return taken or (len(outcome.accepted) if outcome.in_doubt else 0)


def _size_bytes(message: StoredMessage) -> int:
    body = message.body
    return len(message.header) + (body.length_bytes if isinstance(body, FileSpan) else len(body))


def _protection(session: Session) -> str:
    """What the log says of it."""
    return f"{session.tls} {'verified' if session.verified else 'unverified'}" if session.tls else "none"


def _forward_paths(envelope: Envelope, positions: Sequence[int], extensions: Extensions) -> Sequence[str]:
    """Where the other side lacks SMTPUTF8, a domain may go as A-labels; a local part has no other form."""
    paths = [envelope.recipients[position].forward_path for position in positions]
    if extensions.smtputf8 or all(map(str.isascii, paths)):
        return paths
    return [_in_ascii(path) for path in paths]


def _in_ascii(path: str) -> str:
    local_part, _, domain = path.rpartition("@")
    if not local_part.isascii():
        return path
    try:
        return f"{local_part}@{a_labels(domain)}"
    except Wrong:
        return path


def _needs_smtputf8(envelope: Envelope, paths: Sequence[str], outgoing: Outgoing) -> bool:
    """RFC 6531 3.1 and 3.4: an address beyond ASCII, or a header block that was announced as UTF-8."""
    return (
        not outgoing.reverse_path.isascii()
        or not all(map(str.isascii, paths))
        or (envelope.smtputf8 and not outgoing.message.header.isascii())
    )


def _unfit(envelope: Envelope, message: StoredMessage, session: Session, smtputf8: bool) -> Failure | None:
    """Why this message cannot be carried by what the other side offers."""
    extensions = session.extensions
    if envelope.requiretls and not (session.verified and extensions.requiretls):
        return NO_REQUIRETLS
    limit_bytes = extensions.size_max_bytes
    if limit_bytes and _size_bytes(message) + SIZE_RESERVE_BYTES > limit_bytes:
        return TOO_LARGE
    if smtputf8 and not extensions.smtputf8:
        return NO_SMTPUTF8
    if envelope.body_type == "8BITMIME" and not extensions.eight_bit_mime:
        return NO_8BITMIME
    return None
