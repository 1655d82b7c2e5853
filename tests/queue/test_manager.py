"""The manager, with the real store: due, attempt, settle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pi_relay.config import Config, Route
from pi_relay.lifecycle import ReportKind, report_id
from pi_relay.model import (
    DeliveryReport,
    Envelope,
    Kind,
    QueueRefusal,
    Recipient,
    RecipientStatus,
    Reply,
    Scope,
    StoredMessage,
    WayOut,
)
from pi_relay.queue.manager import ATTEMPTS_MAX, DIRECT_SHARE, LINES_KEPT_MAX
from tests.support.clock import ManualClock
from tests.support.next_hops import BAD_PASSWORD, DOWN, GREYLISTED, TAKEN, UNKNOWN, NextHops, Outcome
from tests.support.queue_bench import QueueBench, office, opened

DAY = 86_400.0
TWO_WAYS = (Route(via=("office",), recipients=("*@office.example",)), Route(via=("isp",)))


def run(
    scenario: Callable[[QueueBench], Awaitable[None]],
    config: Config,
    next_hops: NextHops | None = None,
) -> None:
    async def main() -> None:
        async with opened(config, next_hops=next_hops) as bench:
            await scenario(bench)

    asyncio.run(main())


# ── the everyday ─────────────────────────────────────────────────────────────────────────────────


def test_a_message_for_an_open_hop_is_relayed_and_gone(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        queue_id = await bench.submit("a@far.example", "b@far.example")
        assert bench.next_hops.tried == [(queue_id, "isp", (0, 1))]
        assert not bench.store.entries
        assert bench.manager.totals() == {"relayed": 1, "deferred": 0, "failed": 0}
        assert bench.clock.armed() == [], "an idle box has no timers"
        assert bench.manager.state_of(queue_id) == ""

    run(scenario, office(tmp_path))


def test_attempts_in_flight_are_bounded_for_each_hop(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        bench.next_hops.block("isp")
        ids = [await bench.submit() for _ in range(10)]
        assert len(bench.next_hops.tried) == 3
        states = [bench.manager.state_of(queue_id) for queue_id in ids]
        assert states == ["attempting"] * 3 + ["queued"] * 7
        bench.next_hops.unblock("isp")
        await bench.quiet()
        assert not bench.store.entries
        assert bench.next_hops.most_at_once["isp"] == 3

    run(scenario, office(tmp_path), NextHops(capacity=3))


def test_attempts_in_flight_are_bounded_in_all(tmp_path: Path) -> None:
    routes = tuple(Route(via=(f"h{n}",), recipients=(f"*@h{n}.example",)) for n in range(6))

    async def scenario(bench: QueueBench) -> None:
        bench.manager._attempts_max = 5
        for number in range(6):
            bench.next_hops.block(f"h{number}")
        for number in range(12):
            await bench.submit(f"x@h{number % 6}.example")
        assert len(bench.next_hops.tried) == 5
        for number in range(6):
            bench.next_hops.unblock(f"h{number}")
        await bench.quiet()
        assert not bench.store.entries, "those of other hops get their turn too"

    run(scenario, office(tmp_path, routes=routes))


def test_devices_take_turns_and_reports_go_first(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        bench.next_hops.pause("isp")
        camera = [await bench.submit(device="camera") for _ in range(5)]
        copier = [await bench.submit(device="copier") for _ in range(2)]
        dsn = Envelope(f"{camera[0]}-f1-0", "", (Recipient("x@far.example"),), 0.0, kind=Kind.DSN)
        await bench.store.put(replace(dsn, header_size_bytes=4, message_size_bytes=6), b"A:\r\n", b"\r\n")
        await bench.quiet()
        bench.next_hops.open("isp")
        await bench.quiet()
        order = [queue_id for queue_id, _, _ in bench.next_hops.tried]
        expected = [dsn.queue_id, camera[0], copier[0], camera[1], copier[1], *camera[2:]]
        assert order == expected

    run(scenario, office(tmp_path), NextHops(capacity=1))


def test_a_burst_of_one_device_does_not_delay_a_scan_of_another(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        bench.next_hops.block("isp")
        for _ in range(500):
            await bench.submit(device="camera", settle=False)
        scan = await bench.submit(device="copier")
        report = Envelope(f"{scan}-f1-0", "", (Recipient("x@far.example"),), 0.0, kind=Kind.DSN)
        await bench.store.put(replace(report, header_size_bytes=4, message_size_bytes=6), b"A:\r\n", b"\r\n")
        await bench.quiet()
        bench.next_hops.unblock("isp")
        await bench.until(lambda: not bench.store.entries)
        order = [queue_id for queue_id, _, _ in bench.next_hops.tried]
        assert len(order) == 502 and order.index(report.queue_id) == 1
        assert order.index(scan) <= 3

    run(scenario, office(tmp_path), NextHops(capacity=1))


def test_a_message_that_comes_held_leaves_the_journal_and_waits(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        queue_id = await bench.submit(held="runaway")
        assert not bench.next_hops.tried and bench.manager.state_of(queue_id) == "held"
        await bench.until(lambda: (tmp_path / queue_id).exists())
        assert await bench.manager.retry() == []
        assert await bench.manager.release([queue_id]) == [queue_id]
        await bench.until(lambda: not bench.store.entries)
        assert bench.next_hops.relayed == [(queue_id, 0)]

    run(scenario, office(tmp_path))


# ── the schedule ─────────────────────────────────────────────────────────────────────────────────


def test_a_greylisted_message_is_tried_at_its_slots_and_then_given_up(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        bench.next_hops.says["isp"] = lambda envelope, _: GREYLISTED if envelope.kind is Kind.MAIL else TAKEN
        began = bench.clock.seconds
        moments: list[float] = []
        queue_id = await bench.submit()
        moments.append(bench.clock.seconds - began)
        while queue_id in bench.store.entries:
            assert bench.manager.state_of(queue_id) == "deferred"
            (at,) = bench.clock.armed()
            assert bench.store.entries[queue_id].next_attempt_at == pytest.approx(
                bench.clock.wall() + at - bench.clock.seconds
            )
            await bench.advance(at - bench.clock.seconds)
            moments.append(bench.clock.seconds - began)
        assert moments == pytest.approx([0, 60, 360, 1260, 2160, 3060], abs=0.1)
        assert bench.next_hops.tries_of(queue_id) == 6
        (dsn,) = bench.taken(Kind.DSN)
        assert dsn.queue_id == report_id(queue_id, ReportKind.FAILED, 6, 0)
        assert dsn.recipients[0].forward_path == "ann@office.example"
        body = bench.next_hops.messages[-1][2]
        assert b"Status: 4.4.7" in body and b"450 greylisted" in body  # type: ignore[operator]
        assert bench.manager.totals() == {"relayed": 0, "deferred": 5, "failed": 1}

    run(scenario, office(tmp_path))


def test_a_clock_that_jumps_by_years_neither_expires_nor_strands(tmp_path: Path) -> None:
    for years in (-30, 30):
        directory = tmp_path / str(years)
        directory.mkdir()

        async def scenario(bench: QueueBench, jump: float = years * 365 * DAY) -> None:
            bench.next_hops.says["isp"] = GREYLISTED
            queue_id = await bench.submit()
            bench.clock.wall_seconds += jump
            await bench.advance(59)
            assert bench.next_hops.tries_of(queue_id) == 1
            await bench.advance(2)
            assert bench.next_hops.tries_of(queue_id) == 2
            assert bench.store.entries[queue_id].slots_used == 2

        run(scenario, office(directory))


@pytest.mark.parametrize("years", [-30, 0, 30])
def test_after_a_start_all_is_due_and_the_schedule_goes_on_whatever_the_clock(
    tmp_path: Path, years: int
) -> None:
    config = office(tmp_path)

    async def main() -> None:
        clock = ManualClock()
        async with opened(config, clock=clock) as bench:
            bench.next_hops.says["isp"] = GREYLISTED
            ids = [await bench.submit() for _ in range(3)]
        clock.wall_seconds += years * 365 * DAY
        next_hops = NextHops(capacity=1)
        next_hops.says["isp"] = GREYLISTED
        async with opened(config, clock=clock, next_hops=next_hops) as bench:
            assert [tried for tried, _, _ in next_hops.tried] == ids, "oldest first"
            entry = bench.store.entries[ids[0]]
            assert (entry.attempts, entry.slots_used) == (2, 1), "the attempt at start is not counted"
            await bench.advance(62)
            assert next_hops.tries_of(ids[0]) == 2, "the next slot is no further than its delay"
            assert (entry.attempts, entry.slots_used) == (3, 2)

    asyncio.run(main())


def test_retry_is_now_and_beside_the_schedule(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        bench.next_hops.says["isp"] = GREYLISTED
        first, second = await bench.submit(), await bench.submit()
        await bench.advance(10)
        assert await bench.manager.retry([first, "NOSUCH"]) == [first]
        await bench.quiet()
        assert (bench.next_hops.tries_of(first), bench.next_hops.tries_of(second)) == (2, 1)
        entry = bench.store.entries[first]
        assert (entry.attempts, entry.slots_used) == (2, 1)
        assert bench.next_hops.resumed == [{"isp"}]
        await bench.advance(51)
        assert bench.next_hops.tries_of(first) == 3, "its slot is where it was"
        assert set(await bench.manager.retry()) == {first, second}
        assert bench.next_hops.resumed[-1] is None

    run(scenario, office(tmp_path))


# ── pauses ───────────────────────────────────────────────────────────────────────────────────────


def test_trouble_parks_its_messages_one_probes_and_then_all_go(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pauses_on_trouble, hops.says["isp"] = True, DOWN
        ids = [await bench.submit() for _ in range(6)]
        assert len(hops.tried) == 1, "the others found it paused"
        assert {bench.manager.state_of(queue_id) for queue_id in ids} == {"deferred"}
        hops.probe("isp")
        await bench.quiet()
        assert len(hops.tried) == 2, "one probe only"
        hops.probe("isp")
        await bench.quiet()
        assert [tried for tried, _, _ in hops.tried] == [ids[0], ids[0], ids[1]], "each has its turn"
        hops.says["isp"] = TAKEN
        hops.probe("isp")
        await bench.quiet()
        assert not bench.store.entries

    run(scenario, office(tmp_path))


def test_slots_pass_over_while_parked(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pauses_on_trouble, hops.says["isp"] = True, DOWN
        queue_id = await bench.submit()
        await bench.advance(400)  # the slots at 60 and 360
        hops.probe("isp")
        await bench.quiet()
        entry = bench.store.entries[queue_id]
        assert (entry.attempts, entry.slots_used) == (2, 3), "passed over, each once; the probe is none"
        hops.says["isp"] = GREYLISTED
        await bench.advance(100)
        hops.open("isp")
        await bench.quiet()
        assert (entry.attempts, entry.slots_used) == (3, 3), "an early try is none either"
        await bench.advance(750)
        assert (entry.attempts, entry.slots_used) == (3, 3)
        await bench.advance(20)
        assert (entry.attempts, entry.slots_used) == (4, 4)

    run(scenario, office(tmp_path))


def test_a_parked_message_expires_at_the_end_of_the_schedule(tmp_path: Path) -> None:
    config = office(tmp_path, routes=(Route(via=("office",), recipients=("ann@*",)), Route(via=("isp",))))

    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pauses_on_trouble, hops.says["isp"] = True, DOWN
        queue_id = await bench.submit()
        await bench.advance(3050)
        assert queue_id in bench.store.entries and bench.clock.wake_ups == 0
        await bench.advance(20)
        assert queue_id not in bench.store.entries
        assert hops.tries_of(queue_id) == 1
        (dsn,) = bench.taken(Kind.DSN)
        assert dsn.queue_id == f"{queue_id}-f1-0"

    run(scenario, config)


def test_a_message_that_was_never_tried_is_reported_with_what_its_next_hop_said(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        bench.next_hops.pauses_on_trouble, bench.next_hops.says["isp"] = True, DOWN
        await bench.submit()
        await bench.quiet()
        queue_id = await bench.submit()
        await bench.advance(3100)
        assert bench.next_hops.tries_of(queue_id) == 0 and queue_id not in bench.store.entries
        (body,) = (body for envelope, _, body in bench.next_hops.messages if queue_id in envelope.queue_id)
        assert f"the next hop is in trouble: {DOWN.reply}".encode() in b" ".join(bytes(body).split())

    config = office(tmp_path, routes=(Route(via=("office",), recipients=("ann@*",)), Route(via=("isp",))))
    run(scenario, config)


def test_account_trouble_never_expires_a_message(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pauses_on_trouble, hops.says["isp"] = True, BAD_PASSWORD
        queue_id = await bench.submit()
        for _ in range(30):
            await bench.advance(DAY)
            hops.probe("isp")
            await bench.quiet()
        entry = bench.store.entries[queue_id]
        assert entry.slots_used == 0 and entry.attempts == 31
        assert bench.clock.wake_ups == 0
        assert not bench.of_kind(Kind.DSN)
        hops.says["isp"] = GREYLISTED
        hops.open("isp")
        await bench.quiet()
        assert queue_id in bench.store.entries, "its schedule only begins now"
        hops.says["isp"] = TAKEN
        await bench.advance(61)
        assert not bench.store.entries

    run(scenario, office(tmp_path))


def test_account_trouble_on_one_host_does_not_stop_the_clock_of_the_other(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pause("office", Scope.ACCOUNT)
        hops.pauses_on_trouble = True
        hops.says["isp"] = DOWN
        own = await bench.submit("x@office.example")
        other = await bench.submit("x@far.example")
        await bench.advance(4000)
        assert own in bench.store.entries and other not in bench.store.entries

    run(scenario, office(tmp_path, routes=TWO_WAYS))


def test_ten_thousand_parked_messages_cost_nothing_and_are_all_due_afterwards(tmp_path: Path) -> None:
    count = 10_000

    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pause("isp")
        batch = [bench.submit(settle=False) for _ in range(count)]
        for start in range(0, count, 200):
            await asyncio.gather(*batch[start : start + 200])
        await bench.until(lambda: len(bench.manager._records) == count)
        made, began = bench.clock.timers_made, time.process_time()
        assert len(bench.clock.armed()) == 1 and made < 10
        await bench.advance(3000)
        assert bench.clock.wake_ups == 0 and bench.clock.timers_made == made
        assert not hops.tried
        hops.says["isp"] = DOWN
        hops.pauses_on_trouble = True
        hops.probe("isp")
        await bench.quiet()
        assert len(hops.tried) == 1
        assert time.process_time() - began < 1.0
        hops.says["isp"] = TAKEN
        hops.probe("isp")
        await bench.until(lambda: not bench.store.entries)
        assert len(bench.taken()) == count
        assert hops.most_at_once["isp"] == 4

    run(scenario, office(tmp_path))


def test_failover_goes_on_while_the_first_is_paused(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pause("office")
        await bench.submit()
        assert [name for _, name, _ in hops.tried] == ["isp"]
        hops.block("office")
        hops.probe("office")
        ids = [await bench.submit(settle=False) for _ in range(3)]
        await bench.quiet()
        names = {queue_id: name for queue_id, name, _ in hops.tried}
        assert [names[queue_id] for queue_id in ids] == ["office", "isp", "isp"], "one probes, others go on"
        hops.unblock("office")

    run(scenario, office(tmp_path, routes=(Route(via=("office", "isp")),)))


def test_mail_waits_for_the_pace_of_its_hop_and_takes_no_other(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pace("office")
        ids = [await bench.submit() for _ in range(3)]
        dsn = Envelope(f"{ids[0]}-f1-0", "", (Recipient("x@far.example"),), 0.0, kind=Kind.DSN)
        await bench.store.put(replace(dsn, header_size_bytes=4, message_size_bytes=6), b"A:\r\n", b"\r\n")
        await bench.advance(10 * DAY)
        assert not hops.tried and bench.clock.wake_ups == 0 and not bench.clock.armed()
        assert {bench.manager.state_of(queue_id) for queue_id in ids} == {"queued"}
        assert {entry.slots_used for entry in bench.store.entries.values()} == {0}
        hops.open("office")
        await bench.quiet()
        assert [name for _, name, _ in hops.tried] == ["office"] * 4
        assert hops.tried[0][0] == dsn.queue_id, "reports first"

    run(scenario, office(tmp_path, routes=(Route(via=("office", "isp")),)))


def test_another_hop_goes_on_while_one_is_paced_after_a_start_too(tmp_path: Path) -> None:
    config = office(tmp_path, routes=TWO_WAYS)

    async def main() -> None:
        async with opened(config) as bench:
            bench.next_hops.pause("isp")
            bench.next_hops.pause("office")
            for domain in ("office", "far"):
                await bench.submit(f"x@{domain}.example")
        hops = NextHops()
        hops.pace("office")
        async with opened(config, next_hops=hops) as bench:
            assert [name for _, name, _ in hops.tried] == ["isp"]
            hops.open("office")
            await bench.quiet()
            assert not bench.store.entries

    asyncio.run(main())


def test_ten_thousand_messages_trickle_through_a_paced_hop_at_little_cost(tmp_path: Path) -> None:
    count, a_minute = 10_000, 30

    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pace("isp")
        batch = [bench.submit(settle=False, device=f"d{n % 7}") for n in range(count)]
        for start in range(0, count, 200):
            await asyncio.gather(*batch[start : start + 200])
        await bench.until(lambda: len(bench.manager._records) == count)
        took: list[str] = []

        def take(envelope: Envelope, _: int) -> Outcome:
            took.append(envelope.device)
            if len(took) % a_minute == 0:
                hops.pace("isp")
            return TAKEN

        hops.says["isp"] = take
        made, began = bench.clock.timers_made, time.process_time()
        for _ in range(20):
            await bench.advance(60)
            hops.open("isp")
            await bench.quiet()
        assert time.process_time() - began < 2.0
        assert 600 <= len(took) < 700 and bench.clock.timers_made == made
        assert max(map(took.count, set(took))) - min(map(took.count, set(took))) <= 1, (
            "all devices have a turn"
        )

    run(scenario, office(tmp_path))


# ── several ways out of one message ──────────────────────────────────────────────────────────────


def test_a_dead_host_delays_only_its_own_group(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pauses_on_trouble, hops.says["isp"] = True, DOWN
        queue_id = await bench.submit("x@office.example", "y@far.example", "z@office.example")
        assert sorted(hops.tried) == [(queue_id, "isp", (1,)), (queue_id, "office", (0, 2))]
        envelope = await bench.store.load_envelope(queue_id)
        assert [each.status.value for each in envelope.recipients] == ["relayed", "pending", "relayed"]
        assert envelope.attempts == 1
        hops.says["isp"] = TAKEN
        hops.open("isp")
        await bench.quiet()
        assert not bench.store.entries
        assert hops.tries_of(queue_id) == 3, "no duplicate for the others"

    run(scenario, office(tmp_path, routes=TWO_WAYS))


def test_a_tarpit_on_one_way_does_not_hold_up_the_retries_of_the_other(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.block("isp")
        hops.says["office"] = GREYLISTED
        queue_id = await bench.submit("x@office.example", "y@far.example")
        assert bench.manager.state_of(queue_id) == "attempting"
        await bench.advance(61)
        assert [name for _, name, _ in hops.tried].count("office") == 2
        hops.says["office"] = TAKEN
        await bench.advance(301)
        assert [name for _, name, _ in hops.tried].count("office") == 3
        assert [name for _, name, _ in hops.tried].count("isp") == 1
        hops.unblock("isp")
        await bench.quiet()
        assert not bench.store.entries and not bench.clock.armed()

    run(scenario, office(tmp_path, routes=TWO_WAYS))


def test_each_group_is_reported_by_itself(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.says["isp"] = lambda envelope, _: UNKNOWN if envelope.kind is Kind.MAIL else TAKEN
        hops.says["office"] = lambda envelope, _: UNKNOWN if envelope.kind is Kind.MAIL else TAKEN
        queue_id = await bench.submit("x@office.example", "y@far.example")
        assert not bench.store.entries
        assert {dsn.queue_id for dsn in bench.taken(Kind.DSN)} == {
            f"{queue_id}-f1-0",
            f"{queue_id}-f1-1",
        }
        assert bench.manager.totals()["failed"] == 2

    run(scenario, office(tmp_path, routes=TWO_WAYS))


def test_slots_of_a_message_with_a_parked_and_an_open_way_count_once(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pause("isp")
        hops.says["office"] = lambda envelope, _: GREYLISTED if envelope.kind is Kind.MAIL else TAKEN
        queue_id = await bench.submit("x@office.example", "y@far.example")
        await bench.advance(61)
        assert bench.store.entries[queue_id].slots_used == 2
        await bench.advance(4000)
        assert queue_id not in bench.store.entries, "both are given up together"
        (dsn,) = bench.taken(Kind.DSN)
        assert dsn.recipients[0].forward_path == "ann@office.example"

    run(scenario, office(tmp_path, routes=TWO_WAYS))


# ── reports ──────────────────────────────────────────────────────────────────────────────────────


def failing_mail(envelope: Envelope, _: int) -> Outcome:
    return UNKNOWN if envelope.kind is Kind.MAIL else TAKEN


def test_the_report_is_durable_before_the_original_forgets(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        calls: list[str] = []
        store = bench.store
        put, settle, remove = store.put, store.settle, store.remove

        async def noted_put(envelope: Envelope, header: bytes, body: bytes) -> None:
            await put(envelope, header, body)
            calls.append(f"put {envelope.queue_id}")

        async def noted_settle(envelope: Envelope, *, durable: bool) -> None:
            failed = any(each.status is RecipientStatus.FAILED for each in envelope.recipients)
            calls.append(f"settle {envelope.queue_id} {failed} {durable}")
            await settle(envelope, durable=durable)

        def noted_remove(queue_id: str) -> None:
            calls.append(f"remove {queue_id}")
            remove(queue_id)

        store.put, store.settle, store.remove = noted_put, noted_settle, noted_remove  # type: ignore[method-assign]
        bench.next_hops.says["isp"] = failing_mail
        first = await bench.submit()
        assert [call for call in calls if "-f1-0" not in call or call.startswith("put")] == [
            f"put {first}-f1-0",
            f"remove {first}",
        ]
        calls.clear()
        bench.next_hops.says["isp"] = lambda _, position: UNKNOWN if position == 0 else GREYLISTED
        second = await bench.submit("a@far.example", "b@far.example")
        assert calls[:2] == [f"put {second}-f1-0", f"settle {second} True True"]

    run(scenario, office(tmp_path))


def test_a_crash_between_report_and_settlement_repeats_the_same_report(tmp_path: Path) -> None:
    config = office(tmp_path)

    async def main() -> None:
        clock = ManualClock()
        hops = NextHops()
        hops.says["isp"] = lambda envelope, _: UNKNOWN if envelope.kind is Kind.MAIL else GREYLISTED
        bench = QueueBench(config, clock, hops)
        await bench.store.open()
        bench.manager.start()
        remove = bench.store.remove
        bench.store.remove = lambda queue_id: None  # type: ignore[method-assign] # the crash: it never gets so far
        queue_id = await bench.submit()
        bench.store.remove = remove  # type: ignore[method-assign]
        assert bench.of_kind(Kind.DSN) == [f"{queue_id}-f1-0"]
        await bench.manager.stop(0)
        await bench.store.close()

        again = NextHops()
        again.says["isp"] = failing_mail
        async with opened(config, clock=clock, next_hops=again) as bench:
            await bench.quiet()
            assert not bench.store.entries
            assert {dsn.queue_id for dsn in bench.taken(Kind.DSN)} == {f"{queue_id}-f1-0"}

    asyncio.run(main())


def test_a_report_that_cannot_be_stored_leaves_the_failure_for_later(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        put = bench.store.put

        async def full(*_: object) -> None:
            raise QueueRefusal(Reply(452, "4.3.1", "full"))

        bench.store.put = full  # type: ignore[assignment,method-assign]
        outcomes: dict[str, Outcome] = {"a@far.example": TAKEN, "b@far.example": UNKNOWN}
        bench.next_hops.says["isp"] = lambda envelope, position: (
            outcomes[envelope.recipients[position].forward_path] if envelope.kind is Kind.MAIL else TAKEN
        )
        queue_id = await bench.submit("a@far.example", "b@far.example")
        envelope = await bench.store.load_envelope(queue_id)
        assert [each.status.value for each in envelope.recipients] == ["relayed", "pending"]
        bench.store.put = put  # type: ignore[method-assign]
        await bench.advance(61)
        assert not bench.store.entries
        assert len(bench.taken(Kind.DSN)) == 1

    run(scenario, office(tmp_path))


def test_a_dsn_that_fails_is_reported_to_the_postmaster_once(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        bench.next_hops.says["isp"] = UNKNOWN
        queue_id = await bench.submit()
        (held,) = bench.store.entries.values()
        assert held.queue_id == f"{queue_id}-f1-0-f1-0" and held.kind is Kind.REPORT
        assert held.held == "undeliverable" and bench.manager.state_of(held.queue_id) == "held"
        assert bench.next_hops.tries_of(held.queue_id) == 1
        await bench.advance(13.9 * DAY)
        assert held.queue_id in bench.store.entries
        await bench.advance(0.2 * DAY)
        assert not bench.store.entries and not bench.clock.armed()

    run(scenario, office(tmp_path))


def test_undeliverable_messages_survive_a_start_whatever_the_clock_and_go_in_the_end(tmp_path: Path) -> None:
    config = office(tmp_path, postmaster="")

    async def main() -> None:
        clock, hops = ManualClock(), NextHops()
        hops.says["isp"] = UNKNOWN
        async with opened(config, clock=clock, next_hops=hops) as bench:
            queue_id = await bench.submit(original_reverse_path="copier")
            assert bench.store.entries[queue_id].held == "undeliverable"
        clock.wall_seconds += 50 * 365 * DAY
        async with opened(config, clock=clock, next_hops=hops) as bench:
            assert queue_id in bench.store.entries
            hops.says["isp"] = TAKEN
            assert await bench.manager.release([queue_id]) == [queue_id]
            await bench.quiet()
            assert not bench.store.entries, "a released one is tried anew"

    asyncio.run(main())


def test_no_more_than_a_hundred_undeliverable_messages_are_kept(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        bench.next_hops.says["isp"] = UNKNOWN
        ids = [await bench.submit(original_reverse_path="copier", settle=False) for _ in range(103)]
        await bench.until(lambda: len(bench.store.entries) == 100)
        await bench.quiet()
        assert set(bench.store.entries) == set(ids[3:]), "the oldest went"

    run(scenario, office(tmp_path, postmaster=""), NextHops(capacity=1))


# ── delay ────────────────────────────────────────────────────────────────────────────────────────


def warning(directory: Path, **changes: object) -> Config:
    config = office(directory, **changes)
    return replace(config, queue=replace(config.queue, delay_warning_after_seconds=600))


def test_one_warning_when_the_time_has_come_and_none_left_at_the_end(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.says["isp"] = GREYLISTED
        queue_id = await bench.submit()
        await bench.advance(595)
        assert not bench.of_kind(Kind.DSN)
        await bench.advance(10)
        (dsn,) = bench.of_kind(Kind.DSN)
        assert dsn == f"{queue_id}-d3-0"
        assert hops.tries_of(queue_id) == 3, "time brought it, not an attempt"
        await bench.advance(1000)
        assert bench.of_kind(Kind.DSN) == [dsn]
        hops.says["isp"] = lambda envelope, _: TAKEN if envelope.kind is Kind.MAIL else GREYLISTED
        await bench.advance(900)
        await bench.quiet()
        assert not bench.store.entries, "the report that had not left is dropped with its message"
        assert not bench.taken(Kind.DSN)

    run(scenario, warning(tmp_path))


def test_no_warning_while_the_hop_that_would_carry_it_is_paused(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pauses_on_trouble, hops.says["isp"] = True, DOWN
        await bench.submit()
        await bench.advance(2000)
        assert not bench.of_kind(Kind.DSN) and bench.clock.wake_ups == 0
        hops.says["isp"] = TAKEN
        hops.open("isp")
        await bench.quiet()
        assert not bench.store.entries and not bench.taken(Kind.DSN)

    run(scenario, warning(tmp_path))


def test_a_parked_message_is_warned_of_where_another_hop_can_carry_it(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pauses_on_trouble, hops.says["isp"] = True, DOWN
        queue_id = await bench.submit("y@far.example")
        await bench.advance(605)
        (dsn,) = bench.taken(Kind.DSN)
        assert dsn.queue_id == f"{queue_id}-d1-0"
        assert bench.store.entries[queue_id].delay_reported
        await bench.advance(1000)
        assert len(bench.taken(Kind.DSN)) == 1
        await bench.advance(2000)
        assert queue_id not in bench.store.entries, "the schedule went on all the while"

    run(scenario, warning(tmp_path, routes=TWO_WAYS))


# ── the administrator ────────────────────────────────────────────────────────────────────────────


def test_hold_and_release(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        bench.next_hops.says["isp"] = GREYLISTED
        queue_id = await bench.submit()
        assert await bench.manager.hold([queue_id, "NOSUCH"]) == [queue_id]
        assert bench.manager.state_of(queue_id) == "held"
        await bench.advance(DAY)
        assert await bench.manager.retry([queue_id]) == []
        assert bench.next_hops.tries_of(queue_id) == 1 and not bench.clock.armed()
        bench.next_hops.says["isp"] = TAKEN
        assert await bench.manager.release([queue_id]) == [queue_id]
        await bench.quiet()
        assert not bench.store.entries

    run(scenario, office(tmp_path))


def test_held_on_acceptance_stays_until_released(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        queue_id = await bench.submit(held="runaway")
        assert not bench.next_hops.tried and bench.manager.state_of(queue_id) == "held"
        await bench.manager.release([queue_id])
        await bench.quiet()
        assert not bench.store.entries

    run(scenario, office(tmp_path))


@pytest.mark.parametrize("outcome", [TAKEN, GREYLISTED])
def test_hold_while_attempting_takes_effect_afterwards(tmp_path: Path, outcome: object) -> None:
    async def scenario(bench: QueueBench) -> None:
        bench.next_hops.says["isp"] = outcome  # type: ignore[assignment]
        bench.next_hops.block("isp")
        queue_id = await bench.submit()
        assert await bench.manager.hold([queue_id]) == [queue_id]
        assert bench.manager.state_of(queue_id) == "attempting"
        bench.next_hops.unblock("isp")
        await bench.quiet()
        assert bench.manager.state_of(queue_id) == ("held" if outcome is GREYLISTED else "")
        if outcome is GREYLISTED:
            entry = bench.store.entries[queue_id]
            assert entry.attempts == 1
            await bench.advance(DAY)
            assert entry.attempts == 1

    run(scenario, office(tmp_path))


@pytest.mark.parametrize("attempting", [False, True])
@pytest.mark.parametrize("bounce", [False, True])
def test_delete(tmp_path: Path, attempting: bool, bounce: bool) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.says["isp"] = lambda envelope, _: GREYLISTED if envelope.kind is Kind.MAIL else TAKEN
        if attempting:
            hops.block("isp")
        queue_id = await bench.submit()
        assert await bench.manager.delete([queue_id], bounce=bounce) == [queue_id]
        if attempting:
            assert queue_id in bench.store.entries
            hops.unblock("isp")
        await bench.quiet()
        assert not bench.store.entries and not bench.clock.armed()
        dsns = bench.taken(Kind.DSN)
        assert [dsn.queue_id for dsn in dsns] == ([f"{queue_id}-f1-0"] if bounce else [])

    run(scenario, office(tmp_path))


# ── reload, stop, defects ────────────────────────────────────────────────────────────────────────


def test_routes_are_looked_up_again_after_a_reload(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pause("isp")
        queue_id = await bench.submit()
        bench.manager.reconfigure(replace(bench.config, routes=(Route(via=("office",)),)))
        await bench.quiet()
        assert hops.tried == [(queue_id, "office", (0,))]
        assert not bench.store.entries

    run(scenario, office(tmp_path))


def test_a_message_that_no_route_takes_any_more_waits(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.pause("isp")
        queue_id = await bench.submit()
        elsewhere = replace(bench.config, routes=(Route(via=("office",), recipients=("*@other.example",)),))
        bench.manager.reconfigure(elsewhere)
        await bench.quiet()
        assert not hops.tried and bench.manager.state_of(queue_id) == "deferred"
        envelope = await bench.store.load_envelope(queue_id)
        assert envelope.recipients[0].last_reply is not None
        assert envelope.recipients[0].last_reply.enhanced_status == "4.4.4"
        await bench.advance(61)
        assert bench.store.entries[queue_id].attempts == 2
        hops.open("isp")
        bench.manager.reconfigure(bench.config)
        await bench.advance(301)
        assert not bench.store.entries

    run(scenario, office(tmp_path))


def test_our_own_defect_defers_the_message_alone(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        def broken(_: Envelope, __: int) -> Reply:
            raise ZeroDivisionError

        bench.next_hops.says["isp"] = broken
        queue_id = await bench.submit()
        entry = bench.store.entries[queue_id]
        assert (entry.attempts, entry.slots_used) == (1, 1)
        bench.next_hops.says["isp"] = TAKEN
        await bench.submit()
        assert list(bench.store.entries) == [queue_id]
        await bench.advance(61)
        assert not bench.store.entries

    run(scenario, office(tmp_path))


def test_stop_lets_what_is_under_way_end_within_the_grace(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(office(tmp_path), next_hops=NextHops(capacity=1)) as bench:
            bench.next_hops.block("isp")
            first, second = await bench.submit(), await bench.submit()
            asyncio.get_running_loop().call_later(0.05, bench.next_hops.unblock, "isp")
            await bench.manager.stop(5)
            assert list(bench.store.entries) == [second], "nothing new is begun"
            assert bench.next_hops.tries_of(first) == 1
        async with opened(office(tmp_path)) as bench:
            assert not bench.store.entries

    asyncio.run(main())


def test_stop_breaks_off_what_takes_longer_and_keeps_it_as_stored(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(office(tmp_path)) as bench:
            bench.next_hops.block("isp")
            queue_id = await bench.submit()
            await bench.manager.stop(0.01)
            assert bench.store.entries[queue_id].attempts == 0
        async with opened(office(tmp_path)) as bench:
            assert [envelope.queue_id for envelope in bench.taken()] == [queue_id]

    asyncio.run(main())


def test_a_thousand_waiting_messages_are_loaded_one_by_one(tmp_path: Path) -> None:
    async def main() -> None:
        clock, hops = ManualClock(), NextHops()
        hops.pause("isp")
        async with opened(office(tmp_path), clock=clock, next_hops=hops) as bench:
            await asyncio.gather(*(bench.submit(settle=False) for _ in range(1000)))
        hops = NextHops(capacity=4)
        hops.pause("isp")
        async with opened(office(tmp_path), clock=clock, next_hops=hops) as bench:
            assert len(bench.store.entries) == 1000 and not hops.tried
            loading, most = 0, 0
            load = bench.store.load

            async def counted(queue_id: str) -> object:
                nonlocal loading, most
                loading += 1
                most = max(most, loading)
                try:
                    return await load(queue_id)
                finally:
                    loading -= 1

            bench.store.load = counted  # type: ignore[assignment,method-assign]
            await bench.manager.retry()
            await bench.until(lambda: not bench.store.entries)
            assert most <= 4 and len(bench.taken()) == 1000

    asyncio.run(main())


# ── fates ────────────────────────────────────────────────────────────────────────────────────────


def test_the_fate_of_a_test_message(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        hops = bench.next_hops
        hops.says["isp"] = GREYLISTED
        hops.block("isp")
        queue_id = await bench.submit()
        waiting = asyncio.ensure_future(bench.manager.wait_for_fate(queue_id, 0, 10))
        final = asyncio.ensure_future(bench.manager.wait_for_fate(queue_id))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        hops.unblock("isp")
        fate = await waiting
        assert fate is not None and (fate.state, fate.attempts, fate.next_hop) == ("deferred", 1, "isp")
        assert fate.reply == GREYLISTED.reply and fate.next_attempt_at is not None
        assert await bench.manager.wait_for_fate(queue_id, 1, 0.01) is not None
        hops.says["isp"] = TAKEN
        await bench.advance(61)
        fate = await final
        assert fate is not None and (fate.state, fate.attempts, fate.reply) == ("relayed", 2, TAKEN)
        assert await bench.manager.wait_for_fate(queue_id) == fate, "it is remembered for a while"
        assert await bench.manager.wait_for_fate("NOSUCH") is None

    run(scenario, office(tmp_path))


def test_a_test_message_by_one_smart_host_passes_the_routes_by(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        incoming = bench.store.begin(8)
        bench.manager.send_by(incoming.queue_id, ("office",))
        await incoming.write(b"A: b\r\n\r\n")
        await incoming.commit(
            Envelope(
                incoming.queue_id,
                "",
                (Recipient("x@far.example"),),
                0.0,
                header_size_bytes=8,
                message_size_bytes=8,
            )
        )
        fate = await bench.manager.wait_for_fate(incoming.queue_id, -1, 10)
        assert fate is not None and (fate.state, fate.next_hop) == ("relayed", "office")

    run(scenario, office(tmp_path))


# ── straight to domains: each is a next hop of its own ───────────────────────────────────────────

DIRECT = (Route(via=("isp",), recipients=("*@far.example",)), Route(via=("direct",)))


def domains(count: int) -> list[str]:
    return [f"direct:d{number}.example" for number in range(count)]


def test_slow_domains_leave_room_for_smart_hosts(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        names = domains(ATTEMPTS_MAX)
        for name in names:
            bench.next_hops.block(name)
        await bench.submit(*(f"a@{name.removeprefix('direct:')}" for name in names))
        assert len(bench.next_hops.tried) == ATTEMPTS_MAX * DIRECT_SHARE
        await bench.submit()
        assert bench.next_hops.tried[-1][1] == "isp" and len(bench.store.entries) == 1
        for name in names:
            bench.next_hops.unblock(name)
            await asyncio.sleep(0)
        await bench.quiet()
        assert not bench.store.entries

    run(scenario, office(tmp_path, routes=DIRECT))


def test_domains_that_are_probed_together_leave_room_too(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        names = domains(ATTEMPTS_MAX)
        for name in names:
            bench.next_hops.pause(name)
        await bench.submit(*(f"a@{name.removeprefix('direct:')}" for name in names))
        assert not bench.next_hops.tried
        for name in names:
            bench.next_hops.block(name)
            bench.next_hops.probe(name)
        await bench.until(lambda: bench.next_hops.blocked >= ATTEMPTS_MAX * DIRECT_SHARE)
        assert len(bench.next_hops.tried) == ATTEMPTS_MAX * DIRECT_SHARE

    run(scenario, office(tmp_path, routes=DIRECT))


def test_lines_of_domains_are_forgotten(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        for name in domains(3 * LINES_KEPT_MAX):
            await bench.submit(f"a@{name.removeprefix('direct:')}")
        assert not bench.store.entries
        assert len(bench.manager._lines) <= LINES_KEPT_MAX + 1

    run(scenario, office(tmp_path, routes=DIRECT))


def test_lines_of_domains_whose_mail_was_given_up_are_forgotten(tmp_path: Path) -> None:
    async def scenario(bench: QueueBench) -> None:
        names = domains(3 * LINES_KEPT_MAX)
        for name in names:
            bench.next_hops.pause(name)
            await bench.submit(f"a@{name.removeprefix('direct:')}")
        await bench.manager.delete(list(bench.store.entries))
        for name in names:
            bench.next_hops.probe(name)
        await bench.quiet()
        assert len(bench.manager._lines) <= LINES_KEPT_MAX + 1

    run(scenario, office(tmp_path, routes=DIRECT))


def test_a_line_that_began_anew_meanwhile_is_kept(tmp_path: Path) -> None:
    """Two attempts at a domain: the first to end takes the empty line away; mail comes, in a pause; the other
    one's end must leave it alone."""

    async def scenario(bench: QueueBench) -> None:
        for name in domains(LINES_KEPT_MAX + 8):  # so many that empty lines are not kept
            bench.next_hops.pause(name)
            await bench.submit(f"a@{name.removeprefix('direct:')}")
        slow, via = "direct:slow.example", ("direct:slow.example",)
        first_ends, second_ends = asyncio.Event(), asyncio.Event()
        gates = [first_ends, second_ends]
        deliver = bench.next_hops.deliver

        async def gated(envelope: Envelope, way: WayOut, message: StoredMessage) -> DeliveryReport:
            if gates:
                await gates.pop(0).wait()
            return await deliver(envelope, way, message)

        bench.manager._deliver = gated
        for to in ("a@slow.example", "b@slow.example"):
            await bench.submit(to, settle=False)
        await bench.until(lambda: not gates)
        first_ends.set()
        await bench.until(lambda: via not in bench.manager._lines)
        bench.next_hops.pause(slow)
        waiting = await bench.submit("c@slow.example", settle=False)
        second_ends.set()
        await bench.quiet()
        bench.next_hops.open(slow)
        await bench.quiet()
        assert bench.next_hops.tries_of(waiting) == 1

    run(scenario, office(tmp_path, routes=DIRECT))
