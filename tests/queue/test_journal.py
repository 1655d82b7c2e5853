"""The ring: wrap-around, pushing back, ids done, and what a damaged batch may and may not take with it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pi_relay.queue import journal as journal_module
from pi_relay.queue.disk import Disk
from pi_relay.queue.envelopes import encode
from pi_relay.queue.journal import BLOCK_BYTES, MAGIC, Journal, Record, Replay, replay_journal
from tests.support.stored_messages import content, envelope_for

SIZE_BYTES = 128 * 1024


@dataclass
class Ring:
    """A journal on a real file with its committer running; ``add`` waits until the record is durable."""

    journal: Journal
    replay: Replay
    batches: int = 0
    errors: list[OSError] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)
    settled: set[str] = field(default_factory=set)

    def heard(self, records: list[Record], error: OSError | None) -> None:
        with self.arrived:
            self.batches += 1
            self.settled.update(record.queue_id for record in records)
            if error is not None:
                self.errors.append(error)
            self.arrived.notify_all()

    def start_adding(self, queue_id: str, size_bytes: int = 2000) -> Record:
        header, body = content(size_bytes, queue_id)
        record = Record(queue_id)
        record.encoded = encode(envelope_for(queue_id, header, body))
        record.header, record.body = header, body
        self.settled.discard(queue_id)
        self.journal.append(record)
        return record

    def add(self, queue_id: str, size_bytes: int = 2000) -> Record:
        record = self.start_adding(queue_id, size_bytes)
        assert self.wait_for(queue_id, 5.0)
        assert not self.errors
        return record

    def wait_for(self, queue_id: str, seconds: float) -> bool:
        with self.arrived:
            return self.arrived.wait_for(lambda: queue_id in self.settled, seconds)


@contextmanager
def ring(path: Path, disk: Disk | None = None) -> Iterator[Ring]:
    holder: list[Ring] = []
    journal = Journal(disk or Disk(), path, lambda records, error: holder[0].heard(records, error))
    directory_fd = os.open(path.parent, os.O_RDONLY)
    replay = journal.open(SIZE_BYTES, directory_fd, 1)
    holder.append(Ring(journal, replay))
    journal.start()
    try:
        yield holder[0]
    finally:
        journal.close(5.0)
        os.close(directory_fd)


def found_in(path: Path) -> Replay:
    with path.open("rb") as file:
        return replay_journal(file.fileno())


def live(path: Path) -> list[str]:
    return list(found_in(path).records)


def test_what_was_added_is_found_again_with_its_bytes(tmp_path: Path) -> None:
    with ring(tmp_path / "journal") as the:
        added = [the.add(f"ID{n}", 100 + 3000 * n) for n in range(4)]
        assert [the.journal.read(record) for record in added] == [
            (record.encoded, record.header + record.body) for record in added
        ]
    replay = found_in(tmp_path / "journal")
    assert list(replay.records) == ["ID0", "ID1", "ID2", "ID3"]
    assert not replay.damaged
    with (tmp_path / "journal").open("rb") as file:
        for record in added:
            found = replay.records[record.queue_id]
            encoded, message = journal_module.read_record(file.fileno(), found)
            assert (encoded, message) == (record.encoded, record.header + record.body)


def test_it_is_reused_for_ever_and_never_over_a_live_message(tmp_path: Path) -> None:
    with ring(tmp_path / "journal") as the:
        kept: Record | None = None
        for n in range(200):
            record = the.add(f"ID{n}", 5000)
            if n % 10 == 0:
                if kept is not None:
                    assert the.journal.read(kept)[0] == kept.encoded
                    the.journal.forget(kept)
                kept = record
            else:
                the.journal.forget(record)
        assert kept is not None
        laps = 200 * 8192 / SIZE_BYTES
        assert laps > 10
        assert the.journal.read(kept)[0] == kept.encoded
    assert (tmp_path / "journal").stat().st_size == SIZE_BYTES
    assert live(tmp_path / "journal") == [kept.queue_id]


def test_a_full_one_waits_until_the_oldest_has_left(tmp_path: Path) -> None:
    with ring(tmp_path / "journal") as the:
        added: list[Record] = []
        while True:
            added.append(the.start_adding(f"ID{len(added)}", 7000))
            if not the.wait_for(added[-1].queue_id, 0.5):
                break
        stuck = added[-1]
        assert the.journal.crowded
        for record in added[1:5]:  # not the oldest: frees nothing
            the.journal.forget(record)
        the.journal.flush()
        assert not the.wait_for(stuck.queue_id, 0.3)
        the.journal.forget(added[0])
        the.journal.flush()
        assert the.wait_for(stuck.queue_id, 3.0)
        assert not the.errors
    assert live(tmp_path / "journal") == [record.queue_id for record in added[5:]]


def test_a_record_that_finds_no_room_in_time_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "ROOM_WAIT_SECONDS", 0.3)
    with ring(tmp_path / "journal") as the:
        count = 0
        while not the.errors:
            the.start_adding(f"ID{count}", 7000)
            assert the.wait_for(f"ID{count}", 5.0)
            count += 1
        assert the.errors[0].errno == errno.ENOSPC
    assert live(tmp_path / "journal") == [f"ID{n}" for n in range(count - 1)]


def test_an_add_after_a_done_lives(tmp_path: Path) -> None:
    with ring(tmp_path / "journal") as the:
        the.add("OLDEST")  # holds ``low`` down, so that ids done are written at all
        the.journal.forget(the.add("SAME", 1000))
        again = the.add("SAME", 3000)
    replay = found_in(tmp_path / "journal")
    assert list(replay.records) == ["OLDEST", "SAME"]
    assert replay.records["SAME"].message_size_bytes == again.message_size_bytes


def test_ids_done_are_written_when_nothing_else_is(tmp_path: Path) -> None:
    with ring(tmp_path / "journal") as the:
        the.add("STAYS")
        the.journal.forget(the.add("GOES"))
        assert live(tmp_path / "journal") == ["STAYS", "GOES"]
        assert the.journal.unwritten
        the.journal.flush()
        the.add("LATER")  # behind the flush
        assert live(tmp_path / "journal") == ["STAYS", "LATER"]
        assert not the.journal.unwritten


def test_numbers_never_come_back(tmp_path: Path) -> None:
    seen: list[int] = []
    for _ in range(3):
        with ring(tmp_path / "journal") as the:
            for _ in range(3):
                number = the.journal.next_number()
                assert number is not None
                seen.append(number)
    assert seen == list(range(1, 10)), "a clean end wastes none"
    (tmp_path / "crashed").write_bytes((tmp_path / "journal").read_bytes())
    with ring(tmp_path / "journal") as the:
        given_out = [the.journal.next_number() for _ in range(50)]
        (tmp_path / "crashed").write_bytes((tmp_path / "journal").read_bytes())
    with ring(tmp_path / "crashed") as the:
        number = the.journal.next_number()
        assert number is not None
        assert number > max(n for n in given_out if n is not None)


def test_numbers_go_on_without_end_and_without_a_message(tmp_path: Path) -> None:
    with ring(tmp_path / "journal") as the:
        last = 0
        waits = 0
        while last < 3 * journal_module.ID_RESERVE:
            number = the.journal.next_number()
            if number is None:
                waits += 1
                assert waits < 1000
                threading.Event().wait(0.005)
                continue
            assert number == last + 1
            last = number


def test_content_cannot_pose_as_a_batch() -> None:
    assert not journal_module.acceptable(b"a" + MAGIC)
    assert journal_module.acceptable(b"Subject: x\r\n\r\n\xff\r\n")


class FailingDisk(Disk):
    """Syncs fail once told to, then say again that all is well, as kernels do."""

    def __init__(self) -> None:
        super().__init__()
        self.fails_once = False
        self.writes = 0

    def pwrite(self, fd: int, data: bytes, offset_bytes: int) -> None:
        self.writes += 1
        super().pwrite(fd, data, offset_bytes)

    def fdatasync(self, fd: int) -> None:
        if self.fails_once:
            self.fails_once = False
            raise journal_module.SyncError(errno.EIO, "Input/output error")
        super().fdatasync(fd)


def test_after_a_failed_sync_nothing_is_believed_any_more(tmp_path: Path) -> None:
    disk = FailingDisk()
    with ring(tmp_path / "journal", disk) as the:
        the.add("BEFORE")
        disk.fails_once = True
        the.start_adding("DURING")
        assert the.wait_for("DURING", 5.0)
        writes = disk.writes
        the.start_adding("AFTER")
        assert the.wait_for("AFTER", 5.0)
        assert [error.errno for error in the.errors] == [errno.EIO, errno.EIO]
        the.journal.flush()
    assert disk.writes == writes, "nothing is written after the error, at the end neither"


# -- damage


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def three_batches(path: Path) -> list[Record]:
    """A, B, C in a batch each, and an empty one that ends it."""
    with ring(path) as the:
        return [the.add(name, 6000) for name in "ABC"]


def test_a_damaged_record_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    records = three_batches(path)
    damage(path, records[1].offset_bytes + 700, b"XXXX")
    replay = found_in(path)
    assert list(replay.records) == ["A", "C"]
    [damaged] = replay.damaged
    assert damaged.name == f"journal-{records[1].sequence}"
    assert records[1].body[1000:] in damaged.data


def test_a_damaged_head_takes_only_its_own_batch(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    records = three_batches(path)
    start = records[1].offset_bytes // BLOCK_BYTES * BLOCK_BYTES
    damage(path, start, bytes(64))
    replay = found_in(path)
    assert list(replay.records) == ["A", "C"]
    [damaged] = replay.damaged
    assert records[1].body in damaged.data
    with ring(path) as the:
        assert list(the.replay.records) == ["A", "C"]
        the.add("D")
        assert [record.queue_id for record in found_in(path).records.values()] == ["A", "C", "D"]


def test_the_oldest_head_damaged(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    records = three_batches(path)
    damage(path, records[0].offset_bytes // BLOCK_BYTES * BLOCK_BYTES + 20, b"\xff")
    replay = found_in(path)
    assert list(replay.records) == ["B", "C"]
    assert records[0].body in b"".join(damaged.data for damaged in replay.damaged)


def test_an_unfinished_last_batch_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with ring(path) as the:
        the.add("A")
        last = the.add("B", 20_000)
        end = last.offset_bytes + last.message_size_bytes
        copy = bytearray(path.read_bytes())
    torn = end // BLOCK_BYTES * BLOCK_BYTES
    copy[torn : torn + BLOCK_BYTES] = bytes(BLOCK_BYTES)
    path.write_bytes(copy)
    replay = found_in(path)
    assert list(replay.records) == ["A"]
    assert not replay.damaged


def test_a_damaged_last_batch_is_kept_for_the_admin(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with ring(path) as the:
        the.add("A")
        last = the.add("B", 20_000)
        copy = path.read_bytes()
    path.write_bytes(copy)
    damage(path, last.offset_bytes + 9000, b"\x00")
    replay = found_in(path)
    assert list(replay.records) == ["A"]
    assert last.body[9000:] in replay.damaged[0].data


@pytest.fixture(scope="module")
def full_lap(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """A journal in its third lap, one live message a batch: its bytes, and where each batch lies."""
    path = tmp_path_factory.mktemp("lap") / "journal"
    with ring(path) as the:
        records: list[Record] = []
        for n in range(60):
            records.append(the.add(f"ID{n:03}", 1500 + n * 970 % 5000))
            if len(records) > 11:
                the.journal.forget(records.pop(0))
        data = path.read_bytes()
    places = {}
    for batch in found_in_bytes(path, data).batches:
        for record in records:
            if record.sequence == batch.sequence:
                places[record.queue_id] = (batch.offset_bytes, batch.offset_bytes + batch.length_bytes)
    assert len(places) == 11
    return data, places


def found_in_bytes(path: Path, data: bytes | bytearray) -> Replay:
    path.write_bytes(data)
    return found_in(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, SIZE_BYTES - 1), st.integers(1, 255)), max_size=6),
    cut=st.none() | st.integers(0, SIZE_BYTES),
)
def test_no_damage_raises_or_touches_other_messages(
    tmp_path: Path,
    full_lap: tuple[bytes, dict[str, tuple[int, int]]],
    flips: list[tuple[int, int]],
    cut: int | None,
) -> None:
    data, places = bytearray(full_lap[0]), full_lap[1]
    for offset, mask in flips:
        data[offset] ^= mask
    end = len(data) if cut is None else cut
    replay = found_in_bytes(tmp_path / "journal", data[:end])
    touched = [offset for offset, _ in flips] + ([] if cut is None else [cut])
    for queue_id, (start, stop) in places.items():
        untouched = stop <= end and not any(start <= offset < stop for offset in touched)
        if untouched and any(batch.offset_bytes == start for batch in replay.batches):
            assert queue_id in replay.records
    with (tmp_path / "journal").open("rb") as file:
        for record in replay.records.values():
            journal_module.read_record(file.fileno(), record)
    if cut is None:
        lost = [name for name, (start, stop) in places.items() if name not in replay.records]
        last = max(places)
        for queue_id in lost:
            if queue_id != last:
                assert replay.damaged, "lost without a word"


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=3 * BLOCK_BYTES), at=st.integers(0, 3))
def test_any_bytes_with_a_magic_in_front_are_survived(tmp_path: Path, data: bytes, at: int) -> None:
    image = bytearray(4 * BLOCK_BYTES)
    image[at * BLOCK_BYTES :] = (MAGIC + data)[: len(image) - at * BLOCK_BYTES]
    replay = found_in_bytes(tmp_path / "journal", image)
    assert not replay.records
