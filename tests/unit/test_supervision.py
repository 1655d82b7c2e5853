"""What is asked and said on behalf of systemd, with rooms that answer as told."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pi_relay import memory, supervision
from pi_relay.restarts import Restarts
from pi_relay.supervision import Supervision


class Systemd:
    """Keeps what it is told."""

    is_there = True

    def __init__(self) -> None:
        self.said: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *words: self.said.append(" ".join((name, *words)))


def supervised(tmp_path: Path, words: Any = lambda: "All is well.") -> tuple[Supervision, Systemd, Any]:
    systemd = Systemd()
    room = SimpleNamespace(stuck=lambda: "", slow_disk=lambda: "", entries={})
    watched = Supervision(systemd, Restarts(tmp_path), words)  # type: ignore[arg-type]
    return watched, systemd, room


def test_a_reload_ends_for_systemd_even_where_no_file_can_be_opened(tmp_path: Path) -> None:
    def words() -> str:
        raise OSError(errno.EMFILE, "too many open files")

    watched, systemd, _ = supervised(tmp_path, words)
    with watched.reloading():
        pass
    assert systemd.said == ["reloading", "ready"]


def test_a_shortage_of_files_is_no_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file() -> int:
        raise OSError(errno.EMFILE, "too many open files")

    watched, _, _ = supervised(tmp_path)
    monkeypatch.setattr(memory, "rss_bytes", no_file)
    assert watched._out_of_memory() == ""


@pytest.mark.parametrize(
    ("used", "waiting", "limit", "is_leak"),
    [
        (100, 0, 0, False),
        (220, 0, 0, True),
        (220, 50_000, 0, False),  # what waits takes room
        (220, 50_000, 200, True),
        (100, 0, 105, True),
        (90, 0, 105, False),
    ],
)
def test_a_leak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: int, waiting: int, limit: int, is_leak: bool
) -> None:
    monkeypatch.setattr(memory, "rss_bytes", lambda: used * 1_000_000)
    monkeypatch.setattr(memory, "limit_bytes", lambda: limit * 1_000_000)
    watched, _, room = supervised(tmp_path)
    room.entries = range(waiting)
    watched._store = room
    assert bool(watched._out_of_memory()) is is_leak


def test_changes_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "STATUS_DELAY_SECONDS", 0.01)
    asked: list[str] = []

    def words() -> str:
        asked.append("asked")
        return "Well."

    async def run() -> None:
        watched, systemd, room = supervised(tmp_path, words)
        watched.changed()
        watched.watch(room, room, room, room)
        for _ in range(100):
            watched.changed()
        await asyncio.sleep(0.1)
        watched.stopping()
        assert systemd.said == ["status Well.", "stopping", "status Stopping."]
        assert len(asked) == 1

    asyncio.run(run())


def test_a_reason_stays_in_sight_and_is_noted_for_the_next_start(tmp_path: Path) -> None:
    watched, systemd, _ = supervised(tmp_path)
    watched._withheld("mail does not move")
    watched._tell()
    watched._withheld("")
    assert systemd.said == [
        "status Stuck, to be restarted: mail does not move.",
        "status Stuck, to be restarted: mail does not move.",
        "status All is well.",
    ]
    watched._withheld("mail does not move")
    restart = Restarts(tmp_path).begin()
    assert restart is not None
    assert restart.reason.endswith("(mail does not move)")
