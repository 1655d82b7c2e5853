"""Small durable state: files replaced as a whole, and a clock that is found out."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pi_relay import state

DAY = 86400.0


def test_a_file_is_replaced_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    before = os.umask(0o777)
    try:
        state.write_durably(path, b"new")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
    state.write_durably(path, b"for all", mode=0o644)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_everything_is_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "file", []
    path.write_text("old")
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append((Path(f"/proc/self/fd/{fd}").readlink(), path.read_bytes()))
    )
    state.write_durably(path, b"new")
    (temporary, content_then), directory = synced
    assert temporary.parent == tmp_path and temporary != path and content_then == b"old"
    assert directory == (tmp_path, b"new")


def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        state.write_durably(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_last_known_time_is_the_later_of_build_and_note(tmp_path: Path) -> None:
    build = state.last_known_time(tmp_path)
    assert build > 1_700_000_000  # nothing noted yet: this program was not built before it was written
    state.note_time(tmp_path, build - DAY)
    assert state.last_known_time(tmp_path) == build
    state.note_time(tmp_path, build + DAY)
    assert abs(state.last_known_time(tmp_path) - (build + DAY)) < 1


@pytest.mark.parametrize("noted", [b"", b"soon", b"nan", b"1e300", b"-5", b"\xff"])
def test_a_damaged_note_is_no_note(tmp_path: Path, noted: bytes) -> None:
    build = state.last_known_time(tmp_path)
    (tmp_path / "last-known-time").write_bytes(noted)
    assert state.last_known_time(tmp_path) == build


@pytest.mark.parametrize(
    ("now", "is_synchronised", "running_seconds", "is_wrong"),
    [
        (1000.0, False, 0.0, False),  # not behind
        (999.0, False, 0.0, True),
        (999.0, True, 0.0, False),  # somebody who knows has set it
        (999.0, False, 599.0, True),
        (999.0, False, 600.0, False),  # a box without Internet works all the same
        (9e9, False, 0.0, False),  # far ahead cannot be told from a long time switched off
    ],
)
def test_a_clock_is_wrong_while_it_is_behind(
    now: float, is_synchronised: bool, running_seconds: float, is_wrong: bool
) -> None:
    said = state.clock_is_wrong(
        now, last_known=1000.0, is_synchronised=is_synchronised, running_seconds=running_seconds
    )
    assert said == is_wrong


def test_the_kernel_is_asked_about_the_clock() -> None:
    assert state.clock_is_synchronised() in (True, False)
