"""Every decision about a message's fate, and nothing else.

What a failure means
    The other side's reply, at the stage where it came, is looked up in FAILURES from the top; the first row
    that fits says how far the trouble reaches and whether it is for good:

    - NEXT_HOP: the machine there, or the way to it. Never for good: mail waits or takes the next way, and
      is given up only when the schedule is used up.
    - ACCOUNT: our sign-in, quota or sender right there. Never for good, and never counted: no sender gets a
      bounce for the office's own trouble.
    - MESSAGE: this mail, for every recipient of the transaction. A 4yz waits, a 5yz is for good.
    - RECIPIENT: this address alone. A 4yz waits, a 5yz is for good.

    What fits no row is not SMTP: NEXT_HOP.

The schedule
    It is a row of slots: the first attempt, then one after each delay, as long as the summed delays stay
    within the lifetime. A slot counts once, when its time has come: by an attempt, or by being passed over
    in a pause (one of ACCOUNT trouble excepted: there the schedule stands still). Attempts beside the
    schedule (after a start, by `queue retry`, early because a next hop is well again) count nothing and
    leave the next slot where it was; one that ended in ACCOUNT trouble counts nothing. When no slot is left,
    those still pending fail with 4.4.7.

What is owed
    A failed recipient's sender is told, unless NOTIFY says otherwise or the reverse-path is null. Our own
    reports are never answered with a DSN: where one fails, a REPORT goes to the postmaster, and where that
    fails, or there is nobody to tell, the message is held as "undeliverable".

Rules: pure. It must not know sockets, disks or clocks: times come in as figures.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import accumulate
from typing import TypeGuard

from pi_relay.config import Config, Device, Queue
from pi_relay.model import (
    Envelope,
    Failure,
    HopState,
    Kind,
    NextHop,
    Recipient,
    RecipientStatus,
    Reply,
    Scope,
)
from pi_relay.patterns import matches

# ── what a failure means ─────────────────────────────────────────────────────────────────────────


class Stage(StrEnum):
    """Where in a session a reply came, or was waited for."""

    CONNECT = "connect"
    TLS = "tls"
    GREETING = "greeting"
    EHLO = "ehlo"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"  # the 354
    END_OF_DATA = "end_of_data"
    QUIT = "quit"


OPENING = frozenset({Stage.CONNECT, Stage.TLS, Stage.GREETING, Stage.EHLO})
CONTENT = frozenset({Stage.DATA, Stage.END_OF_DATA})
MESSAGE_STAGES = CONTENT | {Stage.MAIL}
ANY = frozenset(Stage) - {Stage.QUIT}

# Stages, the reply ("y" and "z" stand for any digit; an enhanced status must be the same), scope, for good.
FAILURES: tuple[tuple[frozenset[Stage], str, Scope, bool], ...] = (
    (ANY, "421", Scope.NEXT_HOP, False),
    (ANY, "530", Scope.ACCOUNT, False),
    (ANY, "535", Scope.ACCOUNT, False),
    (ANY, "550 5.7.30", Scope.ACCOUNT, False),  # basic authentication is switched off
    (ANY, "554 5.2.252", Scope.ACCOUNT, False),  # SendAsDenied
    (frozenset({Stage.MAIL}), "5yz 5.7.0", Scope.ACCOUNT, False),
    (frozenset({Stage.AUTH}), "5yz", Scope.ACCOUNT, False),
    (OPENING | {Stage.AUTH}, "4yz", Scope.NEXT_HOP, False),
    (OPENING, "5yz", Scope.NEXT_HOP, False),
    (frozenset({Stage.MAIL}), "432", Scope.NEXT_HOP, False),
    (frozenset({Stage.MAIL}), "450", Scope.NEXT_HOP, False),
    (frozenset({Stage.MAIL}), "451", Scope.NEXT_HOP, False),
    (MESSAGE_STAGES, "4yz", Scope.MESSAGE, False),
    (MESSAGE_STAGES, "5yz", Scope.MESSAGE, True),
    (frozenset({Stage.RCPT}), "4yz", Scope.RECIPIENT, False),
    (frozenset({Stage.RCPT}), "552 5.2.2", Scope.RECIPIENT, True),  # the mailbox is full
    (frozenset({Stage.RCPT}), "552 5.3.4", Scope.RECIPIENT, True),  # the message is too large
    (frozenset({Stage.RCPT}), "552", Scope.RECIPIENT, False),  # too many recipients (RFC 5321 4.5.3.1.10)
    (frozenset({Stage.RCPT}), "5yz", Scope.RECIPIENT, True),
)

SEND_AS_DENIED = "5.2.252"


def what_it_means(stage: Stage, reply: Reply) -> Failure | None:
    """The failure that a reply at this stage is; None where it is the success hoped for (RFC 5321 4.2.1)."""
    if stage is Stage.QUIT or reply.code // 100 == (3 if stage is Stage.DATA else 2):
        return None
    for stages, pattern, scope, permanent in FAILURES:
        if stage in stages and _fits(pattern, reply):
            return Failure(scope, reply, permanent)
    return Failure(Scope.NEXT_HOP, reply, False)


def _fits(pattern: str, reply: Reply) -> bool:
    code, _, enhanced_status = pattern.partition(" ")
    digits = zip(code, str(reply.code), strict=False)
    return enhanced_status in ("", reply.enhanced_status) and all(
        wanted in ("y", "z", given) for wanted, given in digits
    )


_CONNECTION_STATUS_AT = {Stage.CONNECT: "4.4.1", Stage.TLS: "4.7.5"}
_CONNECTION_STATUS = frozenset({"4.4.1", "4.4.2", "4.7.5"})


def connection_failure(stage: Stage, text: str, remote_mta: str = "") -> Failure:
    """No reply at all: refused, lost, timed out, or no TLS (RFC 3463 3.5). ``text``: plain words."""
    enhanced_status = _CONNECTION_STATUS_AT.get(stage, "4.4.2")
    return Failure(Scope.NEXT_HOP, Reply(421, enhanced_status, text, remote_mta), False)


def is_throttling(failure: Failure) -> bool:
    """The next hop wants less of us for a while: 421, 432, and 450 or 451 to MAIL.

    A connection that was lost, or that it closed because nothing was said, tells nothing of the kind.
    """
    code, of_the_hop = failure.reply.code, failure.scope is Scope.NEXT_HOP
    if code == 432:
        return True
    return of_the_hop and code in (421, 450, 451) and failure.reply.enhanced_status not in _CONNECTION_STATUS


LOOP = "4.4.6"  # the enhanced status of a way out that leads back to us (RFC 3463)
LOOPED = "5.4.6"  # where that is for good


def of_an_exchanger(failure: Failure, *, in_session: bool) -> Failure:
    """What a failure means where the next hop is a recipient's MX: we have no account there.

    What would be trouble with it is a plain refusal of the mail; where no session came about, of the host.
    A way back to ourselves is then the domain's fault, for good.
    """
    if failure.scope is not Scope.ACCOUNT:
        return failure
    if failure.reply.enhanced_status == LOOP:
        return Failure(Scope.RECIPIENT, Reply(554, LOOPED, failure.reply.text), True)
    if in_session:
        return Failure(Scope.RECIPIENT, failure.reply, failure.reply.code >= 500)
    return Failure(Scope.NEXT_HOP, failure.reply, False)


def leads_back(outcome: Reply | Failure) -> TypeGuard[Failure]:
    """Whether an MX host turned out to be ourselves (and did not just say so of itself)."""
    return (
        isinstance(outcome, Failure)
        and outcome.reply.enhanced_status == LOOPED
        and not outcome.reply.remote_mta
    )


def send_as_denied(failure: Failure) -> bool:
    """The account may not send as this sender: worth one more try as the account's own."""
    return failure.scope is Scope.ACCOUNT and failure.reply.enhanced_status == SEND_AS_DENIED


def unexpected(exception: BaseException) -> Failure:
    """Our own defect: the message waits, and the traceback is in the log."""
    text = f"internal error of the relay ({type(exception).__name__})"
    return Failure(Scope.MESSAGE, Reply(451, "4.3.0", text), False)


NO_ROUTE = Failure(
    Scope.MESSAGE, Reply(451, "4.4.4", "no route of the configuration takes this recipient"), False
)
DELETED = Reply(554, "5.7.1", "deleted by the administrator of the relay")

# ── the schedule ─────────────────────────────────────────────────────────────────────────────────


class Schedule:
    """The slots of one message, numbered from 0, the first attempt. Times are seconds after that."""

    def __init__(self, queue: Queue) -> None:
        self._times = tuple(accumulate(queue.retry_delays_seconds, initial=0.0))
        self._last_delay = queue.retry_delays_seconds[-1]
        fitting = bisect_right(self._times, queue.lifetime_seconds)
        if fitting == len(self._times):  # the last delay repeats
            fitting += int((queue.lifetime_seconds - self._times[-1]) // self._last_delay)
        self.slots = fitting

    def time_of(self, slot: int) -> float:
        beyond = slot - (len(self._times) - 1)
        return self._times[slot] if beyond <= 0 else self._times[-1] + beyond * self._last_delay

    def delay_before(self, slot: int) -> float:
        """How long after the slot before it; before the first there is the first retry's delay."""
        slot = max(slot, 1)
        return self.time_of(slot) - self.time_of(slot - 1)

    def used_up(self, slots_used: int) -> bool:
        return slots_used >= self.slots

    def until_used_up(self, slots_used: int, next_slot_in: float) -> float:
        """Seconds until the last slot has passed, where every one from now on is passed over."""
        return next_slot_in + max(self.time_of(self.slots - 1) - self.time_of(slots_used), 0.0)

    def passed_over(self, slots_used: int, next_slot_in: float) -> tuple[int, float]:
        """After a pause: the slots used, and seconds to the next one. ``next_slot_in`` < 0: it has passed."""
        if next_slot_in >= 0 or self.used_up(slots_used):
            return slots_used, next_slot_in
        now = self.time_of(slots_used) - next_slot_in
        used = min(self._first_after(now), self.slots)
        return used, self.time_of(used) - now

    def waited_seconds(self, slots_used: int, next_slot_in: float) -> float:
        """How long a message has waited, by the schedule: a wrong clock cannot make it older."""
        return self.time_of(slots_used) - next_slot_in

    def _first_after(self, time: float) -> int:
        if time < self._times[-1]:
            return bisect_right(self._times, time)
        return len(self._times) + int((time - self._times[-1]) // self._last_delay)


# ── reports ──────────────────────────────────────────────────────────────────────────────────────


class ReportKind(StrEnum):
    FAILED = "failed"
    DELAYED = "delayed"
    RELAYED = "relayed"


@dataclass(frozen=True, slots=True)
class Report:
    """A report that is owed, before it is worded. ``expired``: those of ``positions`` given up with 4.4.7."""

    queue_id: str
    kind: ReportKind
    message_kind: Kind  # DSN, or REPORT where it goes to the postmaster
    to: str
    positions: tuple[int, ...]
    expired: frozenset[int] = frozenset()


def report_id(queue_id: str, kind: ReportKind, attempt: int, lowest_position: int) -> str:
    """The queue id of a report: a replay after a crash makes the same, and overwrites only itself."""
    return f"{queue_id}-{kind[0]}{attempt}-{lowest_position}"


def delayed_original(report_queue_id: str) -> str:
    """The queue id of the message that a delay report is about; "" for anything else."""
    original, _, cause = report_queue_id.rpartition("-d")
    return original if cause else ""


def report_address(config: Config, envelope: Envelope) -> tuple[Kind, str]:
    """Who is told about a message, and by what; the address is "" where there is nobody.

    The sender as the device gave it, if it is an address and one of ours (in ``sender_domains``, where any
    address is with ["*"], or among the device's ``senders``); else the device's ``reports_to``; else the
    postmaster.
    """
    if envelope.kind is Kind.MAIL:
        sender = envelope.original_reverse_path
        sender = envelope.reverse_path if sender is None else sender
        device = next((device for device in config.devices if device.name == envelope.device), None)
        if is_ours(config, sender, device):
            return Kind.DSN, sender
        if device and device.reports_to:
            return Kind.DSN, device.reports_to
    if envelope.kind is Kind.REPORT:
        return Kind.REPORT, ""
    return Kind.REPORT, config.postmaster


def is_ours(config: Config, address: str, device: Device | None = None) -> bool:
    """Whether a report may go to this reverse-path, and not to a stranger whose name was borrowed."""
    local, _, domain = address.rpartition("@")
    if not (local and domain) or any(character <= " " for character in address):
        return False
    if device and device.senders and matches(device.senders, address):
        return True
    allowed = config.submission.sender_domains
    if not allowed or "*" in allowed:
        return domain.startswith("[") or "." in domain
    return matches(allowed, domain)


def report_envelope(
    original: Envelope, report: Report, now: float, *, header_size_bytes: int, message_size_bytes: int
) -> Envelope:
    """A report's own envelope: the null reverse-path (RFC 3464 2), the routes of the device."""
    return Envelope(
        queue_id=report.queue_id,
        reverse_path="",
        recipients=(Recipient(report.to),),
        accepted_at=now,
        kind=report.message_kind,
        device=original.device,
        body_type="7BIT" if report.to.isascii() else "8BITMIME",
        smtputf8=not report.to.isascii(),
        header_size_bytes=header_size_bytes,
        message_size_bytes=message_size_bytes,
    )


# ── settling ─────────────────────────────────────────────────────────────────────────────────────

UNDELIVERABLE = "undeliverable"  # why a message is held that nobody can be told of
UNDELIVERABLE_SECONDS = 14 * 86400.0
UNDELIVERABLE_MAX = 100

Results = Mapping[int, tuple[NextHop | None, Reply | Failure]]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What is known beside the results. ``slots_used`` has those passed over in pauses already."""

    number: int  # of the try, from 1, counted by the schedule or not
    now: float  # wall clock, only for what is written down
    slots_used: int = 0
    next_slot_in_seconds: float = 0.0  # 0 or less: this attempt is the one that its slot asked for
    in_flight: frozenset[int] = frozenset()  # positions that another attempt will settle
    own_trouble: frozenset[int] = frozenset()  # positions whose way out is paused by ACCOUNT trouble
    kept_by: Mapping[int, Reply] = field(default_factory=dict)  # of those whose way out is in trouble: why
    delay_due: bool = False  # the wait is over that the sender should hear of
    can_carry: Callable[[str], bool] = field(default=lambda _: True)  # a delay report to this address


@dataclass(frozen=True, slots=True)
class Event:
    """One recipient's line of the mail log: PENDING is "deferred". ``dsn``: the id of the report about it."""

    status: RecipientStatus
    position: int
    next_hop: NextHop | None
    reply: Reply
    dsn: str = ""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What has become of a message. The reports must be durable before the envelope is stored (law 2)."""

    envelope: Envelope
    finished: bool  # nothing is pending and nothing owed: the message may go (law 3)
    durable: bool  # the envelope must be synced: more has changed than the time of the next attempt
    next_slot_in_seconds: float
    reports: tuple[Report, ...] = ()
    events: tuple[Event, ...] = ()
    undeliverable: bool = False  # held, for there is nobody to tell: alert


def wholly_relayed(envelope: Envelope, results: Results, handed_on: frozenset[int]) -> bool:
    """The everyday case: taken by the next hop for everybody, and nobody wants to hear of it."""
    for position, recipient in enumerate(envelope.recipients):
        outcome = results.get(position)
        if outcome is None or outcome[1].__class__ is Failure:
            return False
        if recipient.notify and position not in handed_on and "SUCCESS" in recipient.notify:
            return False
    return True


def settle(
    config: Config,
    schedule: Schedule,
    envelope: Envelope,
    attempt: Attempt,
    results: Results,
    handed_on: frozenset[int] = frozenset(),
) -> Settlement:
    """What an attempt's results make of the envelope; without results, what the passing of time does.

    ``results``: {position: outcome} of one way out. Positions already settled are left alone.
    """
    slots_used, next_slot_in = _count(schedule, attempt, results)
    recipients = [_with_reason(*each, attempt) for each in enumerate(envelope.recipients)]
    taken, failed, put_off = _apply(recipients, results)
    expired = _expire(recipients, attempt, results) if schedule.used_up(slots_used) else []
    put_off = [position for position in put_off if position not in expired]
    pending = [
        each for each, recipient in enumerate(recipients) if recipient.status is RecipientStatus.PENDING
    ]
    if pending and schedule.used_up(slots_used) and attempt.own_trouble.issuperset(pending):
        slots_used, next_slot_in = 0, schedule.delay_before(1)  # none of that time was theirs
    attempts = max(envelope.attempts, attempt.number)

    reports = _reports(config, envelope, recipients, attempts, taken, failed, expired, handed_on)
    delayed = _delay_report(
        config, schedule, envelope, recipients, attempt, pending, slots_used, next_slot_in
    )
    undeliverable = not pending and _owed_to_nobody(config, envelope, recipients)
    next_attempt_at = attempt.now + max(next_slot_in, 0.0) if pending else None
    settled = replace(
        envelope,
        recipients=tuple(recipients),
        attempts=attempts,
        slots_used=slots_used,
        next_attempt_at=attempt.now + UNDELIVERABLE_SECONDS if undeliverable else next_attempt_at,
        delay_reported=envelope.delay_reported or bool(delayed),
        held=UNDELIVERABLE if undeliverable else envelope.held,
    )
    return Settlement(
        settled,
        finished=not pending and not undeliverable,
        durable=bool(taken or failed or expired or delayed),
        next_slot_in_seconds=next_slot_in,
        reports=(*reports, *delayed),
        events=_events(schedule, recipients, results, taken, failed, put_off, expired, reports),
        undeliverable=undeliverable,
    )


def give_up(config: Config, envelope: Envelope, now: float) -> Settlement:
    """`queue delete --bounce`: everybody still pending fails, by the administrator's will."""
    results: Results = {
        position: (None, Failure(Scope.MESSAGE, DELETED, True))
        for position, recipient in enumerate(envelope.recipients)
        if recipient.status is RecipientStatus.PENDING
    }
    attempt = Attempt(envelope.attempts, now, envelope.slots_used)
    return settle(config, Schedule(config.queue), envelope, attempt, results)


def begin_again(envelope: Envelope) -> Envelope:
    """An undeliverable message that the administrator released: everybody who failed is tried anew."""
    recipients = tuple(
        replace(recipient, status=RecipientStatus.PENDING)
        if recipient.status is RecipientStatus.FAILED
        else recipient
        for recipient in envelope.recipients
    )
    return replace(envelope, recipients=recipients, slots_used=0, next_attempt_at=None, held="")


def _count(schedule: Schedule, attempt: Attempt, results: Results) -> tuple[int, float]:
    """Slots used after this attempt, and seconds to the next slot."""
    failed = any(isinstance(outcome, Failure) for _, outcome in results.values())
    if not failed or attempt.next_slot_in_seconds > 0:
        return attempt.slots_used, attempt.next_slot_in_seconds
    slots_used = attempt.slots_used + (not all(_shielded(each, results, attempt) for each in results))
    return slots_used, schedule.delay_before(slots_used)


def _apply(recipients: list[Recipient], results: Results) -> tuple[list[int], list[int], list[int]]:
    """Write the outcomes into the recipients; the positions relayed, failed for good, and put off."""
    taken: list[int] = []
    failed: list[int] = []
    put_off: list[int] = []
    for position, (_, outcome) in sorted(results.items()):
        if recipients[position].status is not RecipientStatus.PENDING:
            continue
        if isinstance(outcome, Reply):
            status, reply, positions = RecipientStatus.RELAYED, outcome, taken
        elif outcome.permanent and outcome.scope in (Scope.RECIPIENT, Scope.MESSAGE):
            status, reply, positions = RecipientStatus.FAILED, outcome.reply, failed
        else:
            status, reply, positions = RecipientStatus.PENDING, outcome.reply, put_off
        recipients[position] = replace(recipients[position], status=status, last_reply=reply)
        positions.append(position)
    return taken, failed, put_off


def _with_reason(position: int, recipient: Recipient, attempt: Attempt) -> Recipient:
    """Who was never tried hears what others did."""
    if recipient.last_reply is not None or position not in attempt.kept_by:
        return recipient
    return replace(recipient, last_reply=attempt.kept_by[position])


def _expire(recipients: list[Recipient], attempt: Attempt, results: Results) -> list[int]:
    """The schedule is used up: fail who is pending, but nobody for our own trouble or while still tried."""
    expired = []
    for position, recipient in enumerate(recipients):
        if recipient.status is not RecipientStatus.PENDING:
            continue
        if position in attempt.in_flight or _shielded(position, results, attempt):
            continue
        recipients[position] = replace(recipient, status=RecipientStatus.FAILED)
        expired.append(position)
    return expired


def _shielded(position: int, results: Results, attempt: Attempt) -> bool:
    """Nothing counts against this recipient: it was taken, or only our own trouble keeps it."""
    outcome = results[position][1] if position in results else None
    if isinstance(outcome, Failure) and outcome.scope in (Scope.RECIPIENT, Scope.MESSAGE):
        return False
    own = isinstance(outcome, Failure) and outcome.scope is Scope.ACCOUNT
    return own or isinstance(outcome, Reply) or position in attempt.own_trouble


def _reports(
    config: Config,
    envelope: Envelope,
    recipients: list[Recipient],
    attempts: int,
    taken: list[int],
    failed: list[int],
    expired: list[int],
    handed_on: frozenset[int],
) -> tuple[Report, ...]:
    if not (failed or expired) and not any(recipients[position].notify for position in taken):
        return ()
    if _never_answered(envelope):
        return ()
    message_kind, to = report_address(config, envelope)
    told = [
        position for position in sorted(failed + expired) if _wants(envelope, recipients[position], "FAILURE")
    ]
    glad = [
        position
        for position in taken
        if position not in handed_on and "SUCCESS" in (recipients[position].notify or ())
    ]
    wanted = ((ReportKind.FAILED, told, message_kind), (ReportKind.RELAYED, glad, message_kind))
    return tuple(
        Report(
            report_id(envelope.queue_id, kind, attempts, positions[0]),
            kind,
            message,
            to,
            tuple(positions),
            frozenset(expired) if kind is ReportKind.FAILED else frozenset(),
        )
        for kind, positions, message in wanted
        if positions and to
    )


def _delay_report(
    config: Config,
    schedule: Schedule,
    envelope: Envelope,
    recipients: list[Recipient],
    attempt: Attempt,
    pending: list[int],
    slots_used: int,
    next_slot_in: float,
) -> tuple[Report, ...]:
    """At most one in a message's life, and none that could not leave now."""
    after = config.queue.delay_warning_after_seconds
    if not pending or not after or envelope.delay_reported or envelope.kind is not Kind.MAIL:
        return ()
    if not attempt.delay_due and schedule.waited_seconds(slots_used, next_slot_in) < after:
        return ()
    told = tuple(position for position in pending if _wants(envelope, recipients[position], "DELAY"))
    message_kind, to = report_address(config, envelope)
    if not told or not to or _never_answered(envelope) or not attempt.can_carry(to):
        return ()
    queue_id = report_id(
        envelope.queue_id, ReportKind.DELAYED, max(envelope.attempts, attempt.number), told[0]
    )
    return (Report(queue_id, ReportKind.DELAYED, message_kind, to, told),)


def _wants(envelope: Envelope, recipient: Recipient, word: str) -> bool:
    """NOTIFY (RFC 3461 4.1): absent is FAILURE, and DELAY by our choice.

    Of our own reports only a failure is told, and of a delay report nothing: the last word is still to come.
    """
    if envelope.kind is not Kind.MAIL:
        return word == "FAILURE" and not delayed_original(envelope.queue_id)
    return recipient.notify is None or word in recipient.notify


def _never_answered(envelope: Envelope) -> bool:
    """Mail that came with the null reverse-path is never answered (RFC 5321 4.5.5)."""
    return envelope.kind is Kind.MAIL and not envelope.reverse_path and not envelope.original_reverse_path


def _owed_to_nobody(config: Config, envelope: Envelope, recipients: list[Recipient]) -> bool:
    """A report is owed, and there is no address for it."""
    return (
        any(
            recipient.status is RecipientStatus.FAILED and _wants(envelope, recipient, "FAILURE")
            for recipient in recipients
        )
        and not _never_answered(envelope)
        and not report_address(config, envelope)[1]
    )


def _events(
    schedule: Schedule,
    recipients: list[Recipient],
    results: Results,
    taken: list[int],
    failed: list[int],
    put_off: list[int],
    expired: list[int],
    reports: tuple[Report, ...],
) -> tuple[Event, ...]:
    told = {
        position: report.queue_id
        for report in reports
        if report.kind is ReportKind.FAILED
        for position in report.positions
    }

    def event(status: RecipientStatus, position: int, reply: Reply | None) -> Event:
        next_hop = results[position][0] if position in results else None
        return Event(status, position, next_hop, reply or NEVER_TRIED, told.get(position, ""))

    return (
        *(event(RecipientStatus.RELAYED, each, recipients[each].last_reply) for each in taken),
        *(event(RecipientStatus.FAILED, each, recipients[each].last_reply) for each in failed),
        *(event(RecipientStatus.PENDING, each, recipients[each].last_reply) for each in put_off),
        *(event(RecipientStatus.FAILED, each, expiry(recipients[each].last_reply)) for each in expired),
    )


def passed_over(state: HopState) -> Reply:
    """Why a message is not even tried: what its next hop said when others were, if anything."""
    words = f"the next hop is in trouble: {state.reply}" if state.reply else "the next hop is paused"
    return Reply(451, "4.4.1", words)


NEVER_TRIED = Reply(451, "4.4.1", "the next hop could not be reached")


def expiry(last_reply: Reply | None) -> Reply:
    """What is said of a recipient at the end of the schedule: 4.4.7 (RFC 3463), and the last words heard."""
    last = last_reply or NEVER_TRIED
    return Reply(
        last.code,
        "4.4.7",
        f"given up, the time for retries is over; the last answer: {last}",
        last.remote_mta,
    )
