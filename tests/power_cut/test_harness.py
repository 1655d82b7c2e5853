"""The power-cut harness itself: it must catch a sequence that forgets a sync, and clear one that does not."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import sdcard
from tests.support.power_cut import disks_after, read_log, spread
from tests.support.sdcard import SdCard

pytestmark = pytest.mark.skipif(bool(sdcard.why_not()), reason=sdcard.why_not())

FILES = 12
CUTS = 24
CONTENT = b"0123456789" * 500


def _write(path: Path, *, sync: bool) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(descriptor, CONTENT)
    if sync:
        os.fdatasync(descriptor)
    os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def right(path: Path) -> None:
    unfinished = path.with_suffix(".tmp")
    _write(unfinished, sync=True)
    unfinished.rename(path)
    _sync_folder(path.parent)


def without_file_sync(path: Path) -> None:
    unfinished = path.with_suffix(".tmp")
    _write(unfinished, sync=False)
    unfinished.rename(path)


def without_folder_sync(path: Path) -> None:
    """The classic one: the content is durable, its name is not."""
    unfinished = path.with_suffix(".tmp")
    _write(unfinished, sync=True)
    unfinished.rename(path)


def _lost(tmp_path: Path, write: Callable[[Path], None]) -> int:
    """Disks, of all that were cut, that miss anything which had been reported as written."""
    written: list[tuple[str, int]] = []
    with SdCard(tmp_path, size_bytes=16 << 20, log=True) as card:
        start = card.log_position()
        for number in range(FILES):
            name = f"message-{number}"
            write(card.path / name)
            written.append((name, card.log_position()))
        end = card.log_position()
    chance = random.Random(1)
    records = read_log(card.log)
    cuts = spread(records, CUTS, chance, after=start, until=end)
    bad = 0
    for cut, disk in disks_after(card.base, records, cuts, tmp_path, chance):
        promised = [disk / name for name, position in written if position <= cut]
        bad += any(not path.exists() or path.read_bytes() != CONTENT for path in promised)
    return bad


def test_a_right_sequence_loses_nothing(tmp_path: Path) -> None:
    assert _lost(tmp_path, right) == 0


@pytest.mark.parametrize("wrong", [without_file_sync, without_folder_sync])
def test_a_missing_sync_is_caught(tmp_path: Path, wrong: Callable[[Path], None]) -> None:
    assert _lost(tmp_path, wrong) > 0
