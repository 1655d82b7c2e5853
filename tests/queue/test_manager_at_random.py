"""Whatever happens in whatever order: nobody gets a message twice, and nothing is left lying."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pi_relay.config import Route
from pi_relay.model import Envelope, Kind, Scope
from tests.support.next_hops import BAD_PASSWORD, DOWN, GREYLISTED, TAKEN, UNKNOWN, NextHops, Outcome
from tests.support.queue_bench import QueueBench, office, opened

HOPS = ("office", "isp", "spare")
ROUTES = (
    Route(via=("office",), recipients=("*@office.example",)),
    Route(via=("isp", "spare"), recipients=("*@far.example",)),
    Route(via=("isp",)),
)
ADDRESSES = ("a@office.example", "b@office.example", "c@far.example", "d@far.example", "e@else.example")


def assert_nothing_is_stranded(bench: QueueBench) -> None:
    """Every message that is not held has something that will move it on."""
    manager = bench.manager
    for queue_id, entry in bench.store.entries.items():
        record = manager._records.get(queue_id)
        if entry.held:
            assert record is None
            continue
        assert record is not None, queue_id
        if record.activity is not None:
            continue
        rests = (
            record.park is None
            and record.wake_at is not None
            and any(at <= record.wake_at for at in bench.clock.armed())
        )
        assert rests or record.waits_in, queue_id


class Adversary:
    def __init__(self, bench: QueueBench, seed: int) -> None:
        self.bench = bench
        self.random = random.Random(seed)
        self.blocked: set[str] = set()
        for name in HOPS:
            bench.next_hops.says[name] = self.say

    def say(self, envelope: Envelope, _: int) -> Outcome:
        if envelope.kind is not Kind.MAIL:
            return self.random.choice((TAKEN, TAKEN, GREYLISTED, DOWN))
        return self.random.choice((TAKEN, GREYLISTED, UNKNOWN, DOWN, BAD_PASSWORD))

    async def act(self) -> None:
        bench, chance = self.bench, self.random
        name = chance.choice(HOPS)
        ids = list(bench.store.entries) or ["NOSUCH"]
        match chance.randrange(12):
            case 0 | 1 | 2:
                await bench.submit(*chance.sample(ADDRESSES, chance.randint(1, 4)), settle=False)
            case 3:
                bench.next_hops.pause(name, chance.choice((Scope.NEXT_HOP, Scope.ACCOUNT)))
            case 4:
                bench.next_hops.probe(name)
            case 5:
                bench.next_hops.open(name)
            case 6:
                await self.block_or_not(name)
            case 7:
                await bench.manager.retry(chance.choice((None, [chance.choice(ids)])))
            case 8:
                await bench.manager.hold([chance.choice(ids)])
            case 9:
                await bench.manager.release([chance.choice(ids)])
            case 10:
                bench.manager.reconfigure(
                    replace(bench.config, routes=chance.choice((ROUTES, ROUTES[2:], ROUTES)))
                )
            case 11:
                await bench.advance(chance.choice((1, 61, 301, 1000)))

    async def block_or_not(self, name: str) -> None:
        if name in self.blocked:
            self.blocked.discard(name)
            self.bench.next_hops.unblock(name)
        else:
            self.blocked.add(name)
            self.bench.next_hops.block(name)

    async def relent(self) -> None:
        """Everything works again, and everything is let go."""
        for name in list(self.blocked):
            await self.block_or_not(name)
        self.bench.manager.reconfigure(self.bench.config)
        for name in HOPS:
            self.bench.next_hops.says[name] = TAKEN
            self.bench.next_hops.open(name)
        await self.bench.quiet()
        await self.bench.manager.release(list(self.bench.store.entries))
        await self.bench.quiet()


@pytest.mark.parametrize("seed", range(12))
def test_nothing_twice_and_nothing_left(tmp_path: Path, seed: int) -> None:
    play(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 200))
def test_nothing_twice_and_nothing_left_at_length(tmp_path: Path, seed: int) -> None:
    play(tmp_path, seed)


def play(tmp_path: Path, seed: int) -> None:
    async def main() -> None:
        config = office(tmp_path, routes=ROUTES)
        config = replace(config, queue=replace(config.queue, delay_warning_after_seconds=600))
        next_hops = NextHops(capacity=2)
        next_hops.pauses_on_trouble = True
        async with opened(config, next_hops=next_hops) as bench:
            adversary = Adversary(bench, seed)
            for _ in range(80):
                await adversary.act()
                await bench.quiet()
                assert_nothing_is_stranded(bench)
                assert bench.manager.stuck() == ""
            await adversary.relent()
            await bench.advance(1000)
            assert not bench.store.entries
            assert not bench.manager._records
            assert bench.manager._in_flight_total == 0 and not bench.manager._probing
            deliveries = Counter(next_hops.relayed)
            assert not [each for each, count in deliveries.items() if count > 1]

    asyncio.run(main())
