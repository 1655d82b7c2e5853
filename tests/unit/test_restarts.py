"""What is known of the run before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pi_relay import restarts
from pi_relay.restarts import (
    KILLED,
    LAST_RESTART_FILE,
    MACHINE_WENT_DOWN,
    RESULT_FILE,
    RUNNING_FILE,
    Restarts,
)


def reason_after(directory: Path, *, trouble: str = "", result: str = "", end: bool = False) -> str:
    """A run that ended so, and then the next start."""
    run = Restarts(directory)
    run.begin()
    if trouble:
        run.note(trouble)
    if end:
        run.end()
    if result:
        (directory / RESULT_FILE).write_text(result + "\n")
    restart = Restarts(directory).begin()
    return restart.reason if restart else ""


def test_the_first_start_and_a_stop_in_good_order(tmp_path: Path) -> None:
    assert Restarts(tmp_path).begin() is None
    Restarts(tmp_path).end()
    assert reason_after(tmp_path, end=True) == ""
    assert not (tmp_path / LAST_RESTART_FILE).exists()


@pytest.mark.parametrize(
    ("trouble", "result", "reason"),
    [
        ("", "", KILLED),
        ("", "watchdog dumped ABRT", "it gave the watchdog no sign of life"),
        ("mail stuck", "watchdog dumped ABRT", "it gave the watchdog no sign of life (mail stuck)"),
        ("", "oom-kill killed KILL", "it was killed: out of memory"),
        ("", "signal killed KILL", "it was killed by signal KILL"),
        ("", "core-dump dumped SEGV", "it crashed by signal SEGV"),
        ("", "exit-code exited 1", "it ended with exit status 1"),
        ("", "timeout killed KILL", "it took too long to start or to stop, and was killed"),
        ("", "resources", "systemd says: resources"),
        ("", "core-dump", "it crashed by signal ?"),
    ],
)
def test_how_it_ended(tmp_path: Path, trouble: str, result: str, reason: str) -> None:
    assert reason_after(tmp_path, trouble=trouble, result=result) == reason


def test_a_start_that_came_to_nothing(tmp_path: Path) -> None:
    """It never owned the queue, so there is no note of it, but systemd's word."""
    assert reason_after(tmp_path, end=True, result="exit-code exited 3") == "it ended with exit status 3"


def test_another_boot_means_that_the_machine_went_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Restarts(tmp_path).begin()
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("another\n")
    monkeypatch.setattr(restarts, "_BOOT_ID", boot_id)
    restart = Restarts(tmp_path).begin()
    assert restart is not None
    assert restart.reason == MACHINE_WENT_DOWN


def test_the_last_one_is_kept_over_restarts_in_good_order(tmp_path: Path) -> None:
    reason_after(tmp_path)
    for _ in range(2):
        run = Restarts(tmp_path)
        run.end()
        run.begin()
        assert run.last is not None
        assert run.last.reason == KILLED


def test_trouble_that_passed_is_forgotten(tmp_path: Path) -> None:
    run = Restarts(tmp_path)
    run.begin()
    run.note("stuck")
    run.note("")
    restart = Restarts(tmp_path).begin()
    assert restart is not None
    assert restart.reason == KILLED


@pytest.mark.parametrize("content", ["", "{", "[]", '{"at": "noon"}', '{"at": 1, "reason": 2}', "\0" * 9])
def test_spoilt_notes_stop_nobody(tmp_path: Path, content: str) -> None:
    for name in (RUNNING_FILE, LAST_RESTART_FILE, RESULT_FILE):
        (tmp_path / name).write_text(content)
    run = Restarts(tmp_path)
    run.begin()
    assert json.loads((tmp_path / RUNNING_FILE).read_text())["boot_id"]


def test_a_folder_that_takes_nothing(tmp_path: Path) -> None:
    run = Restarts(tmp_path / "missing")
    run.begin()
    run.note("stuck")
    run.end()
