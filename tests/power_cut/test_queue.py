"""Power cuts under the queue alone: whatever was promised is there on every disk that a cut can leave behind.

Clients commit small and large messages while others of them are settled and removed, on a journal so small
that it goes round many times and messages are moved to files. Then the disk is rebuilt at many moments.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pi_relay.model import Envelope, FileSpan, Recipient, StoredMessage
from pi_relay.queue.disk import Disk
from pi_relay.queue.store import Store
from tests.support import sdcard
from tests.support.power_cut import disks_after, read_log, spread
from tests.support.sdcard import SdCard

pytestmark = pytest.mark.skipif(bool(sdcard.why_not()), reason=sdcard.why_not())

CLIENTS = 20
JOURNAL_BYTES = 2 << 20
HEADER = b"Subject: page %d\r\n\r\n"


@dataclass(slots=True)
class Promise:
    """What the queue has said of one message, and how long the disk's log was when it had said it."""

    number: int
    size_bytes: int
    accepted: int
    held: int | None = None  # a durable change of its state
    removed: int | None = None  # noted before it was asked for

    def content(self) -> bytes:
        return HEADER % self.number + b"%08d\r\n" % self.number * (self.size_bytes // 10)

    def stands(self, cut: int) -> bool:
        return self.accepted <= cut and (self.removed is None or cut < self.removed)


class NoFileSync(Disk):
    def fdatasync(self, fd: int) -> None:
        """Forgotten."""


class NoFolderSync(Disk):
    def sync_directory(self, directory_fd: int) -> None:
        """Forgotten."""


def _store(directory: Path, disk: Disk | None = None) -> Store:
    return Store(
        directory,
        size_max_bytes=1 << 30,
        free_space_min_bytes=0,
        journal_size_bytes=JOURNAL_BYTES,
        disk=disk,
    )


async def _load(card: SdCard, seconds: float, chance: random.Random, disk: Disk | None) -> dict[str, Promise]:
    """Keep the clients busy for so long; returns the promises by queue id."""
    store = _store(card.path / "queue", disk)
    await store.open()
    promises: dict[str, Promise] = {}
    loop = asyncio.get_running_loop()
    end_at = loop.time() + seconds

    async def client(first_number: int) -> None:
        number = first_number
        while loop.time() < end_at:
            size_bytes = 400_000 if chance.random() < 0.02 else 2000
            promise = Promise(number, size_bytes, accepted=0)
            envelope = await _commit(store, promise.content())
            promise.accepted = card.log_position()
            promises[envelope.queue_id] = promise
            number += CLIENTS
            await asyncio.sleep(chance.random() * 0.06)
            if chance.random() < 0.6:
                promise.removed = card.log_position()
                store.remove(envelope.queue_id)
            elif chance.random() < 0.3:
                await store.settle(dataclasses.replace(envelope, held="admin"), durable=True)
                promise.held = card.log_position()

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    await store.close()
    return promises


async def _commit(store: Store, content: bytes) -> Envelope:
    incoming = store.begin(len(content))
    for start in range(0, len(content), 65536):
        await incoming.write(content[start : start + 65536])
    envelope = Envelope(
        queue_id=incoming.queue_id,
        reverse_path="printer@office.example",
        recipients=(Recipient("someone@office.example"),),
        accepted_at=0.0,
        header_size_bytes=content.index(b"\r\n\r\n") + 4,
        message_size_bytes=len(content),
    )
    await incoming.commit(envelope)
    return envelope


async def _broken_promises(directory: Path, promises: dict[str, Promise], cut: int) -> list[str]:
    """Open the queue as a start after the cut would; what is missing or wrong, in words."""
    store = _store(directory)
    await store.open()
    try:
        broken = []
        for queue_id, promise in promises.items():
            if not promise.stands(cut):
                continue
            if queue_id not in store.entries:
                broken.append(f"{queue_id}: lost")
                continue
            envelope, message = await store.load(queue_id)
            if _bytes_of(message) != promise.content():
                broken.append(f"{queue_id}: not the bytes that were accepted")
            if promise.held is not None and promise.held <= cut and envelope.held != "admin":
                broken.append(f"{queue_id}: forgot that it is held")
        return broken
    finally:
        await store.close()


def _bytes_of(message: StoredMessage) -> bytes:
    body = message.body
    if isinstance(body, FileSpan):
        with Path(body.path).open("rb") as file:
            file.seek(body.offset_bytes)
            return message.header + file.read(body.length_bytes)
    return message.header + body


def _run(tmp_path: Path, *, seconds: float, cuts: int, seed: int, disk: Disk | None = None) -> Sequence[str]:
    """One load, then that many cuts of it; every promise that a disk did not keep."""
    chance = random.Random(seed)
    with SdCard(tmp_path, size_bytes=192 << 20, log=True) as card:
        start = card.log_position()
        promises = asyncio.run(_load(card, seconds, chance, disk))
        end = card.log_position()
    assert len(promises) > CLIENTS
    records = read_log(card.log)
    moments = spread(records, cuts, chance, after=start, until=end)
    broken: list[str] = []
    for cut, mount_point in disks_after(card.base, records, moments, tmp_path, chance):
        problems = asyncio.run(_broken_promises(mount_point / "queue", promises, cut))
        broken += [f"cut at {cut}: {problem}" for problem in problems]
    return broken


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    assert _run(tmp_path, seconds=5, cuts=20, seed=1) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2, 6))
def test_nothing_acknowledged_is_lost_in_many_cuts(tmp_path: Path, seed: int) -> None:
    assert _run(tmp_path, seconds=12, cuts=60, seed=seed) == []


@pytest.mark.slow
@pytest.mark.parametrize("forgetful", [NoFileSync(), NoFolderSync()], ids=lambda disk: type(disk).__name__)
def test_a_queue_that_forgets_a_sync_is_caught(tmp_path: Path, forgetful: Disk) -> None:
    assert _run(tmp_path, seconds=5, cuts=20, seed=1, disk=forgetful) != []
