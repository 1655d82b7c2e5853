"""What a logged disk (``SdCard(log=True)``) looks like after the power has gone, at any moment of its life.

A disk keeps what it was told to flush. Of what it was sent since, it may have kept anything: nothing, all,
some (later writes without earlier ones), and of a single write some sectors only. Each cut draws one of these
by chance (seeded), and hands out the disk mounted, as ext4 has then repaired it.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.sdcard import FLUSH, RECORD, WRITE

SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Record:
    """One request in the log; ``position`` is the log's length once it was noted."""

    kind: bytes
    offset: int
    data: memoryview
    position: int


def read_log(log: Path) -> list[Record]:
    content = memoryview(log.read_bytes())
    records = []
    at = 0
    while at < len(content):
        kind, offset, length = RECORD.unpack_from(content, at)
        at += RECORD.size + length
        records.append(Record(kind, offset, content[at - length : at], at))
    return records


def spread(
    records: Sequence[Record], cuts: int, chance: random.Random, *, after: int, until: int
) -> list[int]:
    """Moments in that part of the log: so many records evenly spread, with a little chance, and its end."""
    positions = [record.position for record in records if after < record.position < until]
    step = max(1.0, len(positions) / cuts)
    picked = {int((i + chance.random()) * step) for i in range(cuts)}
    return [positions[i] for i in sorted(picked) if i < len(positions)] + [until]


def disks_after(
    base: Path, records: Sequence[Record], cuts: Sequence[int], scratch: Path, chance: random.Random
) -> Iterator[tuple[int, Path]]:
    """For each cut (log positions, ascending): the position, and where the disk is mounted meanwhile."""
    flushed = scratch / "flushed.img"  # what is certain; grows with the cuts
    subprocess.run(["cp", "--sparse=always", str(base), str(flushed)], check=True)
    uncertain: list[Record] = []
    remaining = iter(records)
    record = next(remaining, None)
    for cut in cuts:
        with flushed.open("r+b") as image:
            while record is not None and record.position <= cut:
                if record.kind == WRITE:
                    uncertain.append(record)
                elif record.kind == FLUSH:
                    for write in uncertain:
                        _apply(image.fileno(), write.offset, write.data)
                    uncertain.clear()
                record = next(remaining, None)
        # A file of its own for each cut: a loop device that is slow to go would be used again for the same
        # file, with the pages of the cut before.
        cut_image = scratch / f"cut-{cut}.img"
        _lay_out(cut_image, flushed, uncertain, chance)
        with _mounted(cut_image, scratch / "after") as mount_point:
            yield cut, mount_point
        cut_image.unlink()


def _lay_out(image_path: Path, flushed: Path, uncertain: Sequence[Record], chance: random.Random) -> None:
    """What was flushed, and of what was sent since: nothing, all, or a part, one write of it torn."""
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(flushed), str(image_path)], check=True)
    kept_share = chance.choice((0.0, 0.5, 0.9, 1.0))
    kept = [write for write in uncertain if chance.random() < kept_share]
    torn = chance.choice(kept) if kept and kept_share < 1 else None
    with image_path.open("r+b") as image:
        for write in kept:
            if write is torn:
                _tear(image.fileno(), write, chance)
            else:
                _apply(image.fileno(), write.offset, write.data)


def _tear(descriptor: int, write: Record, chance: random.Random) -> None:
    for start in range(0, len(write.data), SECTOR_BYTES):
        if chance.random() < 0.5:
            _apply(descriptor, write.offset + start, write.data[start : start + SECTOR_BYTES])


def _apply(descriptor: int, offset: int, data: memoryview) -> None:
    os.pwrite(descriptor, data, offset)


@contextmanager
def _mounted(image: Path, mount_point: Path) -> Iterator[Path]:
    mount_point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", "-o", "loop", str(image), str(mount_point)], check=True)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)
