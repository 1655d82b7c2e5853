"""The pace of a next hop: limits are waited out or passed by, and throttling slows it down for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from pi_relay.delivery import Delivery, pacing
from pi_relay.delivery.pacing import Limit, Pacing
from pi_relay.model import HopCondition, Reply, Scope
from pi_relay.quotas import Quotas, Window
from tests.delivery.office import Office, config, failure, fates, hop_names, smart_host, with_office
from tests.support.misbehaving_hop import DROP, MisbehavingHop

OPEN, PAUSED, PACED = HopCondition.OPEN, HopCondition.PAUSED, HopCondition.PACED
MINUTE, HOUR = 0.6, 3.0  # as these tests have them


@pytest.fixture(autouse=True)
def short_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute of 0.6 s, an hour of 3 s, a day of 6 s."""
    short = {"minute": MINUTE, "hour": HOUR, "day": 6.0}
    limits = tuple((key, short[key.split("_")[2]], count) for key, _, count in pacing._LIMITS)
    monkeypatch.setattr(pacing, "_LIMITS", limits)
    monkeypatch.setattr(pacing, "MINUTE", MINUTE)


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Clocked(MisbehavingHop):
    """Notes when each message was taken."""

    def __init__(self, script: Any = None, **more: Any) -> None:
        self.taken_at: list[float] = []
        super().__init__({"DOT": self._take, **(script or {})}, **more)

    def _take(self, _: str) -> str:
        self.taken_at.append(time.monotonic())
        return "250 2.0.0 taken"

    def most_within(self, seconds: float) -> int:
        return max(sum(1 for other in self.taken_at if at <= other < at + seconds) for at in self.taken_at)


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


def test_the_pace_of_a_minute_is_waited_out_and_never_run_into() -> None:
    async def use(office: Office) -> None:
        reports = await asyncio.gather(*(office.deliver() for _ in range(7)))
        assert [fates(report) for report in reports] == [["relayed"]] * 7
        assert office.delivery.hops()[0].state == "ok"

    with Clocked() as hop, MisbehavingHop() as other:
        with_office(config(smart_host(hop, messages_per_minute_max=3), smart_host(other, "other")), use)
    assert hop.most_within(MINUTE) == 3 and len(hop.taken_at) == 7
    assert not other.messages, "a minute is soon over: mail waits for it"


def test_while_it_is_paced_the_queue_is_told_to_wait_and_not_to_go_elsewhere() -> None:
    async def use(office: Office) -> None:
        assert office.delivery.capacity("isp") == 2
        await asyncio.gather(office.deliver(), office.deliver())
        state = office.delivery.hop_state("isp")
        assert state.condition is PACED and office.changes[-1] is PACED
        assert 0 < state.until_monotonic - time.monotonic() <= MINUTE * 1.1
        (status,) = office.delivery.hops()
        assert status.pace == "messages_per_minute_max (2) is reached" and status.paced_until
        assert status.state == "ok" and not status.is_slowed
        await until(lambda: office.delivery.hop_state("isp").condition is OPEN)
        assert office.changes[-1] is OPEN, "and when it may go on"

    with MisbehavingHop() as hop:
        with_office(config(smart_host(hop, messages_per_minute_max=2, connections_max=4)), use)


@pytest.mark.parametrize("key", ["messages_per_hour_max", "messages_per_day_max"])
def test_where_a_quota_is_spent_the_next_way_is_taken(key: str, capfd: pytest.CaptureFixture[str]) -> None:
    async def use(office: Office) -> None:
        names = [hop_names(await office.deliver())[0] for _ in range(4)]
        assert names == ["isp", "isp", "other", "other"]
        state = office.delivery.hop_state("isp")
        assert state.condition is PAUSED and state.scope is Scope.ACCOUNT
        await asyncio.sleep(0)  # lines of the log are gathered
        status = office.delivery.hops()[0]
        assert status.is_slowed and status.state == "ok" and status.pace == f"{key} (2) is reached"

    with MisbehavingHop() as hop, MisbehavingHop() as other:
        with_office(config(smart_host(hop, **{key: 2}), smart_host(other, "other")), use)
    assert f'paused next_hop=isp reason="{key} (2) is reached" until=' in capfd.readouterr().err


def test_where_there_is_no_other_way_a_spent_quota_is_our_own_trouble_and_passes() -> None:
    async def use(office: Office) -> None:
        assert fates(await office.deliver()) == ["relayed"]
        report = await office.deliver()
        assert fates(report) == ["account transient 451"]
        assert "messages_per_hour_max (1) is reached" in failure(report).reply.text
        office.delivery.resume()
        assert office.delivery.hop_state("isp").condition is PAUSED, "`queue retry` spends no quota"
        await until(lambda: office.delivery.hop_state("isp").condition is OPEN)
        assert fates(await office.deliver()) == ["relayed"]

    with MisbehavingHop() as hop:
        with_office(config(smart_host(hop, messages_per_hour_max=1)), use)
        assert len(hop.messages) == 2


def test_recipients_are_counted_as_they_were_taken_and_a_message_may_go_in_parts() -> None:
    async def use(office: Office) -> None:
        report = await office.deliver("no@far.example", "a@far.example", "b@far.example")
        assert [fate.split()[0] for fate in fates(report)] == ["recipient", "relayed", "relayed"]
        report = await office.deliver(*(f"{n}@far.example" for n in range(5)))
        assert fates(report) == ["relayed"] * 3 + ["account transient 451"] * 2
        assert office.delivery.hop_state("isp").condition is PAUSED

    script = {"RCPT": lambda argument: "550 5.1.1 unknown" if "no@" in argument else "250 ok"}
    with MisbehavingHop(script) as hop:
        with_office(config(smart_host(hop, recipients_per_day_max=5)), use)
        assert [len(message.rcpts) for message in hop.messages] == [2, 3]


def test_the_rest_of_a_message_follows_what_became_of_its_first_part() -> None:
    async def use(office: Office) -> None:
        report = await office.deliver(*(f"{n}@far.example" for n in range(3)))
        assert hop_names(report) == ["other"] * 3

    with MisbehavingHop({"MAIL": "530 5.7.0 sign in"}) as hop, MisbehavingHop() as other:
        with_office(config(smart_host(hop, recipients_per_day_max=2), smart_host(other, "other")), use)
        assert hop.verbs().count("MAIL") == 1, "one refusal is enough"
        assert len(other.messages) == 1


def test_what_was_refused_is_not_counted_and_what_is_in_doubt_is() -> None:
    async def use(office: Office) -> None:
        for expected in ("message permanent 554", "recipient permanent 550", "next_hop transient 421"):
            assert fates(await office.deliver()) == [expected]
        assert office.delivery.hops()[0].pace == "messages_per_hour_max (1) is reached"

    script = {"MAIL": ["554 5.7.1 no", "250 ok"], "RCPT": ["550 5.1.1 unknown", "250 ok"], "DOT": DROP}
    with MisbehavingHop(script) as hop:
        with_office(config(smart_host(hop, messages_per_hour_max=1)), use)


def test_the_count_goes_on_over_a_reload_and_in_the_next_process() -> None:
    quotas = Quotas()

    async def use(office: Office) -> None:
        office.delivery = Delivery(office.config, on_hop_changed=office._changed, quotas=quotas)
        assert fates(await office.deliver()) == ["relayed"]
        await office.delivery.reconfigure(config(smart_host(hop, messages_per_hour_max=2, username="new")))
        assert office.delivery.capacity("isp") == 1
        assert fates(await office.deliver()) == ["relayed"]
        again = Delivery(office.config, on_hop_changed=office._changed, quotas=quotas)
        assert again.hop_state("isp").condition is PAUSED
        await again.close()

    with MisbehavingHop() as hop:
        with_office(config(smart_host(hop, messages_per_hour_max=2)), use)


# ── throttling ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "script",
    [
        {"MAIL": ["432 4.3.2 too many connections", "250 ok"]},
        {"MAIL": ["450 4.7.1 slow down", "250 ok"]},
        {"MAIL": ["451 4.7.500 server busy", "250 ok"]},
        {"MAIL": ["421 4.7.0 too fast", "250 ok"]},
        {"DOT": ["432 4.3.2 thread limit exceeded", "250 ok"]},
        {"DATA": ["421 4.7.28 rate limit", "354 go"]},
    ],
)
def test_throttling_slows_the_hop_down_and_does_not_stop_it(
    script: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    async def use(office: Office) -> None:
        fate = fates(await office.deliver())[0]
        assert fate.split()[1] == "transient"
        assert office.delivery.hop_state("isp").condition is PACED
        assert office.delivery.capacity("isp") == 2
        (status,) = office.delivery.hops()
        assert status.is_slowed and "it asked for less: 4" in status.pace
        await until(lambda: office.delivery.hop_state("isp").condition is OPEN)
        assert PAUSED not in office.changes
        for _ in range(3):
            assert fates(await office.deliver()) == ["relayed"]
        assert office.delivery.hop_state("isp").condition is OPEN

    with MisbehavingHop(script) as hop:
        with_office(config(smart_host(hop), delays=(0.4,)), use)
    assert 'paused next_hop=isp reason="throttled: 4' in capfd.readouterr().err


@pytest.mark.parametrize(
    "script", [{"RCPT": "450 4.2.0 greylisted"}, {"DOT": "451 4.3.0 later"}, {"MAIL": "452 4.3.1 full"}]
)
def test_what_is_about_the_mail_is_no_throttling(script: Any) -> None:
    async def use(office: Office) -> None:
        await office.deliver()
        assert office.delivery.hop_state("isp").condition is OPEN
        assert office.delivery.capacity("isp") == 4

    with MisbehavingHop(script) as hop:
        with_office(config(smart_host(hop)), use)


def test_a_hop_that_keeps_refusing_is_paused() -> None:
    async def use(office: Office) -> None:
        await office.deliver()
        assert office.delivery.hop_state("isp").condition is PACED
        await until(lambda: office.delivery.hop_state("isp").condition is OPEN)
        await office.deliver()
        state = office.delivery.hop_state("isp")
        assert state.condition is PAUSED and state.scope is Scope.NEXT_HOP
        office.delivery.resume()
        assert office.delivery.capacity("isp") == 4, "`queue retry` begins afresh"

    with MisbehavingHop({"MAIL": "450 4.7.1 slow down"}) as hop:
        with_office(config(smart_host(hop), delays=(0.8,)), use)


def test_connections_are_fewer_after_throttling_and_come_back() -> None:
    """As Microsoft: more than so many connections at once are told 432."""

    def mail(_: str) -> str:
        with hop._lock:
            return "432 4.3.2 too many connections" if hop.open_now > 3 else "250 ok"

    async def use(office: Office) -> None:
        relayed = throttled = 0
        pending: set[asyncio.Task[Any]] = set()
        while relayed < 60:
            while len(pending) < office.delivery.capacity("isp"):
                pending.add(asyncio.create_task(office.deliver()))
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if fates(task.result()) == ["relayed"]:
                    relayed += 1
                else:
                    throttled += 1
        await asyncio.gather(*pending)
        assert 1 <= throttled < 20
        assert PAUSED not in office.changes

    with MisbehavingHop({"MAIL": mail}) as hop:
        with_office(config(smart_host(hop, connections_max=6), delays=(0.2,)), use)


def test_several_throttling_replies_of_one_moment_are_one() -> None:
    async def run() -> None:
        changes: list[HopCondition] = []
        pace = Pacing("isp", (), 8, 8.0, lambda: changes.append(pace.state.condition))
        busy = Reply(450, "4.7.1", "slow down")
        assert all(pace.throttled(busy) for _ in range(5))
        assert pace.connections == 4 and changes == [PACED]
        pace.close()

    asyncio.run(run())


def test_throttling_is_forgotten_though_nothing_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "THROTTLING_FORGOTTEN_SECONDS", 0.2)

    async def run() -> None:
        pace = Pacing("isp", (), 4, 0.05, lambda: None)
        pace.throttled(Reply(450, "", "slow down"))
        await until(lambda: pace.state.condition is OPEN)
        assert pace.is_slowed and pace.connections == 2
        await until(lambda: not pace.is_slowed)
        assert pace.connections == 4

    asyncio.run(run())


def test_gaps_grow_and_shrink_again() -> None:
    async def run() -> None:
        now = 100.0
        pace = Pacing("isp", (), 4, 8.0, lambda: None, monotonic=lambda: now)
        gaps = []
        while pace.throttled(Reply(450, "", "slow down")):
            gaps.append(pace.state.until_monotonic - now)
            now += gaps[-1]
        assert gaps == [1, 2, 4, 8] and pace.connections == 1
        turns = 0
        while pace._gap_seconds:
            pace._on_time()
            with await pace.turn(1) as turn:  # type: ignore[union-attr]
                turn.taken = 1
                pace.took()
            now, turns = now + 10, turns + 1
        assert turns == 5
        for _ in range(100):
            pace.took()
        assert pace.connections == 4 and not pace.is_slowed
        pace.close()

    asyncio.run(run())


# ── what is under way ────────────────────────────────────────────────────────────────────────────


def test_what_is_under_way_counts_until_it_is_over() -> None:
    async def run() -> None:
        pace = Pacing("isp", [Limit("messages_per_hour_max", 2, Window(HOUR))], 4, 1.0, lambda: None)
        first, second = await pace.turn(1), await pace.turn(1)
        assert first and second
        assert pace.state.condition is PACED, "neither full nor open"
        third = asyncio.create_task(pace.turn(1))
        await asyncio.sleep(0)
        assert not third.done()
        with first:
            pass  # it was refused
        turn = await third
        assert turn is not None
        fourth = asyncio.create_task(pace.turn(1))
        for each in (second, turn):
            with each:
                each.taken = 1
        assert await fourth is None, "now the quota is spent"
        pace.close()

    asyncio.run(run())


def test_nobody_waits_for_a_hop_that_is_given_up() -> None:
    async def run() -> None:
        pace = Pacing("isp", (), 4, 8.0, lambda: None)
        pace.throttled(Reply(450, "", "slow down"))
        waiting = asyncio.create_task(pace.turn(1))
        await asyncio.sleep(0)
        pace.close()
        assert await waiting is None and await pace.turn(1) is None

    asyncio.run(run())


def test_an_idle_hop_has_no_timer() -> None:
    async def run() -> None:
        limits = [Limit("messages_per_minute_max", 2, Window(MINUTE))]
        pace = Pacing("isp", limits, 4, 1.0, lambda: None)
        with await pace.turn(1) as turn:  # type: ignore[union-attr]
            turn.taken = 1
        assert pace._timer is None
        with await pace.turn(1) as turn:  # type: ignore[union-attr]
            turn.taken = 1
        assert pace._timer is not None
        await until(lambda: pace.state.condition is OPEN)
        assert pace._timer is None

    asyncio.run(run())
