"""Next hops as wholes: sessions kept and shared, pauses and probes, and the turn to the next in ``via``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from pi_relay import maillog
from pi_relay.config import Route
from pi_relay.delivery import health, pool
from pi_relay.model import HopCondition, Kind, Scope, StoredMessage
from tests.delivery.office import (
    BODY,
    HEADER,
    IMPATIENT,
    Office,
    config,
    deliver_once,
    failure,
    fates,
    hop_names,
    large_message,
    smart_host,
    with_office,
)
from tests.support.misbehaving_hop import DROP, HANG, RESET, Act, MisbehavingHop
from tests.support.processes import free_port

A, B = "a@elsewhere.example", "b@elsewhere.example"
OPEN, PAUSED, PROBING = HopCondition.OPEN, HopCondition.PAUSED, HopCondition.PROBING


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# ── sessions ─────────────────────────────────────────────────────────────────────────────────────


def test_a_session_serves_message_after_message() -> None:
    async def use(office: Office) -> None:
        for _ in range(5):
            assert fates(await office.deliver()) == ["relayed"]

    with MisbehavingHop() as hop:
        with_office(config(smart_host(hop)), use)
        assert len(hop.connections) == 1 and hop.verbs().count("EHLO") == 1
        assert hop.verbs()[-1] == "QUIT"


def test_no_more_connections_than_allowed_and_all_of_them_used() -> None:
    async def use(office: Office) -> None:
        reports = await asyncio.gather(*(office.deliver() for _ in range(30)))
        assert all(fates(report) == ["relayed"] for report in reports)

    with MisbehavingHop() as hop:
        with_office(config(smart_host(hop, connections_max=3)), use)
        assert hop.open_at_most == 3 and len(hop.connections) == 3
        assert len(hop.messages) == 30


def test_where_fewer_connections_are_let_in_mail_waits_for_one_of_those() -> None:
    async def use(office: Office) -> None:
        reports = await asyncio.gather(*(office.deliver() for _ in range(20)))
        assert all(fates(report) == ["relayed"] for report in reports)
        assert office.changes == []

    greetings = ["220 hop.example", "421 4.7.0 too many connections from you"]
    with MisbehavingHop({"CONNECT": greetings, "DOT": lambda _: "250 ok"}) as hop:

        async def first_one_then_many(office: Office) -> None:
            await office.deliver()
            await use(office)

        with_office(config(smart_host(hop)), first_one_then_many)
        assert len(hop.messages) == 21


@pytest.mark.parametrize("lets_one_in", [True, False])
def test_who_is_refused_while_another_connection_is_being_opened_waits_what_becomes_of_that(
    lets_one_in: bool,
) -> None:
    """A refusal comes quicker than a greeting, or a handshake: it tells nothing of the hop yet."""

    async def use(office: Office) -> None:
        reports = await asyncio.gather(*(office.deliver() for _ in range(20)))
        fate = "relayed" if lets_one_in else "next_hop transient 421"
        assert all(fates(report) == [fate] for report in reports)
        assert office.changes == ([] if lets_one_in else [PAUSED])

    words = b"220 hop.example\r\n" if lets_one_in else b"421 4.3.2 not now\r\n"
    greetings = [Act(words, after_seconds=0.2), "421 4.7.0 too many connections from you"]
    with MisbehavingHop({"CONNECT": greetings}) as hop:
        with_office(config(smart_host(hop)), use)
        assert len(hop.messages) == (20 if lets_one_in else 0)
        assert len(hop.connections) == 4


def test_a_hop_that_refuses_everybody_is_found_out_however_fast_mail_comes() -> None:
    async def use(office: Office) -> None:
        attempts = []
        for _ in range(12):
            attempts.append(asyncio.ensure_future(office.deliver()))
            await asyncio.sleep(0.1)
        for each in attempts:
            assert fates(await each) == ["next_hop transient 421"]
        assert office.changes == [PAUSED]

    with MisbehavingHop({"CONNECT": Act(b"421 4.3.2 not now\r\n", after_seconds=0.35)}) as hop:
        with_office(config(smart_host(hop)), use)
        assert len(hop.connections) <= 4


def test_a_session_is_ended_after_its_share_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MESSAGES_PER_SESSION_MAX", 2)

    async def use(office: Office) -> None:
        for _ in range(5):
            assert fates(await office.deliver()) == ["relayed"]

    with MisbehavingHop() as hop:
        with_office(config(smart_host(hop, connections_max=1)), use)
        assert len(hop.connections) == 3


def test_an_idle_session_is_ended_politely() -> None:
    async def use(office: Office) -> None:
        office.delivery._hops["isp"].pool._idle_seconds_max = 0.1
        await office.deliver()
        await until(lambda: hop.connections[0].ended == "quit")
        assert fates(await office.deliver()) == ["relayed"]

    with MisbehavingHop() as hop:
        with_office(config(smart_host(hop)), use)
        assert len(hop.connections) == 2


@pytest.mark.parametrize("last_words", [b"", b"421 4.4.2 idle for too long\r\n", b"* BYE\r\n"])
@pytest.mark.parametrize("noticed", [True, False])
def test_a_session_that_died_idle_is_nobodys_failure(last_words: bytes, noticed: bool) -> None:
    async def use(office: Office) -> None:
        await office.deliver()
        hop.disconnect_all(last_words)
        if noticed:
            await until(lambda: office.delivery._hops["isp"].pool.is_empty)
        assert fates(await office.deliver()) == ["relayed"]
        assert office.changes == []

    with MisbehavingHop() as hop:
        with_office(config(smart_host(hop)), use)
        assert len(hop.messages) == 2


@pytest.mark.parametrize("trouble", ["421 4.7.0 enough for this session", DROP, RESET, HANG])
def test_a_kept_session_that_fails_at_mail_is_replaced_at_once(trouble: object) -> None:
    async def use(office: Office) -> None:
        assert fates(await office.deliver()) == ["relayed"]
        assert fates(await office.deliver()) == ["relayed"]
        assert office.changes == []

    with MisbehavingHop({"MAIL": ["250 ok", trouble, "250 ok"]}) as hop:
        with_office(config(smart_host(hop)), use, IMPATIENT)
        assert len(hop.connections) == 2 and len(hop.messages) == 2


def test_a_fresh_session_that_fails_at_mail_is_not_tried_again_at_once() -> None:
    async def use(office: Office) -> None:
        assert fates(await office.deliver()) == ["relayed"]
        assert fates(await office.deliver()) == ["next_hop transient 421"]

    with MisbehavingHop({"MAIL": ["250 ok", DROP]}) as hop:
        with_office(config(smart_host(hop)), use)
        assert len(hop.connections) == 2


def test_a_kept_session_that_fails_after_mail_is_not_tried_again_at_once() -> None:
    async def use(office: Office) -> None:
        assert fates(await office.deliver()) == ["relayed"]
        assert fates(await office.deliver()) == ["next_hop transient 421"]

    with MisbehavingHop({"DOT": ["250 ok", DROP]}) as hop:
        with_office(config(smart_host(hop)), use)
        assert len(hop.connections) == 1


def test_who_gives_up_waiting_takes_no_session_with_him() -> None:
    async def use(office: Office) -> None:
        first = asyncio.create_task(office.deliver())
        await until(lambda: hop.verbs()[-1:] == ["DATA"])
        second = asyncio.create_task(office.deliver())
        third = asyncio.create_task(office.deliver())
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        assert fates(await third) == ["relayed"]

    with MisbehavingHop({"DATA": [HANG, "354 go ahead"]}) as hop:
        with_office(config(smart_host(hop, connections_max=1)), use)
        assert len(hop.connections) == 2 and len(hop.messages) == 1


def test_a_delivery_broken_off_is_not_taken_for_a_message(tmp_path: Path) -> None:
    async def use(office: Office) -> None:
        task = asyncio.create_task(office.deliver(message=large_message(tmp_path / "m", 20_000_000)))
        await until(lambda: "DATA" in hop.verbs())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with MisbehavingHop({"CONTENT": [Act()] * 3 + [HANG]}) as hop:
        with_office(config(smart_host(hop)), use)
        assert not hop.messages


def test_closing_does_not_wait_for_who_never_says_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pi_relay.delivery.delivery.CLOSE_SECONDS", 0.2)

    async def use(office: Office) -> float:
        await office.deliver()
        before = asyncio.get_running_loop().time()
        await office.delivery.close()
        return asyncio.get_running_loop().time() - before

    with MisbehavingHop({"QUIT": HANG}) as hop:
        assert with_office(config(smart_host(hop)), use) < 4


# ── pauses ───────────────────────────────────────────────────────────────────────────────────────


def test_trouble_pauses_the_hop_and_mail_is_passed_over() -> None:
    async def use(office: Office) -> None:
        report = await office.deliver()
        assert office.changes == [PAUSED]
        state = office.delivery.hop_state("isp")
        assert state.condition is PAUSED and state.scope is Scope.NEXT_HOP
        assert 50 < state.until_monotonic - asyncio.get_running_loop().time() <= 60
        again = await office.deliver()
        assert failure(again) == failure(report)
        assert len(hop.connections) == 1

    with MisbehavingHop({"CONNECT": "421 4.3.2 busy"}) as hop:
        with_office(config(smart_host(hop)), use)


def test_pauses_grow_along_the_delays_and_end_with_a_success() -> None:
    async def use(office: Office) -> None:
        loop = asyncio.get_running_loop()
        pauses = []
        for _ in range(4):
            assert fates(await office.deliver()) == ["next_hop transient 421"]
            pauses.append(office.delivery.hop_state("isp").until_monotonic - loop.time())
            await until(lambda: office.delivery.hop_state("isp").condition is PROBING)
        assert pauses == pytest.approx([0.05, 0.1, 0.3, 0.3], abs=0.04)
        assert fates(await office.deliver()) == ["relayed"]
        assert office.changes == [PAUSED, PROBING] * 4 + [OPEN]
        (status,) = office.delivery.hops()
        assert status.state == "ok" and status.last_success_at and "busy" in status.last_error
        assert office.delivery.hop_state("isp").scope is None

    with MisbehavingHop({"CONNECT": ["421 4.3.2 busy"] * 4 + ["220 hop.example"]}) as hop:
        with_office(config(smart_host(hop), delays=(0.05, 0.1, 0.3)), use)


@pytest.mark.parametrize("answer", ["550 5.1.1 unknown", "450 4.2.0 later"])
def test_any_answer_about_the_mail_shows_that_the_hop_is_well(answer: str) -> None:
    async def use(office: Office) -> None:
        await office.deliver()
        await until(lambda: office.delivery.hop_state("isp").condition is PROBING)
        await office.deliver()
        assert office.changes == [PAUSED, PROBING, OPEN]

    with MisbehavingHop({"CONNECT": ["421 busy", "220 hop.example"], "RCPT": answer}) as hop:
        with_office(config(smart_host(hop), delays=(0.05,)), use)


def test_one_attempt_probes_and_the_others_wait_for_what_it_finds() -> None:
    async def use(office: Office) -> None:
        await office.deliver()
        await until(lambda: office.delivery.hop_state("isp").condition is PROBING)
        reports = await asyncio.gather(*(office.deliver() for _ in range(8)))
        assert [fates(report) for report in reports] == [["next_hop transient 421"]] * 8
        assert len(hop.connections) == 2
        await until(lambda: office.delivery.hop_state("isp").condition is PROBING)
        reports = await asyncio.gather(*(office.deliver() for _ in range(8)))
        assert [fates(report) for report in reports] == [["relayed"]] * 8

    with MisbehavingHop({"CONNECT": ["421 busy", "421 busy", "220 hop.example"]}) as hop:
        with_office(config(smart_host(hop), delays=(0.05,)), use)


def test_where_there_is_another_way_nobody_waits_for_a_probe() -> None:
    async def use(office: Office) -> None:
        await office.deliver(via=("isp",))
        await until(lambda: office.delivery.hop_state("isp").condition is PROBING)
        probe = asyncio.create_task(office.deliver())
        await until(lambda: len(hop.connections) == 2)
        assert hop_names(await office.deliver()) == ["other"] and not probe.done()
        probe.cancel()

    with MisbehavingHop({"CONNECT": ["421 busy", HANG]}) as hop, MisbehavingHop() as other:
        with_office(config(smart_host(hop), smart_host(other, "other"), delays=(0.05,)), use)


def test_a_probe_that_finds_nothing_out_lets_another_one_try() -> None:
    async def use(office: Office) -> None:
        await office.deliver()
        await until(lambda: office.delivery.hop_state("isp").condition is PROBING)
        office.changes.clear()
        assert fates(await office.deliver("a@b>\n")) == ["message transient 451"]
        assert office.changes == [PROBING]
        assert fates(await office.deliver()) == ["relayed"]

    with MisbehavingHop({"CONNECT": ["421 busy", "220 hop.example"]}) as hop:
        with_office(config(smart_host(hop), delays=(0.05,)), use)


def test_who_waits_for_a_session_is_sent_on_when_the_hop_is_paused() -> None:
    async def use(office: Office) -> None:
        reports = await asyncio.gather(*(office.deliver() for _ in range(6)))
        names = [hop_names(report)[0] for report in reports]
        assert names.count("isp") == 1 and names.count("other") == 5  # one was lost in mid-transaction

    with MisbehavingHop({"RCPT": DROP}) as hop, MisbehavingHop() as other:
        with_office(config(smart_host(hop, connections_max=1), smart_host(other, "other")), use)
        assert len(other.messages) == 5


def test_resume_lifts_pauses() -> None:
    async def use(office: Office) -> None:
        await office.deliver()
        office.delivery.resume(["no such host"])
        assert office.delivery.hop_state("isp").condition is PAUSED
        office.delivery.resume()
        assert office.delivery.hop_state("isp").condition is PROBING
        assert fates(await office.deliver()) == ["relayed"]
        assert office.delivery.hop_state("isp").condition is OPEN
        office.delivery.resume()
        assert office.changes == [PAUSED, PROBING, OPEN]

    with MisbehavingHop({"CONNECT": ["421 busy", "220 hop.example"]}) as hop:
        with_office(config(smart_host(hop)), use)


def test_account_trouble_is_alerted_at_once_and_again_until_it_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alerts: list[str] = []
    monkeypatch.setattr(maillog, "alert", lambda *, reason, next_hop: alerts.append(f"{next_hop}: {reason}"))
    monkeypatch.setattr(health, "ALERT_REPEATS_AFTER_SECONDS", 0.1)

    async def use(office: Office) -> None:
        assert fates(await office.deliver()) == ["account transient 530"]
        assert office.delivery.hop_state("isp").scope is Scope.ACCOUNT
        assert len(alerts) == 1 and "isp" in alerts[0] and "sign in" in alerts[0]
        await until(lambda: office.delivery.hop_state("isp").condition is PROBING)
        await office.deliver()
        assert len(alerts) == 1  # still the same trouble
        await until(lambda: len(alerts) == 3)
        await until(lambda: office.delivery.hop_state("isp").condition is PROBING)
        assert fates(await office.deliver()) == ["relayed"]
        told = len(alerts)
        await asyncio.sleep(0.25)
        assert len(alerts) == told

    with MisbehavingHop({"MAIL": ["530 5.7.0 sign in", "530 5.7.0 sign in", "250 ok"]}) as hop:
        with_office(config(smart_host(hop), delays=(0.03,)), use)


def test_the_log_tells_of_pauses(capfd: pytest.CaptureFixture[str]) -> None:
    async def use(office: Office) -> None:
        await office.deliver()
        office.delivery.resume()
        await office.deliver()
        await asyncio.sleep(0)

    with MisbehavingHop({"CONNECT": ["421 4.3.2 busy", "220 hop.example"]}) as hop:
        with_office(config(smart_host(hop)), use)
    lines = capfd.readouterr().err
    assert 'paused next_hop=isp reason="421 4.3.2 busy" until=' in lines and "resumed next_hop=isp" in lines


def test_what_status_is_told() -> None:
    async def use(office: Office) -> None:
        (status,) = office.delivery.hops()
        assert (status.name, status.state, status.last_error) == ("isp", "unknown", "")
        await office.deliver()
        (status,) = office.delivery.hops()
        assert status.state == "paused" and "refused" in status.last_error
        assert status.next_attempt_at and status.last_success_at is None
        assert office.delivery.capacity("isp") == 7 and office.delivery.capacity("gone") == 1

    with_office(config(smart_host(free_port(), connections_max=7)), use)


# ── the next in via ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "script",
    [
        {"CONNECT": "421 busy"},
        {"CONNECT": DROP},
        {"EHLO": "421 busy"},
        {"MAIL": "421 busy"},
        {"MAIL": DROP},
        {"MAIL": "530 5.7.0 sign in"},
        {"DOT": "554 5.2.252 SendAsDenied"},
        {"DOT": "550 5.7.30 basic authentication"},
    ],
)
def test_the_next_way_is_taken_where_this_one_has_not_taken_the_mail(script: dict[str, object]) -> None:
    with MisbehavingHop(script) as hop, MisbehavingHop() as other:
        report = deliver_once(config(smart_host(hop), smart_host(other, "other")), A, B)
    assert fates(report) == ["relayed"] * 2 and hop_names(report) == ["other"] * 2
    assert len(other.messages) == 1 and not hop.messages


@pytest.mark.parametrize(
    "script",
    [
        {"MAIL": "450 4.7.1 later"},
        {"MAIL": "550 5.7.1 no"},
        {"RCPT": "450 4.2.0 later"},
        {"RCPT": "550 5.1.1 no"},
        {"RCPT": DROP},
        {"DATA": "421 4.3.2 closing"},
        {"DOT": "451 4.3.0 later"},
        {"DOT": "554 5.7.1 spam"},
        {"DOT": DROP},
        {"DOT": HANG},
    ],
)
def test_the_next_way_is_not_taken_where_this_one_has_judged_or_may_have_taken_the_mail(
    script: dict[str, object],
) -> None:
    with MisbehavingHop(script) as hop, MisbehavingHop() as other:
        report = deliver_once(config(smart_host(hop), smart_host(other, "other")), A)
    assert "relayed" not in fates(report) and hop_names(report) == ["isp"]
    assert not other.connections


def test_each_recipient_goes_on_by_itself() -> None:
    script = {"RCPT": lambda argument: "550 5.1.1 no" if A in argument else "530 5.7.0 sign in"}
    with MisbehavingHop(script) as hop, MisbehavingHop() as other:
        report = deliver_once(config(smart_host(hop), smart_host(other, "other")), A, B)
    assert fates(report) == ["recipient permanent 550", "relayed"]
    assert other.messages[0].rcpts == [f"TO:<{B}>"]


@pytest.mark.parametrize("configured", [True, False])
def test_a_host_that_is_too_small_is_skipped_with_a_reserve(configured: bool) -> None:
    message = StoredMessage(HEADER, BODY * 3000)
    limit = len(HEADER + BODY * 3000) + 4000
    extensions = () if configured else (f"SIZE {limit}",)
    more = {"message_size_max_bytes": limit} if configured else {}
    with MisbehavingHop(extensions=extensions) as small, MisbehavingHop() as large:
        hosts = smart_host(small, "small", **more), smart_host(large, "large")
        assert hop_names(deliver_once(config(*hosts), message=message)) == ["large"]
        report = deliver_once(config(hosts[0]), message=message)
        assert "MAIL" not in small.verbs()
        assert len(small.connections) == (0 if configured else 2)
    assert fates(report) == ["message permanent 552"]


def test_too_small_here_and_out_of_reach_there_is_not_for_good() -> None:
    dead = smart_host(free_port(), "dead")
    with MisbehavingHop() as hop:
        small = smart_host(hop, "small", message_size_max_bytes=10)
        for hosts in ((small, dead), (dead, small)):
            report = deliver_once(config(*hosts))
            assert fates(report) == ["next_hop transient 421"] and hop_names(report) == ["dead"]


def test_of_two_troubles_our_accounts_is_told() -> None:
    with MisbehavingHop({"MAIL": "530 5.7.0 sign in"}) as hop:
        hosts = smart_host(hop), smart_host(free_port(), "dead")
        for order in (hosts, hosts[::-1]):
            assert fates(deliver_once(config(*order))) == ["account transient 530"]


def test_where_the_end_of_data_went_unanswered_the_same_host_is_asked_again() -> None:
    async def use(office: Office) -> None:
        assert fates(await office.deliver()) == ["next_hop transient 421"]
        report = await office.deliver()  # it is paused now, and yet no other may have the message
        assert hop_names(report) == ["isp"] and not other.connections
        assert hop_names(await office.deliver(queue_id="Q2")) == ["other"]
        office.delivery.resume()
        report = await office.deliver()
        assert fates(report) == ["relayed"] and hop_names(report) == ["isp"]
        assert not office.delivery._in_doubt

    with MisbehavingHop({"DOT": [DROP, "250 ok"]}) as hop, MisbehavingHop() as other:
        with_office(config(smart_host(hop), smart_host(other, "other")), use)


def test_a_way_out_that_is_no_longer_configured_waits() -> None:
    async def use(office: Office) -> None:
        report = await office.deliver(via=("gone",))
        assert fates(report) == ["message transient 451"] and hop_names(report) == [""]
        assert fates(await office.deliver(via=("gone", "isp"))) == ["relayed"]

    with MisbehavingHop() as hop:
        with_office(config(smart_host(hop)), use)


# ── senders ──────────────────────────────────────────────────────────────────────────────────────


ISP = "u1234@isp.example"


def mails(hop: MisbehavingHop) -> list[str]:
    return [command.split()[1] for command in hop.commands if command.startswith("MAIL")]


def test_what_a_host_demands_stands_for_whoever_sent_it() -> None:
    header = b"From: Ann <ann@office.example>\r\nSender: scans@office.example\r\nDate: x\r\n\r\n"
    with MisbehavingHop() as hop:
        assert fates(
            deliver_once(config(smart_host(hop, sender=ISP)), A, message=StoredMessage(header, BODY))
        ) == ["relayed"]
    assert mails(hop) == [f"FROM:<{ISP}>"]
    assert hop.messages[0].content.startswith(
        b"From: Ann <u1234@isp.example>\r\nReply-To: Ann <ann@office.example>\r\nDate: x\r\n\r\n"
    )


def test_each_host_gets_the_sender_that_it_demands() -> None:
    """Derived anew: what one host was shown is not what the next one gets."""
    with MisbehavingHop({"MAIL": "530 5.7.0 no"}) as first, MisbehavingHop() as second:
        hosts = smart_host(first, "first", sender=ISP), smart_host(second, "second")
        assert fates(deliver_once(config(*hosts), A)) == ["relayed"]
    assert (mails(first), mails(second)) == ([f"FROM:<{ISP}>"], ["FROM:<scans@office.example>"])
    assert second.messages[0].content.startswith(HEADER)


def test_a_report_is_shown_in_the_name_that_a_host_demands() -> None:
    report = StoredMessage(b"Date: x\r\nFrom: Mail relay <MAILER-DAEMON@relay.office.example>\r\n\r\n", BODY)
    with MisbehavingHop() as hop:
        office = config(smart_host(hop, sender=ISP))
        fate = deliver_once(office, A, message=report, reverse_path="", kind=Kind.DSN)
    assert (fates(fate), mails(hop)) == (["relayed"], ["FROM:<>"])
    assert hop.messages[0].content.startswith(b"Date: x\r\nFrom: Mail relay <u1234@isp.example>\r\n\r\n")


@pytest.mark.parametrize(
    ("account", "second"),
    [
        ({"username": "relay@isp.example"}, "relay@isp.example"),
        ({"username": "relay@isp.example", "sender": ISP}, "relay@isp.example"),
        ({"username": "u1234", "sender": ISP}, ISP),
    ],
)
def test_send_as_denied_is_tried_once_more_as_the_accounts_own_sender(
    account: dict[str, str], second: str
) -> None:
    script = {"DOT": ["554 5.2.252 SendAsDenied", "250 ok"]}
    with MisbehavingHop(script) as hop:
        report = deliver_once(config(smart_host(hop, **account)), A, B)
    assert fates(report) == ["relayed"] * 2
    assert mails(hop) == [f"FROM:<{account.get('sender', 'scans@office.example')}>", f"FROM:<{second}>"]
    assert f"From: {second}\r\n".encode() in hop.messages[0].content


def test_a_denied_report_gives_up_its_null_reverse_path() -> None:
    with MisbehavingHop({"DOT": ["554 5.2.252 SendAsDenied", "250 ok"]}) as hop:
        report = deliver_once(config(smart_host(hop, sender=ISP)), A, reverse_path="", kind=Kind.DSN)
    assert (fates(report), mails(hop)) == (["relayed"], ["FROM:<>", f"FROM:<{ISP}>"])


@pytest.mark.parametrize("sender", ["", ISP, "scans@office.example"])
def test_send_as_denied_for_good_is_account_trouble(sender: str) -> None:
    with MisbehavingHop({"DOT": "554 5.2.252 SendAsDenied"}) as hop:
        report = deliver_once(config(smart_host(hop, sender=sender)), A)
    assert fates(report) == ["account transient 554"]
    assert hop.verbs().count("MAIL") == (2 if sender else 1)


@pytest.mark.parametrize(("null_sender", "path"), [(True, "<>"), (False, "<u1234@isp.example>")])
def test_the_null_reverse_path_where_it_is_refused(null_sender: bool, path: str) -> None:
    with MisbehavingHop() as hop:
        host = smart_host(hop, sender=ISP, null_sender=null_sender)
        assert fates(deliver_once(config(host), A, reverse_path="")) == ["relayed"]
    assert hop.messages[0].mail.startswith(f"FROM:{path}")


# ── a new configuration ──────────────────────────────────────────────────────────────────────────


def test_a_changed_host_starts_anew_and_an_unchanged_one_keeps_its_sessions() -> None:
    async def use(office: Office) -> None:
        assert fates(await office.deliver(via=("isp",))) == ["relayed"]
        assert fates(await office.deliver(via=("mended",))) == ["next_hop transient 421"]
        mended = smart_host(second, "mended")
        new = config(smart_host(first), mended, routes=(Route(("mended",)),))
        await office.delivery.reconfigure(new)
        assert office.delivery.hop_state("mended").condition is OPEN
        assert office.changes == [PAUSED, OPEN]
        assert fates(await office.deliver(via=("mended",))) == ["relayed"]
        assert fates(await office.deliver(via=("isp",))) == ["relayed"]
        assert len(first.connections) == 1
        await office.delivery.reconfigure(config(mended))
        await until(lambda: first.connections[0].ended == "quit")
        assert fates(await office.deliver(via=("isp",))) == ["message transient 451"]

    with MisbehavingHop() as first, MisbehavingHop() as second:
        with_office(config(smart_host(first), smart_host(free_port(), "mended")), use)


def test_a_reload_does_not_disturb_what_is_under_way() -> None:
    async def use(office: Office) -> None:
        task = asyncio.create_task(office.deliver())
        await until(lambda: hop.verbs()[-1:] == ["DATA"])
        await office.delivery.reconfigure(config(smart_host(hop, sender="changed@isp.example")))
        assert fates(await task) == ["relayed"]
        await until(lambda: hop.connections[0].ended == "quit")

    with MisbehavingHop({"DOT": [Act(b"250 ok\r\n", takes=True)]}) as hop:
        with_office(config(smart_host(hop)), use)
