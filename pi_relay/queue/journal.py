"""The recycled journal: one write and one fdatasync make a whole batch of small messages durable.

Purpose: one file, laid out with zeros once and reused for ever as a ring. A committer thread writes whatever
waits as one batch, at a 4 KiB boundary::

    head [magic, crc, length, sequence, low, id mark, sizes] | ids done since | table | records | padding

Each record is an encoded envelope and its message; the table holds their lengths and CRCs, so that one
damaged record hides no other. ``low`` is the oldest sequence that still holds a live message. Rules:

- Nothing at or after the *durable* ``low`` is overwritten. A full ring pushes back; the store moves old
  messages out, and a reserve is kept so that the batch which frees the ring always fits.
- Ids done are written only where a replay could still meet their record: not below ``low``.
- Replay goes in the order of sequence: a batch's ids done, then its records; so an add after a done lives.
- The magic holds a NUL, and no record does (``acceptable``): content can never pose as a batch.
- ``id mark`` is above every id ever given out, also when the queue is empty.
- After an error of the device nothing is written any more.

It must not know the loop, the files, nor what a message is for.
"""

from __future__ import annotations

import errno
import math
import os
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

from pi_relay.model import Envelope
from pi_relay.queue.disk import Disk, SyncError
from pi_relay.queue.envelopes import decode_entry
from pi_relay.queue.files import Damaged

BLOCK_BYTES = 4096
SIZE_MIN_BYTES = 16 * BLOCK_BYTES
BATCH_MAX_BYTES = 1024 * 1024
ID_RESERVE = 4096  # how far the id mark runs ahead
ROOM_WAIT_SECONDS = 10.0  # how long a record waits for room in a full ring
FULL_ERRNOS = frozenset((errno.ENOSPC, errno.EDQUOT))
MAGIC = b"\x00pi-jrnl"
_HEAD = struct.Struct(">8sIIQQQII")  # magic, crc, length, sequence, low, id mark, done size, record count
_CRC_START = 12  # the CRC covers the head from here on, the ids done and the table
_TABLE = struct.Struct(">IIII")  # envelope size, message size, envelope CRC, message CRC
_SCAN_BYTES = 1024 * 1024
_BLANK = bytes(BLOCK_BYTES)


class Record:
    """A message in the journal, or on its way there.

    ``envelope``, ``header`` and ``body`` are there while the content is in memory; ``encoded`` until written.
    ``waiter`` is the store's own.
    """

    __slots__ = (
        "body",
        "encoded",
        "envelope",
        "envelope_crc",
        "envelope_size_bytes",
        "header",
        "message_crc",
        "message_size_bytes",
        "offset_bytes",
        "queue_id",
        "sequence",
        "waiter",
        "waiting_since",
    )

    def __init__(self, queue_id: str, waiter: object = None) -> None:
        self.queue_id = queue_id
        self.waiter = waiter
        self.envelope: Envelope | None = None
        self.encoded: bytes = b""
        self.header: bytes = b""
        self.body: bytes = b""
        self.envelope_size_bytes = self.message_size_bytes = 0
        self.envelope_crc = self.message_crc = 0
        self.sequence = self.offset_bytes = 0
        self.waiting_since = time.monotonic()


class Batch(NamedTuple):
    """Where a batch lies."""

    sequence: int
    offset_bytes: int
    length_bytes: int


class DamagedBytes(NamedTuple):
    """Bytes of the journal that hold something acknowledged and cannot be read."""

    name: str
    reason: str
    data: bytes


class Replay(NamedTuple):
    """What a journal says. ``records``: the live ones, by queue id, in the order of sequence."""

    records: dict[str, Record]
    damaged: list[DamagedBytes]
    batches: list[Batch]  # from low on
    id_mark: int  # 0: the journal holds nothing


class _Head(NamedTuple):
    batch: Batch
    low: int
    id_mark: int
    done: tuple[str, ...]
    table: tuple[tuple[int, int, int, int], ...]
    records_offset_bytes: int


def acceptable(message: bytes) -> bool:
    """Whether a message may lie in the journal (see the rule of the magic)."""
    return b"\x00" not in message


class Journal:
    """The writing side. ``on_batch(records, error)`` is called in the committer thread, a batch at a time."""

    def __init__(
        self, disk: Disk, path: Path, on_batch: Callable[[list[Record], OSError | None], None]
    ) -> None:
        self._disk = disk
        self._path = path
        self._on_batch = on_batch
        self._fd = -1
        self._size_bytes = 0
        self._queue: SimpleQueue[Record | None] = SimpleQueue()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._broken: OSError | None = None
        self._batches: deque[Batch] = deque()  # from the durable low on
        self._head_bytes = 0
        self._next_sequence = 1
        self._next_number = 1  # of an id
        self._id_mark = 0  # durable
        self._lock = threading.Lock()  # over the two below, which loop and committer share
        self._live: dict[int, int] = {}  # sequence: live messages; in order
        self._done: list[tuple[int, str]] = []  # (sequence of the record, id) not written yet
        self._appended = self._answered = 0  # records; the loop's count and the committer's
        self._moved_at = 0.0  # when the committer last did something, or got something to do

    # -- opening

    def open(self, size_bytes: int, directory_fd: int, number_min: int) -> Replay:
        """Open or lay out the file, replay it, and make the mark for new ids durable. Raises OSError."""
        cut_short = b""
        if not self._path.exists() or self._path.stat().st_size < SIZE_MIN_BYTES:
            cut_short = self._path.read_bytes() if self._path.exists() else b""
            self._lay_out(size_bytes, directory_fd)
        self._fd = self._disk.open(self._path, os.O_RDWR)
        self._size_bytes = os.fstat(self._fd).st_size // BLOCK_BYTES * BLOCK_BYTES
        replay = replay_journal(self._fd)
        if replay.batches:
            last = replay.batches[-1]
            self._batches = deque(replay.batches)
            self._head_bytes = last.offset_bytes + last.length_bytes
            self._next_sequence = last.sequence + 1
        for record in replay.records.values():
            self._live[record.sequence] = self._live.get(record.sequence, 0) + 1
        self._next_number = max(replay.id_mark, number_min)
        self._write([], [])
        if self._broken is not None:
            raise self._broken
        if cut_short:
            replay.damaged.append(DamagedBytes("journal-cut", "the journal is cut short", cut_short))
        return replay

    def _lay_out(self, size_bytes: int, directory_fd: int) -> None:
        part = self._path.with_suffix(".part")
        fd = self._disk.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self._disk.allocate(fd, size_bytes)
            for offset in range(0, size_bytes, _SCAN_BYTES):
                self._disk.pwrite(fd, bytes(min(_SCAN_BYTES, size_bytes - offset)), offset)
            self._disk.fdatasync(fd)
        except OSError:
            self._disk.unlink(part)
            raise
        finally:
            self._disk.close(fd)
        self._disk.rename(part, self._path)
        self._disk.sync_directory(directory_fd)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    # -- from the loop

    def next_number(self) -> int | None:
        """A number for a new id, never given before; None while the mark has yet to be raised."""
        number = self._next_number
        if self._id_mark - number < ID_RESERVE // 2:
            self.flush()
        if number >= self._id_mark:
            return None
        self._next_number = number + 1
        return number

    def append(self, record: Record) -> None:
        """Have a record written; ``on_batch`` tells when it is durable, or why it is not."""
        if self._appended == self._answered:
            self._moved_at = time.monotonic()
        self._appended += 1
        self._queue.put(record)

    def forget(self, record: Record) -> None:
        """The message is gone from here: relayed, deleted, or durable in its file."""
        sequence = record.sequence
        with self._lock:
            left = self._live[sequence] - 1
            if left:
                self._live[sequence] = left
            else:
                del self._live[sequence]
            self._done.append((sequence, record.queue_id))

    def flush(self) -> None:
        """Write what only waits for the next batch: ids done, a higher low, a higher mark."""
        self._queue.put(None)

    @property
    def unwritten(self) -> bool:
        """Whether ``flush`` would write."""
        return bool(self._done) and self._broken is None

    @property
    def crowded(self) -> bool:
        """Over half full: the oldest messages should leave."""
        return self._used_bytes() * 2 > self._size_bytes

    def stuck_seconds(self) -> float:
        """For how long the committer has done nothing about records that wait, although no disk keeps it
        waiting; infinite where it has ended."""
        thread = self._thread
        if thread is None or self._closing:
            return 0.0
        if not thread.is_alive():
            return math.inf
        if self._appended == self._answered or self._disk.is_waiting(thread.ident):
            return 0.0
        return time.monotonic() - self._moved_at

    def read(self, record: Record) -> tuple[bytes, bytes]:
        """A record's encoded envelope and its message. Raises Damaged, or OSError."""
        return read_record(self._fd, record)

    def read_raw(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Bytes as they lie, for the admin."""
        return os.pread(self._fd, size_bytes, offset_bytes)

    def close(self, timeout_seconds: float) -> None:
        """Write what waits, end the thread, close the file."""
        if self._thread is not None:
            self._closing = True
            self._queue.put(None)
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                return  # a hanging disk; the descriptor stays its
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._disk.close(fd)

    # -- the committer

    def _run(self) -> None:
        backlog: deque[Record] = deque()
        stuck = False
        while not (self._closing and not backlog and self._queue.empty()):
            self._gather(backlog, wait=(stuck or not backlog) and not self._closing)
            self._moved_at = time.monotonic()
            if self._broken is not None:
                self._refuse(backlog, len(backlog), self._broken)
                continue
            done = self._next_done()
            records = self._fitting(backlog, done)
            written = (records or self._worth_writing()) and self._write(records, done)
            stuck = bool(backlog) and not written
            if stuck:
                overdue = time.monotonic() - ROOM_WAIT_SECONDS
                count = sum(1 for record in backlog if self._closing or record.waiting_since < overdue)
                self._refuse(backlog, count, OSError(errno.ENOSPC, "the journal is full"))
        if self._worth_writing():
            self._write([], self._next_done())

    def _gather(self, backlog: deque[Record], *, wait: bool) -> None:
        """Take over all that has come; ``wait`` for something first (a second where records are stuck)."""
        try:
            item = self._queue.get(wait, 1.0 if backlog else None)
            while True:
                if item is not None:
                    backlog.append(item)
                item = self._queue.get_nowait()
        except Empty:
            return

    def _next_done(self) -> list[tuple[int, str]]:
        """The ids done that the next batch may carry: half of the reserve at most."""
        with self._lock:
            return self._done[: self._reserve_bytes // 64]

    def _fitting(self, backlog: deque[Record], done: list[tuple[int, str]]) -> list[Record]:
        """Take as many records as a batch and the ring have room for, in their order."""
        records: list[Record] = []
        size_bytes = sum(len(queue_id) + 1 for _, queue_id in done)
        while backlog:
            record = backlog[0]
            size_bytes += len(record.encoded) + len(record.header) + len(record.body) + _TABLE.size
            if records and size_bytes > BATCH_MAX_BYTES:
                break
            if self._place(self._length(size_bytes), self._reserve_bytes) is None:
                break
            records.append(backlog.popleft())
        return records

    def _refuse(self, backlog: deque[Record], count: int, error: OSError) -> None:
        if count:
            self._answer([backlog.popleft() for _ in range(count)], error)

    def _answer(self, records: list[Record], error: OSError | None) -> None:
        self._answered += len(records)
        self._on_batch(records, error)

    @property
    def _reserve_bytes(self) -> int:
        return max(self._size_bytes // 8, BLOCK_BYTES)

    @staticmethod
    def _length(content_bytes: int) -> int:
        return -(-(_HEAD.size + content_bytes) // BLOCK_BYTES) * BLOCK_BYTES

    def _used_bytes(self) -> int:
        if not self._batches:
            return 0
        return (self._head_bytes - self._batches[0].offset_bytes) % self._size_bytes or self._size_bytes

    def _place(self, length_bytes: int, keep_bytes: int) -> int | None:
        """Where the next batch would go, so that the ring keeps so much room behind it; None: nowhere."""
        head, size = self._head_bytes, self._size_bytes
        if not self._batches:
            offset = head if head + length_bytes <= size else 0
            return offset if length_bytes + keep_bytes <= size else None
        tail = self._batches[0].offset_bytes
        if head > tail:
            if head + length_bytes <= size:
                return head if size - head - length_bytes + tail >= keep_bytes else None
            return 0 if length_bytes + keep_bytes <= tail else None
        return head if head + length_bytes + keep_bytes <= tail else None

    def _low(self) -> int:
        with self._lock:
            return next(iter(self._live), self._next_sequence)

    def _frees(self) -> bool:
        return bool(self._batches) and self._low() > self._batches[0].sequence

    def _worth_writing(self) -> bool:
        if self._broken is not None:
            return False
        mark_is_near = self._id_mark - self._next_number < ID_RESERVE // 2
        return bool(self._done) or mark_is_near or (self._closing and self._id_mark != self._next_number)

    def _write(self, records: list[Record], done: list[tuple[int, str]]) -> bool:
        """One batch: one write, one fdatasync. Tells ``on_batch`` if it held records or failed.

        False: there was no room (records have theirs, see ``_fitting``), or the disk refused.
        """
        sequence = self._next_sequence
        low = self._low()
        done_ids = "\n".join(queue_id for at, queue_id in done if at >= low).encode()
        mark = self._next_number + (0 if self._closing else ID_RESERVE)
        data = _encode_batch(sequence, low, mark, done_ids, records)
        keep_bytes = self._reserve_bytes if records else self._reserve_bytes // 2
        offset_bytes = self._place(len(data), 0 if not records and self._frees() else keep_bytes)
        if offset_bytes is None and not records:
            return False  # until the store has moved messages out
        assert offset_bytes is not None, "_fitting has found room"
        with self._lock:
            if records:
                self._live[sequence] = len(records)
        try:
            self._disk.pwrite(self._fd, data, offset_bytes)
            self._disk.fdatasync(self._fd)
        except OSError as error:
            if isinstance(error, SyncError) or error.errno not in FULL_ERRNOS:
                self._broken = error
            with self._lock:
                self._live.pop(sequence, None)
            self._answer(records, error)
            return False
        self._batches.append(Batch(sequence, offset_bytes, len(data)))
        while self._batches[0].sequence < low:
            self._batches.popleft()
        self._head_bytes = offset_bytes + len(data)
        self._next_sequence = sequence + 1
        self._id_mark = mark
        with self._lock:
            del self._done[: len(done)]
        if records:
            for record in records:
                record.sequence = sequence
                record.offset_bytes += offset_bytes
            self._answer(records, None)
        return True


def _encode_batch(sequence: int, low: int, mark: int, done: bytes, records: list[Record]) -> bytes:
    """A batch's bytes; each record learns its sizes, CRCs and its offset within the batch."""
    crc32 = zlib.crc32
    table: list[bytes] = []
    content: list[bytes] = []
    offset = _HEAD.size + len(done) + len(records) * _TABLE.size
    for record in records:
        encoded, header, body = record.encoded, record.header, record.body
        record.envelope_size_bytes = len(encoded)
        record.message_size_bytes = len(header) + len(body)
        record.envelope_crc = crc32(encoded)
        record.message_crc = crc32(body, crc32(header))
        record.offset_bytes = offset
        offset += record.envelope_size_bytes + record.message_size_bytes
        table.append(
            _TABLE.pack(
                record.envelope_size_bytes,
                record.message_size_bytes,
                record.envelope_crc,
                record.message_crc,
            )
        )
        content += (encoded, header, body)
    length = -(-offset // BLOCK_BYTES) * BLOCK_BYTES
    head = _HEAD.pack(MAGIC, 0, length, sequence, low, mark, len(done), len(records))
    crc = crc32(b"".join((head[_CRC_START:], done, *table)))
    head = _HEAD.pack(MAGIC, crc, length, sequence, low, mark, len(done), len(records))
    return b"".join((head, done, *table, *content, bytes(length - offset)))


# -- reading: at start, and without the lock for the command line


def read_record(fd: int, record: Record) -> tuple[bytes, bytes]:
    size_bytes = record.envelope_size_bytes + record.message_size_bytes
    data = os.pread(fd, size_bytes, record.offset_bytes)
    encoded, message = data[: record.envelope_size_bytes], data[record.envelope_size_bytes :]
    if len(data) != size_bytes or zlib.crc32(encoded) != record.envelope_crc:
        raise Damaged("the envelope's checksum does not fit")
    if zlib.crc32(message) != record.message_crc:
        raise Damaged("the message's checksum does not fit")
    return encoded, message


def replay_journal(fd: int) -> Replay:
    """Read a journal. Never raises for what the file holds; OSError for the device."""
    size_bytes = os.fstat(fd).st_size // BLOCK_BYTES * BLOCK_BYTES
    heads, broken = _scan(fd, size_bytes)
    if not heads:
        return Replay({}, [], [], 0)
    last = heads[max(heads)]
    low = min(last.low, last.batch.sequence)
    chain = [heads[sequence] for sequence in sorted(heads) if sequence >= low]
    damaged = _gaps(fd, size_bytes, low, chain)
    records: dict[str, Record] = {}
    for head in chain:
        for queue_id in head.done:
            records.pop(queue_id, None)
        good, bad = _records(fd, head)
        for record in good:
            records.pop(record.queue_id, None)  # so that the order stays that of sequence
            records[record.queue_id] = record
        if bad and not (head is last and _is_torn(fd, head.batch)):
            data = os.pread(fd, head.batch.length_bytes, head.batch.offset_bytes)
            reason = f"{bad} of {len(head.table)} messages of a journal batch are damaged"
            damaged.append(DamagedBytes(f"journal-{head.batch.sequence}", reason, data))
    following = broken.get(last.batch.sequence + 1)
    if following is not None and following == _end(last.batch, size_bytes):
        data = os.pread(fd, BATCH_MAX_BYTES, following)
        reason = "the head of the journal's last batch is damaged"
        damaged.append(DamagedBytes(f"journal-{last.batch.sequence + 1}", reason, data))
    return Replay(records, damaged, [head.batch for head in chain], last.id_mark)


def _end(batch: Batch, size_bytes: int) -> int:
    return (batch.offset_bytes + batch.length_bytes) % size_bytes


def _scan(fd: int, size_bytes: int) -> tuple[dict[int, _Head], dict[int, int]]:
    """All heads by sequence, and {sequence: offset} of those whose CRC does not fit."""
    heads: dict[int, _Head] = {}
    broken: dict[int, int] = {}
    for start in range(0, size_bytes, _SCAN_BYTES):
        data = os.pread(fd, min(_SCAN_BYTES, size_bytes - start), start)
        for at in range(0, len(data), BLOCK_BYTES):
            if not data.startswith(MAGIC, at):
                continue
            head = _read_head(fd, start + at, size_bytes)
            if head is not None:
                heads[head.batch.sequence] = head
            else:
                broken[_HEAD.unpack_from(data, at)[3]] = start + at
    return heads, broken


def _read_head(fd: int, offset_bytes: int, size_bytes: int) -> _Head | None:
    data = os.pread(fd, _HEAD.size, offset_bytes)
    if len(data) < _HEAD.size:
        return None
    _, crc, length, sequence, low, id_mark, done_bytes, count = _HEAD.unpack(data)
    rest_bytes = done_bytes + count * _TABLE.size
    if offset_bytes + length > size_bytes or _HEAD.size + rest_bytes > length:
        return None
    rest = os.pread(fd, rest_bytes, offset_bytes + _HEAD.size)
    if zlib.crc32(rest, zlib.crc32(data[_CRC_START:])) != crc:
        return None
    done = tuple(rest[:done_bytes].decode("ascii", "replace").split("\n")) if done_bytes else ()
    return _Head(
        Batch(sequence, offset_bytes, length),
        low,
        id_mark,
        done,
        tuple(_TABLE.iter_unpack(rest[done_bytes:])),
        offset_bytes + _HEAD.size + rest_bytes,
    )


def _records(fd: int, head: _Head) -> tuple[list[Record], int]:
    """A batch's good records, and how many are bad."""
    good: list[Record] = []
    offset = head.records_offset_bytes
    for envelope_bytes, message_bytes, envelope_crc, message_crc in head.table:
        record = Record("")
        record.envelope_size_bytes, record.message_size_bytes = envelope_bytes, message_bytes
        record.envelope_crc, record.message_crc = envelope_crc, message_crc
        record.sequence, record.offset_bytes = head.batch.sequence, offset
        offset += envelope_bytes + message_bytes
        try:
            encoded, _ = read_record(fd, record)
            record.queue_id = decode_entry(encoded).queue_id
        except (Damaged, ValueError):
            continue
        record.encoded = encoded
        good.append(record)
    return good, len(head.table) - len(good)


def _is_torn(fd: int, batch: Batch) -> bool:
    """Whether the power went while the last batch was written: a block of it is blank, or an older batch's.

    Nothing of it had been acknowledged then. A damage that leaves no such trace is kept for the admin.
    """
    data = os.pread(fd, batch.length_bytes, batch.offset_bytes)
    blocks = (data[at : at + BLOCK_BYTES] for at in range(BLOCK_BYTES, len(data), BLOCK_BYTES))
    return any(block == _BLANK or block.startswith(MAGIC) for block in blocks)


def _gaps(fd: int, size_bytes: int, low: int, chain: list[_Head]) -> list[DamagedBytes]:
    """The bytes where batches should be that have no readable head."""
    damaged: list[DamagedBytes] = []
    expected, start = low, -1
    for head in chain:
        batch = head.batch
        missing = batch.sequence - expected
        if missing > 0:
            end = batch.offset_bytes
            if start < 0:  # the oldest is missing: its beginning is not known
                start = (end - min(min(missing, 4) * BATCH_MAX_BYTES, size_bytes)) % size_bytes
            data = (
                os.pread(fd, end - start, start)
                if start < end
                else os.pread(fd, size_bytes - start, start) + os.pread(fd, end, 0)
            )
            reason = f"{missing} journal batches have no readable head"
            damaged.append(DamagedBytes(f"journal-{expected}", reason, data))
        expected, start = batch.sequence + 1, _end(batch, size_bytes)
    return damaged
