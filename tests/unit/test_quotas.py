"""Rolling counts: within a run, over a restart, over a reboot, and with clocks that lie."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_relay.quotas import DAY, FILE_NAME, HOUR, MINUTE, Quotas, Window


class Machine:
    """A box with its clocks; ``boot`` lets it begin anew, with a monotonic clock of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.wall = 1_700_000_000.0
        self.clock_is_wrong = False
        self.notes = 0
        self.boot("first", 100.0)

    def boot(self, name: str, monotonic: float = 5.0) -> None:
        self._boot, self.monotonic = name, monotonic

    def pass_time(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds

    def _note(self) -> None:
        self.notes += 1

    def quotas(self) -> Quotas:
        return Quotas(
            self.directory,
            clock_is_wrong=lambda: self.clock_is_wrong,
            note_time=self._note,
            monotonic=lambda: self.monotonic,
            wall=lambda: self.wall,
            uptime=lambda: (self._boot, self.monotonic),
        )

    def count(self, amount: int) -> None:
        """A process that counts so many, and stops."""

        async def run() -> None:
            quotas = self.quotas()
            for span in (MINUTE, HOUR, DAY):
                quotas.window("x", span).count(self.monotonic, amount)
            await quotas.close()

        asyncio.run(run())

    def totals(self) -> list[int]:
        """What a new process finds in the last minute, hour and day."""
        quotas = self.quotas()
        return [quotas.window("x", span).total(self.monotonic) for span in (MINUTE, HOUR, DAY)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# ── a window ─────────────────────────────────────────────────────────────────────────────────────


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5)), max_size=60),
    st.integers(1, 40),
)
def test_a_window_never_forgets_too_early_and_soon_enough(steps: list[tuple[float, int]], limit: int) -> None:
    window, now, counted = Window(MINUTE), 17.3, []
    for wait, amount in steps:
        now += wait
        window.count(now, amount)
        counted.append((now, amount))
        total = window.total(now)
        assert total >= sum(each for at, each in counted if at > now - MINUTE)
        assert total <= sum(each for at, each in counted if at > now - MINUTE - MINUTE / 60 - 1e-6)
    free_at = window.below_at(now, limit)
    assert window.total(free_at) < limit
    if free_at > now:
        earlier = Window(MINUTE)
        for at, amount in counted:
            earlier.count(at, amount)
        assert earlier.total(free_at - 0.001) >= limit


def test_what_is_taken_back_was_never_there() -> None:
    window = Window(HOUR)
    window.count(10.0, 3)
    window.count(80.0, -1)
    assert window.total(80.0) == 2
    assert window.total(3700.0) <= 2 and window.total(4000.0) == 0


# ── over a restart ───────────────────────────────────────────────────────────────────────────────


def test_counts_survive_a_restart_and_grow_old_meanwhile(machine: Machine) -> None:
    machine.count(7)
    assert machine.totals() == [7, 7, 7]
    machine.pass_time(62)
    assert machine.totals() == [0, 7, 7]
    machine.pass_time(HOUR)
    assert machine.totals() == [0, 0, 7]
    machine.pass_time(DAY)
    assert machine.totals() == [0, 0, 0]


@pytest.mark.parametrize("years", [-30, 30])
def test_a_wall_clock_that_jumps_changes_nothing_over_a_restart(machine: Machine, years: int) -> None:
    machine.count(7)
    machine.wall += years * 365 * DAY
    assert machine.totals() == [7, 7, 7]
    machine.pass_time(62)
    assert machine.totals() == [0, 7, 7]


def test_over_a_reboot_the_wall_clock_tells_how_long_it_was(machine: Machine) -> None:
    machine.count(7)
    machine.wall += 2 * HOUR
    machine.boot("second")
    assert machine.totals() == [0, 0, 7]


@pytest.mark.parametrize("years", [-30, 30])
def test_a_wrong_clock_after_a_reboot_lets_the_old_count_stand(machine: Machine, years: int) -> None:
    machine.count(7)
    machine.boot("second")
    machine.wall += years * 365 * DAY
    machine.clock_is_wrong = True
    assert machine.totals() == [7, 7, 7]
    quotas = machine.quotas()
    machine.pass_time(62)  # and it goes on from there, neither frozen nor anew
    asyncio.run(quotas.close())
    machine.boot("third")
    assert machine.totals() == [0, 7, 7]


def test_a_clock_that_was_wrong_when_it_was_written_down_is_not_believed_later(machine: Machine) -> None:
    machine.clock_is_wrong = True
    machine.wall = 1000.0
    machine.count(7)
    machine.boot("second")
    machine.clock_is_wrong, machine.wall = False, 1_700_000_000.0
    assert machine.totals() == [7, 7, 7]


def test_a_clock_that_is_behind_after_a_reboot_does_not_freeze_the_count(machine: Machine) -> None:
    machine.count(7)
    machine.boot("second")
    machine.wall -= 5 * DAY
    quotas = machine.quotas()
    window = quotas.window("x", HOUR)
    assert window.total(machine.monotonic) == 7
    assert window.total(machine.monotonic + HOUR + 61) == 0


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"format_version": 99}', b'{"format_version":1,"windows":7}']
)
def test_a_damaged_file_is_told_and_begun_anew(
    machine: Machine, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    (machine.directory / FILE_NAME).write_bytes(content)
    assert machine.totals() == [0, 0, 0]
    assert "cannot be read" in capfd.readouterr().err
    machine.count(1)
    assert machine.totals() == [1, 1, 1]


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def test_an_idle_box_writes_nothing_and_a_busy_one_once_a_minute(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        wait = loop.call_later

        def at_once(delay: float, *arguments: Any) -> object:
            if delay < 1:
                return wait(delay, *arguments)
            delays.append(delay)
            return loop.call_soon(*arguments)

        monkeypatch.setattr(loop, "call_later", at_once)
        quotas = machine.quotas()
        await quotas.close()
        assert not list(machine.directory.iterdir())
        quotas = machine.quotas()
        window = quotas.window("x", HOUR)
        for _ in range(3):
            for _ in range(100):
                window.count(machine.monotonic)
            for _ in range(200):
                await asyncio.sleep(0.001)
                if not quotas._changed and quotas._writing is None:
                    break
            machine.pass_time(10)
        await quotas.close()

    asyncio.run(run())
    assert delays == pytest.approx([1, 50, 50]), "soon, and then a minute after the last"
    assert machine.notes == 1
    document = json.loads((machine.directory / FILE_NAME).read_bytes())
    assert list(document["windows"]) == ["x 3600"]
    assert (machine.directory / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    quotas = Quotas()
    quotas.window("x", HOUR).count(1.0)  # and needs no loop
    asyncio.run(quotas.close())
