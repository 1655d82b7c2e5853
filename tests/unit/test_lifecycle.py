"""A message's fate: the schedule, and what a settlement makes of an envelope."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from pi_relay.config import Config, Device, Queue, Submission
from pi_relay.lifecycle import (
    Attempt,
    ReportKind,
    Results,
    Schedule,
    Settlement,
    begin_again,
    delayed_original,
    give_up,
    is_ours,
    passed_over,
    report_address,
    report_envelope,
    report_id,
    settle,
    wholly_relayed,
)
from pi_relay.model import (
    Envelope,
    Failure,
    HopCondition,
    HopState,
    Kind,
    NextHop,
    Recipient,
    RecipientStatus,
    Reply,
    Scope,
)

ISP = NextHop("isp", "smtp.isp.example", 587, "starttls")
OK = Reply(250, "2.0.0", "queued", "mx.example")
NOW = 1_700_000_000.0
DAY = 86_400.0

QUEUE = Queue(Path("/nowhere"), retry_delays_seconds=(60, 300, 900), lifetime_seconds=3600)
CONFIG = Config(
    hostname="relay.office.example",
    queue=QUEUE,
    postmaster="admin@office.example",
    submission=Submission(sender_domains=("office.example", "*.office.example")),
    devices=(Device("copier", reports_to="desk@office.example"), Device("plain")),
)
SCHEDULE = Schedule(QUEUE)


def failure(scope: Scope, code: int = 450, *, permanent: bool = False, status: str = "") -> Failure:
    return Failure(scope, Reply(code, status, "no", "mx.example"), permanent)


GREYLISTED = failure(Scope.RECIPIENT)
UNKNOWN = failure(Scope.RECIPIENT, 550, permanent=True, status="5.1.1")
DOWN = failure(Scope.NEXT_HOP, 421)
BAD_PASSWORD = failure(Scope.ACCOUNT, 535)


def message(*recipients: str | Recipient, **changes: object) -> Envelope:
    made = tuple(each if isinstance(each, Recipient) else Recipient(each) for each in recipients)
    envelope = Envelope("A1", "ann@office.example", made or (Recipient("bob@far.example"),), NOW - 5)
    return replace(envelope, **changes)  # type: ignore[arg-type]


def settled(
    envelope: Envelope,
    *outcomes: Reply | Failure,
    config: Config = CONFIG,
    handed_on: frozenset[int] = frozenset(),
    **known: object,
) -> Settlement:
    results: Results = {position: (ISP, outcome) for position, outcome in enumerate(outcomes)}
    attempt = replace(Attempt(number=envelope.attempts + 1, now=NOW), **known)  # type: ignore[arg-type]
    return settle(config, Schedule(config.queue), envelope, attempt, results, handed_on)


def statuses(settlement: Settlement) -> list[str]:
    return [recipient.status.value for recipient in settlement.envelope.recipients]


# ── the schedule ─────────────────────────────────────────────────────────────────────────────────


def test_slots_fill_the_lifetime() -> None:
    # 0, 60, 360, 1260, then 900 each: 2160, 3060; 3960 is beyond the hour
    assert SCHEDULE.slots == 6
    assert [SCHEDULE.time_of(slot) for slot in range(6)] == [0, 60, 360, 1260, 2160, 3060]
    assert [SCHEDULE.delay_before(slot) for slot in range(6)] == [60, 60, 300, 900, 900, 900]
    assert not SCHEDULE.used_up(5) and SCHEDULE.used_up(6)


@pytest.mark.parametrize(
    ("delays", "lifetime", "slots"),
    [((60,), 59, 1), ((60,), 60, 2), ((60, 120), 100, 2), ((60, 120), 180, 3), ((60, 120), 300, 4)],
)
def test_short_lifetimes(delays: tuple[float, ...], lifetime: float, slots: int) -> None:
    assert Schedule(Queue(Path("/x"), retry_delays_seconds=delays, lifetime_seconds=lifetime)).slots == slots


def test_the_default_is_four_days() -> None:
    schedule = Schedule(Queue(Path("/x")))
    assert 4 * DAY - 4 * 3600 < schedule.time_of(schedule.slots - 1) <= 4 * DAY


@pytest.mark.parametrize(
    ("used", "next_in", "used_after", "next_after"),
    [
        (1, 10.0, 1, 10.0),  # not yet
        (1, 0.0, 1, 0.0),  # due now: the attempt itself counts it
        (1, -1.0, 2, 299.0),
        (1, -299.0, 2, 1.0),
        (1, -300.0, 3, 900.0),
        (1, -301.0, 3, 899.0),
        (3, -900.0, 5, 900.0),
        (1, -1e9, 6, None),
        (6, -5.0, 6, -5.0),
    ],
)
def test_passed_over(used: int, next_in: float, used_after: int, next_after: float | None) -> None:
    slots_used, next_slot_in = SCHEDULE.passed_over(used, next_in)
    assert slots_used == used_after
    if next_after is not None:
        assert next_slot_in == pytest.approx(next_after)


def test_until_used_up_is_when_the_last_slot_has_passed() -> None:
    for used in range(SCHEDULE.slots):
        left = SCHEDULE.until_used_up(used, 25.0)
        assert SCHEDULE.passed_over(used, 25.0 - left - 0.01)[0] == SCHEDULE.slots
        assert SCHEDULE.passed_over(used, 25.0 - left + 0.01)[0] < SCHEDULE.slots


# ── counting ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outcome", [GREYLISTED, DOWN, failure(Scope.MESSAGE, 451)])
def test_a_transient_failure_at_its_slot_counts(outcome: Failure) -> None:
    result = settled(message(), outcome)
    assert (result.envelope.attempts, result.envelope.slots_used) == (1, 1)
    assert result.next_slot_in_seconds == 60
    assert result.envelope.next_attempt_at == NOW + 60
    assert not result.finished and not result.durable and not result.reports
    assert result.envelope.recipients[0].last_reply == outcome.reply
    again = settled(result.envelope, outcome, slots_used=1)
    assert (again.envelope.attempts, again.envelope.slots_used, again.next_slot_in_seconds) == (2, 2, 300)


def test_an_attempt_beside_the_schedule_counts_nothing_and_moves_nothing() -> None:
    result = settled(message(attempts=3), GREYLISTED, slots_used=3, next_slot_in_seconds=77.0)
    assert (result.envelope.attempts, result.envelope.slots_used) == (4, 3)
    assert result.next_slot_in_seconds == 77.0


def test_account_trouble_never_counts_and_never_bounces() -> None:
    envelope = message()
    for _ in range(50):
        result = settled(envelope, BAD_PASSWORD)
        assert statuses(result) == ["pending"] and not result.reports
        assert result.envelope.slots_used == 0
        assert result.next_slot_in_seconds > 0
        envelope = result.envelope
    assert envelope.attempts == 50


def test_a_permanent_flag_on_account_or_next_hop_trouble_is_not_believed() -> None:
    for scope in (Scope.ACCOUNT, Scope.NEXT_HOP):
        assert statuses(settled(message(), failure(scope, 550, permanent=True))) == ["pending"]


def test_next_hop_trouble_beside_account_trouble_on_the_same_way_does_not_count() -> None:
    result = settled(message(), DOWN, own_trouble=frozenset({0}))
    assert result.envelope.slots_used == 0
    result = settled(message(), GREYLISTED, own_trouble=frozenset({0}))
    assert result.envelope.slots_used == 1, "the other side did answer for this recipient"


def test_the_schedule_used_up_fails_with_4_4_7() -> None:
    for outcome in (GREYLISTED, DOWN):
        result = settled(message(attempts=5), outcome, slots_used=5)
        assert statuses(result) == ["failed"]
        assert result.finished and result.durable
        (report,) = result.reports
        assert (report.kind, report.positions, report.expired) == (ReportKind.FAILED, (0,), frozenset({0}))
        (event,) = result.events
        assert event.status is RecipientStatus.FAILED
        assert event.reply.enhanced_status == "4.4.7" and "no" in event.reply.text
        assert event.dsn == report.queue_id


def test_who_was_never_tried_hears_why_nobody_was() -> None:
    said = Reply(421, "4.3.2", "too busy", "mx.example")
    paused = HopState(HopCondition.PAUSED, Scope.NEXT_HOP, reply=said)
    attempt = Attempt(0, NOW, slots_used=6, kept_by={0: passed_over(paused)})
    result = settle(CONFIG, SCHEDULE, message(), attempt, {})
    (recipient,), (event,) = result.envelope.recipients, result.events
    assert recipient.last_reply == Reply(451, "4.4.1", "the next hop is in trouble: 421 4.3.2 too busy")
    assert "too busy" in event.reply.text and event.reply.enhanced_status == "4.4.7"


def test_who_was_tried_keeps_the_answer() -> None:
    attempt = Attempt(2, NOW, slots_used=1, kept_by={0: passed_over(HopState(HopCondition.PAUSED))})
    result = settle(CONFIG, SCHEDULE, message(), attempt, {0: (None, GREYLISTED)})
    assert result.envelope.recipients[0].last_reply == GREYLISTED.reply


def test_expiry_without_an_attempt() -> None:
    result = settle(CONFIG, SCHEDULE, message(attempts=2), Attempt(2, NOW, slots_used=6), {})
    assert statuses(result) == ["failed"] and result.reports[0].queue_id == "A1-f2-0"


def test_expiry_spares_own_trouble_and_what_is_in_flight() -> None:
    envelope = message("a@x.example", "b@y.example", "c@z.example")
    result = settled(envelope, GREYLISTED, slots_used=5, in_flight=frozenset({1}), own_trouble=frozenset({2}))
    assert statuses(result) == ["failed", "pending", "pending"]
    assert result.envelope.slots_used == 6
    last = settle(
        CONFIG,
        SCHEDULE,
        result.envelope,
        Attempt(7, NOW, slots_used=6, own_trouble=frozenset({2})),
        {1: (ISP, GREYLISTED)},
    )
    assert statuses(last) == ["failed", "failed", "pending"]
    assert last.envelope.slots_used == 0, "none of that time was the last one's"
    assert last.next_slot_in_seconds == 60


# ── settling ─────────────────────────────────────────────────────────────────────────────────────


def test_all_taken_is_the_end() -> None:
    envelope = message("a@x.example", "b@y.example")
    results = {0: (ISP, OK), 1: (ISP, OK)}
    assert wholly_relayed(envelope, results, frozenset())
    assert settled(envelope, OK, OK).finished
    assert not wholly_relayed(envelope, {0: (ISP, OK)}, frozenset())
    assert not wholly_relayed(envelope, {0: (ISP, OK), 1: (ISP, DOWN)}, frozenset())


def test_each_recipient_has_its_own_outcome() -> None:
    envelope = message("a@x.example", "b@y.example", "c@z.example")
    result = settled(envelope, OK, UNKNOWN, GREYLISTED)
    assert statuses(result) == ["relayed", "failed", "pending"]
    assert not result.finished and result.durable
    (report,) = result.reports
    assert report.positions == (1,) and report.to == "ann@office.example"
    assert report.queue_id == "A1-f1-1" and report.message_kind is Kind.DSN
    assert [event.status.value for event in result.events] == ["relayed", "failed", "pending"]
    rest = settle(
        CONFIG, SCHEDULE, result.envelope, Attempt(2, NOW, slots_used=1), {2: (ISP, OK), 1: (ISP, OK)}
    )
    assert statuses(rest) == ["relayed", "failed", "relayed"], "what is settled stays settled"
    assert rest.finished and not rest.reports


def test_a_replay_names_the_report_alike() -> None:
    first, second = settled(message(), UNKNOWN), settled(message(), UNKNOWN)
    assert first.reports == second.reports
    later = settled(message("a@x.example", "b@x.example", attempts=1), GREYLISTED, UNKNOWN)
    assert later.reports[0].queue_id == "A1-f2-1"


def test_report_ids_fit_the_store() -> None:
    shape = re.compile(r"[0-9A-Z]+(-[a-z0-9-]+)?")
    once = report_id("0ABC", ReportKind.FAILED, 12, 3)
    assert once == "0ABC-f12-3" and shape.fullmatch(once)
    assert shape.fullmatch(report_id(once, ReportKind.FAILED, 1, 0))
    assert delayed_original(report_id("0ABC", ReportKind.DELAYED, 2, 0)) == "0ABC"
    assert delayed_original(once) == "" and delayed_original("0ABC") == ""


# ── whom it is told ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "kind", "to"),
    [
        ({}, Kind.DSN, "ann@office.example"),
        ({"reverse_path": "x@sub.office.example"}, Kind.DSN, "x@sub.office.example"),
        ({"original_reverse_path": "ben@office.example"}, Kind.DSN, "ben@office.example"),
        (
            {"original_reverse_path": "ben@elsewhere.example", "device": "copier"},
            Kind.DSN,
            "desk@office.example",
        ),
        ({"original_reverse_path": "copier", "device": "plain"}, Kind.REPORT, "admin@office.example"),
        ({"original_reverse_path": ""}, Kind.REPORT, "admin@office.example"),
        ({"kind": Kind.DSN, "reverse_path": ""}, Kind.REPORT, "admin@office.example"),
        ({"kind": Kind.REPORT, "reverse_path": ""}, Kind.REPORT, ""),
    ],
)
def test_who_is_told(changes: dict[str, object], kind: Kind, to: str) -> None:
    assert report_address(CONFIG, message(**changes)) == (kind, to)


@pytest.mark.parametrize(
    ("allowed", "address", "ours"),
    [
        (("*",), "x@any.example", True),
        ((), "x@any.example", True),
        (("*",), "printer@localhost", False),
        (("*",), "x@[192.0.2.1]", True),
        (("*",), "printer", False),
        (("*",), "", False),
        (("*",), "a b@x.example", False),
        (("office.example",), "x@OFFICE.example", True),
        (("office.example",), "x@any.example", False),
        (("printers.local",), "x@printers.local", True),
    ],
)
def test_ours_is_what_the_sender_domains_allow(allowed: tuple[str, ...], address: str, ours: bool) -> None:
    assert is_ours(replace(CONFIG, submission=Submission(sender_domains=allowed)), address) is ours


def test_the_null_reverse_path_is_never_answered() -> None:
    result = settled(message(reverse_path=""), UNKNOWN)
    assert result.finished and not result.reports and not result.undeliverable


def test_a_failed_dsn_is_reported_once_to_the_postmaster_and_no_further() -> None:
    dsn = message("ann@office.example", queue_id="A1-f1-0", reverse_path="", kind=Kind.DSN)
    result = settled(dsn, UNKNOWN)
    (report,) = result.reports
    assert (report.message_kind, report.to, report.queue_id) == (
        Kind.REPORT,
        "admin@office.example",
        "A1-f1-0-f1-0",
    )
    assert result.finished
    own = report_envelope(dsn, report, NOW, header_size_bytes=1, message_size_bytes=2)
    assert own.reverse_path == "" and own.kind is Kind.REPORT
    last = settled(own, UNKNOWN)
    assert not last.reports and not last.finished
    assert last.undeliverable and last.durable and last.envelope.held == "undeliverable"
    assert last.envelope.next_attempt_at == NOW + 14 * DAY


def test_where_nobody_can_be_told_the_message_is_held_when_nothing_is_pending_any_more() -> None:
    nobody = replace(CONFIG, postmaster="")
    envelope = message("a@x.example", "b@y.example", original_reverse_path="copier")
    first = settled(envelope, UNKNOWN, GREYLISTED, config=nobody)
    assert not first.reports and not first.undeliverable and not first.finished and first.durable
    attempt = Attempt(2, NOW, slots_used=1)
    last = settle(nobody, SCHEDULE, first.envelope, attempt, {1: (ISP, OK)})
    assert last.undeliverable and not last.finished
    again = begin_again(last.envelope)
    assert [each.status.value for each in again.recipients] == ["pending", "relayed"]
    assert not again.held and again.slots_used == 0


def test_dsns_that_fail_without_a_postmaster_are_held() -> None:
    dsn = message("ann@office.example", queue_id="A1-f1-0", reverse_path="", kind=Kind.DSN)
    assert settled(dsn, UNKNOWN, config=replace(CONFIG, postmaster="")).undeliverable


def test_a_failed_delay_report_is_worth_nothing() -> None:
    dsn = message("ann@office.example", queue_id="A1-d3-0", reverse_path="", kind=Kind.DSN)
    result = settled(dsn, UNKNOWN)
    assert result.finished and not result.reports


# ── NOTIFY ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("notify", "outcome", "kinds"),
    [
        (None, UNKNOWN, ["failed"]),
        (("FAILURE",), UNKNOWN, ["failed"]),
        (("NEVER",), UNKNOWN, []),
        (("SUCCESS",), UNKNOWN, []),
        (("DELAY",), UNKNOWN, []),
        (None, OK, []),
        (("FAILURE",), OK, []),
        (("SUCCESS", "FAILURE"), OK, ["relayed"]),
    ],
)
def test_notify(notify: tuple[str, ...] | None, outcome: Reply | Failure, kinds: list[str]) -> None:
    envelope = message(Recipient("bob@far.example", notify=notify))
    result = settled(envelope, outcome)
    assert [report.kind.value for report in result.reports] == kinds
    assert result.finished and not result.undeliverable


def test_success_is_not_told_where_the_next_hop_will() -> None:
    envelope = message(Recipient("bob@far.example", notify=("SUCCESS",)))
    assert not wholly_relayed(envelope, {0: (ISP, OK)}, frozenset())
    assert wholly_relayed(envelope, {0: (ISP, OK)}, frozenset({0}))
    assert not settled(envelope, OK, handed_on=frozenset({0})).reports


# ── delay ────────────────────────────────────────────────────────────────────────────────────────

WARNING = replace(CONFIG, queue=replace(QUEUE, delay_warning_after_seconds=300))


def test_one_delay_report_once_the_wait_is_over() -> None:
    early = settled(message(), GREYLISTED, config=WARNING, slots_used=1)
    assert not early.reports, "a minute of the schedule has passed"
    late = settled(message(), GREYLISTED, config=WARNING, slots_used=2)
    (report,) = late.reports
    assert (report.kind, report.queue_id, report.to) == (
        ReportKind.DELAYED,
        "A1-d1-0",
        "ann@office.example",
    )
    assert late.durable and late.envelope.delay_reported and not late.finished
    again = settled(late.envelope, GREYLISTED, config=WARNING, slots_used=3)
    assert not again.reports and not again.durable


def test_no_delay_report_while_it_could_not_leave() -> None:
    asked = []

    def can_carry(address: str) -> bool:
        asked.append(address)
        return False

    result = settled(message(), GREYLISTED, config=WARNING, slots_used=2, can_carry=can_carry)
    assert not result.reports and not result.envelope.delay_reported
    assert asked == ["ann@office.example"]


@pytest.mark.parametrize(
    ("envelope", "config"),
    [
        (message(), replace(WARNING, queue=replace(QUEUE, delay_warning_after_seconds=0))),
        (message(kind=Kind.DSN, reverse_path=""), WARNING),
        (message(reverse_path=""), WARNING),
        (message(Recipient("b@x.example", notify=("FAILURE",))), WARNING),
    ],
)
def test_delay_reports_that_nobody_wants(envelope: Envelope, config: Config) -> None:
    assert not settled(envelope, GREYLISTED, config=config, slots_used=2, delay_due=True).reports


def test_time_alone_brings_the_warning() -> None:
    attempt = Attempt(1, NOW, slots_used=1, next_slot_in_seconds=40.0, delay_due=True)
    result = settle(WARNING, SCHEDULE, message(attempts=1), attempt, {})
    (report,) = result.reports
    assert report.queue_id == "A1-d1-0"
    assert (result.envelope.attempts, result.envelope.slots_used) == (1, 1)
    assert result.next_slot_in_seconds == 40.0


# ── the administrator ────────────────────────────────────────────────────────────────────────────


def test_delete_with_bounce_reports_the_pending() -> None:
    done = Recipient("a@x.example", status=RecipientStatus.RELAYED)
    result = give_up(CONFIG, message(done, "b@y.example", attempts=2), NOW)
    assert result.finished
    (report,) = result.reports
    assert report.positions == (1,) and report.queue_id == "A1-f2-1" and not report.expired
