"""The watchdog's turns, and what the rooms answer it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pi_relay.watchdog import Watchdog


class Watched:
    def __init__(self) -> None:
        self.signs = 0
        self.reason = ""
        self.told: list[str] = []
        self.turned = asyncio.Event()

    def watchdog(self, *more: Callable[[], str], seconds: float = 0.02) -> Watchdog:
        return Watchdog(
            seconds,
            (self.check, *more),
            give_sign=self.give_sign,
            withheld=self.told.append,
            checked=self.turned.set,
        )

    def check(self) -> str:
        return self.reason

    def give_sign(self) -> None:
        self.signs += 1

    async def turns(self, count: int) -> int:
        """The signs that were given in so many turns."""
        before = self.signs
        for _ in range(count):
            self.turned.clear()
            await asyncio.wait_for(self.turned.wait(), 10)
        return self.signs - before


def test_signs_go_out_while_all_is_well() -> None:
    async def run() -> None:
        watched = Watched()
        watchdog = watched.watchdog()
        watchdog.start()
        assert watched.signs == 1, "at once"
        assert await watched.turns(3) == 3
        watchdog.stop()
        assert watched.told == []

    asyncio.run(run())


def test_a_reason_that_lasts_ends_them_and_is_told_once() -> None:
    async def run() -> None:
        watched = Watched()
        watchdog = watched.watchdog()
        watchdog.start()
        watched.reason = "stuck"
        assert await watched.turns(1) == 1, "once may be chance"
        assert await watched.turns(3) == 0
        assert watched.told == ["stuck"]
        watched.reason = ""
        assert await watched.turns(2) == 2
        assert watched.told == ["stuck", ""]
        watchdog.stop()

    asyncio.run(run())


def test_two_reasons_in_turn_are_no_lasting_one() -> None:
    async def run() -> None:
        watched, other = Watched(), [""]
        watchdog = watched.watchdog(lambda: other[0])
        watchdog.start()
        watched.reason = "one"
        await watched.turns(1)
        watched.reason, other[0] = "", "other"
        assert await watched.turns(1) == 1
        watchdog.stop()
        assert watched.told == []

    asyncio.run(run())


def test_nobody_asks_for_signs() -> None:
    async def run() -> None:
        watched = Watched()
        watchdog = watched.watchdog(seconds=0)
        watchdog.start()
        await asyncio.sleep(0.05)
        watchdog.stop()
        assert watched.signs == 0
        assert not watched.turned.is_set()

    asyncio.run(run())
