"""The queue's promise, over journal and files.

Four laws; the crash tests assert them:

1. **Accept.** A commit returns only when the message is durable, its name in the folder included. The 250
   comes after that, and from then on the message is ours.
2. **Settle.** A report to the sender is durable (``put``) before the original's state forgets a recipient
   (``settle``). Its id derives from the original's, so that a replay after a crash overwrites it.
3. **Remove.** Nothing is removed but by ``remove``, and that is called only once every recipient is relayed,
   or failed with its report durable or none owed.
4. **Start.** What is unfinished is swept; what is damaged is moved to corrupt/, counted and named in the log;
   everything else goes on. A crash can repeat a message, never lose one.

Purpose: commit, load, settle, remove and recover messages, and keep the books: which are live, where they lie
(``_journalled``, else a file), what is used and reserved. Rules: the books are the loop's alone; all that
blocks is done in four kinds of threads (committer, mover, writers, readers). After an error of the device it
accepts nothing more until the next start, for what a disk says after a failed sync is worth nothing. It must
not know when a message is due, nor what an envelope's fields mean.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import math
import os
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pi_relay import maillog
from pi_relay.model import Envelope, QueueRefusal, Reply, StoredMessage
from pi_relay.queue import files, ids, recovery
from pi_relay.queue.disk import DIRECTORY_MODE, Disk, SyncError
from pi_relay.queue.envelopes import Entry, decode, encode, entry_of
from pi_relay.queue.files import IN_MEMORY_MAX_BYTES, Damaged
from pi_relay.queue.incoming import UNDECLARED_BYTES, Commit, Incoming
from pi_relay.queue.journal import FULL_ERRNOS, Journal, Record, acceptable
from pi_relay.queue.mover import GROUP_MAX, Mover, Task
from pi_relay.queue.recovery import CORRUPT_NAME, JOURNAL_NAME, CorruptMessage, read_message, survey
from pi_relay.queue.space import DiskSpace, MemoryBudget

__all__ = ["CorruptMessage", "Entry", "Incoming", "Store", "StoreLocked", "Usage", "read_message", "survey"]

JOURNAL_SIZE_BYTES = 32 * 1024 * 1024
INCOMING_MEMORY_MAX_BYTES = 8 * 1024 * 1024
KEPT_MEMORY_MAX_BYTES = 8 * 1024 * 1024  # of messages in the journal, for their first delivery
KEPT_OVERHEAD_BYTES = 1024  # of an envelope in memory
MOVE_AFTER_SECONDS = 3.0
TICK_SECONDS = 1.0  # while anything is in the journal or waits for the disk
CLOSE_SECONDS = 10.0
DISK_PATIENCE_SECONDS = 30.0  # for one answer of the disk; beyond it nothing is accepted
COMMIT_PATIENCE_SECONDS = 30.0  # for the committer, which waits at most ROOM_WAIT_SECONDS of its own will
WRITERS = 4
READERS = 2
READ_GROUP_MAX = 32
LOCK_NAME = "lock"
SHORTAGES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))  # pass by themselves

Result = TypeVar("Result")


class StoreLocked(Exception):
    """Another process owns the queue folder."""


@dataclass(frozen=True, slots=True)
class Usage:
    messages: int
    bytes: int
    held: int
    corrupt: int
    oldest_accepted_at: float | None
    free_bytes: int
    reserved_bytes: int
    broken: str  # what the disk said, "" while it is well


class _Read(NamedTuple):
    """A request for a message, as it stood when it was made."""

    queue_id: str
    whole: bool  # or its envelope alone
    record: Record | None  # None: it has a file
    check: bool
    future: asyncio.Future[tuple[Envelope, StoredMessage | None]]


class Store:
    """One queue folder, owned by one process. Sizes in bytes; see the module for the laws.

    ``on_committed`` is called in the loop, with the envelope, after the commit's waiter has had its turn.
    """

    def __init__(
        self,
        directory: Path,
        *,
        size_max_bytes: int,
        free_space_min_bytes: int,
        journal_size_bytes: int = JOURNAL_SIZE_BYTES,
        disk: Disk | None = None,
    ) -> None:
        self.directory = directory
        self.directory_fd = -1
        self.disk = disk or Disk()
        self.space = DiskSpace(directory, size_max_bytes, free_space_min_bytes)
        self.memory = MemoryBudget(INCOMING_MEMORY_MAX_BYTES)
        self.on_committed: Callable[[Envelope], None] | None = None
        self.broken = ""
        self.writers: Executor = ThreadPoolExecutor(WRITERS, "queue-writer")
        self._readers = ThreadPoolExecutor(READERS, "queue-reader")
        self._moving = ThreadPoolExecutor(1, "queue-mover")
        self._journal_size_bytes = journal_size_bytes
        self._journal = Journal(self.disk, directory / JOURNAL_NAME, self._on_batch)
        self._mover = Mover(self.disk, directory, self._moving, self._journal, self._moved, self._group_done)
        self._entries: dict[str, Entry] = {}
        self._journalled: dict[str, Record] = {}  # in the order of sequence
        self._kept_bytes = 0
        self._commits = 0  # under way
        self._batches = 0  # since the last tick
        self._corrupt = 0
        self._reads: list[_Read] = []
        self._readers_busy = 0
        self._tick_timer: asyncio.TimerHandle | None = None
        self._lock_fd = -1
        self._closing = False
        self.closed = False
        self._loop: asyncio.AbstractEventLoop

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Every live message, by queue id."""
        return self._entries

    # -- start

    async def open(self) -> None:
        """Lock the folder and recover what it holds. Raises StoreLocked, or OSError."""
        self._loop = asyncio.get_running_loop()
        try:
            corrupt = await self.run(self._moving, self._recover)
        except BaseException:
            self._journal.close(0)
            self._unlock()
            raise
        for name, reason in corrupt.items():
            maillog.corrupt(queue_id=name, reason=reason)
        self._corrupt = self._count_corrupt()
        self.space.used_bytes = sum(entry.size_bytes for entry in self._entries.values())
        self._mover.start(self.directory_fd)
        self._journal.start()
        self._arm()

    def _recover(self) -> dict[str, str]:
        """In a thread. Returns what was damaged, {name: reason}."""
        disk, directory = self.disk, self.directory
        self._make_directory(directory)
        self._lock()
        self._make_directory(directory / CORRUPT_NAME)
        self.directory_fd = disk.open_directory(directory)
        scanned = recovery.scan_files(directory, self.directory_fd)
        number_min = recovery.highest_number(directory) + 1
        if number_min == 1 and not (directory / JOURNAL_NAME).exists():
            number_min = ids.first_number()
        replay = self._journal.open(self._journal_size_bytes, self.directory_fd, number_min)
        for name in scanned.unfinished:
            disk.unlink(directory / name)
        corrupt = dict(scanned.damaged)
        for name in scanned.damaged:
            self._move_aside(name)
        for damaged in replay.damaged:
            corrupt[damaged.name] = damaged.reason
            self._save_aside(damaged.name, damaged.data)
        self._entries = scanned.entries
        for queue_id, record in replay.records.items():
            if queue_id in self._entries:
                self._journal.forget(record)
                continue
            self._adopt_recovered(record, corrupt)
        return corrupt

    def _make_directory(self, path: Path) -> None:
        """A folder that only we can look into, with its name durable; missing parents likewise."""
        if path.exists():
            if path.stat().st_mode & 0o777 != DIRECTORY_MODE:
                path.chmod(DIRECTORY_MODE)
            return
        if not path.parent.exists():
            self._make_directory(path.parent)
        self.disk.make_directory(path)
        self._sync_directory(path.parent)

    def _sync_directory(self, path: Path) -> None:
        fd = self.disk.open_directory(path)
        try:
            self.disk.sync_directory(fd)
        finally:
            self.disk.close(fd)

    def _adopt_recovered(self, record: Record, corrupt: dict[str, str]) -> None:
        try:
            envelope = decode(record.encoded)
        except ValueError as error:
            corrupt[record.queue_id] = str(error)
            self._save_aside(record.queue_id, b"".join(self._journal.read(record)))
            self._journal.forget(record)
            return
        record.encoded = b""
        self._journalled[record.queue_id] = record
        entry = self._entries[record.queue_id] = entry_of(envelope)
        entry.message_crc = record.message_crc

    def _lock(self) -> None:
        self._lock_fd = self.disk.open(self.directory / LOCK_NAME, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreLocked(f"the queue {self.directory} is in use by another process") from None

    def _unlock(self) -> None:
        for fd in (self.directory_fd, self._lock_fd):
            if fd >= 0:
                self.disk.close(fd)
        self.directory_fd = self._lock_fd = -1

    # -- accept (law 1)

    def begin(self, declared_size_bytes: int | None, *, known_device: bool = True) -> Incoming:
        """Reserve space for a message and give it its id. Raises QueueRefusal (452 full, 451 broken or slow).

        ``known_device``: others have to leave it some room.
        """
        if self.broken or self._closing:
            raise self.refusal(None)
        if self.disk.waiting_seconds() > DISK_PATIENCE_SECONDS:
            raise QueueRefusal(Reply(451, "4.3.0", "The queue's disk does not answer, try again later"))
        reserved_bytes = UNDECLARED_BYTES if declared_size_bytes is None else declared_size_bytes
        if not self.space.reserve(reserved_bytes, known_device=known_device):
            raise self.full()
        number = self._journal.next_number()
        if number is None:
            self.space.give_back(reserved_bytes)
            raise QueueRefusal(Reply(451, "4.3.0", "The queue is busy, try again"))
        return Incoming(self, ids.id_of(number), reserved_bytes, known_device=known_device)

    def full(self) -> QueueRefusal:
        return QueueRefusal(Reply(452, "4.3.1", "Insufficient system storage"))

    def refusal(self, error: OSError | None) -> QueueRefusal:
        """What a client is told of a disk error; one of the device ends accepting."""
        if error is not None:
            if not isinstance(error, SyncError) and error.errno in FULL_ERRNOS:
                return self.full()
            if isinstance(error, SyncError) or error.errno not in SHORTAGES:
                self._break(error)
        if self._closing and not self.broken:
            return QueueRefusal(Reply(451, "4.3.2", "Shutting down, try again later"))
        return QueueRefusal(Reply(451, "4.3.0", "The queue's disk fails, try again later"))

    def _break(self, error: OSError) -> None:
        if self.broken:
            return
        self.broken = str(error) or type(error).__name__
        maillog.error(f"the queue's disk failed, nothing is accepted until the next start: {self.broken}")
        self._mover.stop()
        for tasks in (self._mover.waiting, self._mover.under_way):
            for task in tasks.values():
                _resolve(task.waiters, self.refusal(None))

    def append(self, record: Record) -> None:
        """Have a small message written to the journal; its waiter is a Commit."""
        commit: Any = record.waiter
        self.memory.committing_bytes += commit.held_bytes
        self._commits += 1
        self._journal.append(record)

    def _on_batch(self, records: list[Record], error: OSError | None) -> None:
        """In the committer."""
        self._loop.call_soon_threadsafe(self._batch_done, records, error)

    def _batch_done(self, records: list[Record], error: OSError | None) -> None:
        self._batches += 1
        refusal = None if error is None else self.refusal(error)
        for record in records:
            commit: Any = record.waiter
            record.waiter, record.encoded = None, b""
            self.memory.committing_bytes -= commit.held_bytes
            if refusal is not None:
                self._commit_failed(commit, refusal)
                continue
            self._journalled[record.queue_id] = record
            kept_bytes = record.message_size_bytes + KEPT_OVERHEAD_BYTES
            if self._kept_bytes + kept_bytes <= KEPT_MEMORY_MAX_BYTES:
                self._kept_bytes += kept_bytes
            else:
                _drop_content(record)
            self._committed(commit, record.message_crc)
        if self._journal.crowded:
            self._move_old()
        self._arm()

    def finish(self, commit: Commit, write: Callable[..., int], *arguments: object) -> None:
        """Have ``write(*arguments)`` make a large message's file durable in a thread of the writers."""
        self._commits += 1

        def written(future: asyncio.Future[int]) -> None:
            error = future.exception()
            if error is None:
                self._committed(commit, future.result())
            elif isinstance(error, OSError):
                self._commit_failed(commit, self.refusal(error))
            else:
                self._commit_failed(commit, error)

        self.run(self.writers, write, *arguments).add_done_callback(written)

    def _committed(self, commit: Commit, message_crc: int) -> None:
        envelope = commit.envelope
        entry = entry_of(envelope)
        entry.message_crc = message_crc
        entry.checked = True
        self._entries[envelope.queue_id] = entry
        self.space.used_bytes += entry.size_bytes
        self._give_back(commit)
        if not commit.future.done():
            commit.future.set_result(None)
        if self.on_committed is not None:
            self._loop.call_soon(self.on_committed, envelope)

    def _commit_failed(self, commit: Commit, error: BaseException) -> None:
        self._give_back(commit)
        if not commit.future.done():
            commit.future.set_exception(error)

    def _give_back(self, commit: Commit) -> None:
        self._commits -= 1
        self.space.give_back(commit.reserved_bytes)
        self.memory.release(commit.held_bytes)

    async def put(self, envelope: Envelope, header: bytes, body: bytes) -> None:
        """Keep a message of our own (a report); durable on return. The same id overwrites.

        Raises QueueRefusal.
        """
        size_bytes = len(header) + len(body)
        if envelope.message_size_bytes != size_bytes or envelope.header_size_bytes != len(header):
            raise ValueError("the envelope is not of this message")
        if self.broken or self._closing:
            raise self.refusal(None)
        if not self.space.has_for_ourselves(size_bytes):
            raise self.full()
        queue_id = envelope.queue_id
        future = self._loop.create_future()
        in_journal = size_bytes <= IN_MEMORY_MAX_BYTES and acceptable(header) and acceptable(body)
        if in_journal and queue_id not in self._entries and not self._mover.knows(queue_id):
            record = Record(queue_id, Commit(envelope, future, 0, 0))
            record.envelope, record.encoded = envelope, encode(envelope)
            record.header, record.body = header, body
            self.append(record)
            await future
            return
        task = self._mover.task(queue_id, self._journalled.get(queue_id))
        task.envelope, task.message, task.gone = encode(envelope), (header, body), False
        task.message_crc = zlib.crc32(body, zlib.crc32(header))
        task.put = envelope
        self._wait_for(task, future)
        await future

    def _wait_for(self, task: Task, future: asyncio.Future[None]) -> None:
        task.durable = True
        task.waiters.append(future)
        self._mover.wake(urgent=True)

    # -- load

    async def load(self, queue_id: str) -> tuple[Envelope, StoredMessage]:
        """A message, without suspension while it is in memory.

        Raises KeyError (unknown or gone), CorruptMessage (then it is in corrupt/), OSError (a passing
        shortage).
        """
        record = self._journalled.get(queue_id)
        if record is not None and record.envelope is not None:
            return record.envelope, StoredMessage(record.header, record.body)
        envelope, message = await self._read(queue_id, whole=True)
        assert message is not None
        return envelope, message

    async def load_envelope(self, queue_id: str) -> Envelope:
        """Likewise the envelope alone."""
        record = self._journalled.get(queue_id)
        if record is not None and record.envelope is not None:
            return record.envelope
        state = self._mover.state(queue_id)
        if state is not None and queue_id in self._entries:
            return decode(state)
        return (await self._read(queue_id, whole=False))[0]

    def _read(self, queue_id: str, *, whole: bool) -> asyncio.Future[tuple[Envelope, StoredMessage | None]]:
        entry = self._entries[queue_id]
        future = self._loop.create_future()
        self._request(_Read(queue_id, whole, self._journalled.get(queue_id), not entry.checked, future))
        return future

    def _request(self, read: _Read) -> None:
        self._reads.append(read)
        if len(self._reads) == 1:
            self._loop.call_soon(self._hand_to_readers)

    def _hand_to_readers(self) -> None:
        while self._reads and self._readers_busy < READERS:
            group, self._reads = self._reads[:READ_GROUP_MAX], self._reads[READ_GROUP_MAX:]
            self._readers_busy += 1
            self.run(self._readers, self._read_group, group).add_done_callback(self._group_read)

    def _read_group(self, group: list[_Read]) -> list[tuple[_Read, Any]]:
        """In a thread. Each request with its result, or what went wrong."""
        results: list[tuple[_Read, Any]] = []
        for read in group:
            try:
                results.append((read, self._read_one(read)))
            except (Damaged, OSError) as error:
                results.append((read, error))
        return results

    def _read_one(self, read: _Read) -> tuple[Envelope, StoredMessage | None]:
        path = f"{self.directory}/{read.queue_id}"
        if read.record is not None:
            encoded, message = self._journal.read(read.record)
            envelope = files.decode_or_damaged(encoded)
            header_bytes = envelope.header_size_bytes
            return envelope, StoredMessage(message[:header_bytes], message[header_bytes:])
        if read.whole:
            return files.read_message(path, check=read.check)
        return files.decode_or_damaged(files.read_record(path).envelope), None

    def _group_read(self, future: asyncio.Future[list[tuple[_Read, Any]]]) -> None:
        self._readers_busy -= 1
        for read, result in future.result():
            if isinstance(result, Exception):
                self._read_failed(read, result)
            elif not read.future.done():
                self._deliver_read(read, *result)
        self._hand_to_readers()

    def _deliver_read(self, read: _Read, envelope: Envelope, message: StoredMessage | None) -> None:
        entry = self._entries.get(read.queue_id)
        if entry is None:
            read.future.set_exception(KeyError(read.queue_id))
            return
        if read.whole:
            entry.checked = True
        state = self._mover.state(read.queue_id)
        read.future.set_result((envelope if state is None else decode(state), message))

    def _read_failed(self, read: _Read, error: Exception) -> None:
        queue_id = read.queue_id
        if queue_id not in self._entries:
            if not read.future.done():
                read.future.set_exception(KeyError(queue_id))
        elif self._journalled.get(queue_id) is not read.record:
            self._request(read._replace(record=self._journalled.get(queue_id)))  # it has moved meanwhile
        elif isinstance(error, OSError) and (self.broken or error.errno in SHORTAGES):
            if not read.future.done():
                read.future.set_exception(error)
        else:
            vanished = isinstance(error, FileNotFoundError)
            self._set_aside(queue_id, read.record, "its file has vanished" if vanished else str(error), read)

    # -- settle and remove (laws 2 and 3)

    async def settle(self, envelope: Envelope, *, durable: bool) -> None:
        """Take over a message's new state; ``durable`` returns once it is synced.

        Otherwise it returns at once, and a crash may forget it. Raises KeyError; QueueRefusal where it cannot
        be made durable (the state counts all the same while this process lives).
        """
        queue_id = envelope.queue_id
        entry = self._entries[queue_id]
        entry.update(envelope)
        record = self._journalled.get(queue_id)
        if record is not None and record.envelope is not None:
            record.envelope = envelope
        task = self._mover.task(queue_id, record)
        task.envelope = encode(envelope)
        if task.message is None:
            task.message_crc = entry.message_crc
        self._arm()
        if not durable:
            self._mover.wake(urgent=False)
            return
        if self.broken:
            raise self.refusal(None)
        if not self.space.has_for_ourselves(len(task.envelope)):
            raise self.full()
        future = self._loop.create_future()
        self._wait_for(task, future)
        await future

    def remove(self, queue_id: str) -> None:
        """Forget a message; the caller has kept law 3. Raises KeyError."""
        entry = self._entries.pop(queue_id)
        self.space.used_bytes -= entry.size_bytes
        record = self._journalled.pop(queue_id, None)
        self._mover.drop(queue_id)
        self._arm()
        if record is not None:
            self._leave_journal(record)
            if queue_id not in self._mover.under_way:
                return
        self._mover.task(queue_id, None).gone = True
        self._mover.wake(urgent=False)

    def let_go(self, queue_id: str) -> None:
        """Keep nothing of a message in memory but its entry: it will not be loaded soon."""
        record = self._journalled.get(queue_id)
        if record is not None:
            self._release_content(record)

    def _leave_journal(self, record: Record) -> None:
        self._journal.forget(record)
        self._release_content(record)

    def _release_content(self, record: Record) -> None:
        if record.envelope is not None:
            self._kept_bytes -= record.message_size_bytes + KEPT_OVERHEAD_BYTES
            _drop_content(record)

    # -- what the mover reports

    def _moved(self, task: Task, error: Exception | None) -> None:
        queue_id = task.queue_id
        if isinstance(error, SyncError):
            self._break(error)
        if error is not None:
            self._not_moved(task, error)
            return
        record = task.record
        if record is not None and self._journalled.get(queue_id) is record:
            del self._journalled[queue_id]
            self._leave_journal(record)
            later = self._mover.waiting.get(queue_id)
            if later is not None:
                later.record = None
        if task.put is not None:
            self._put_done(task, task.put)
        _resolve(task.waiters, None)

    def _put_done(self, task: Task, envelope: Envelope) -> None:
        old = self._entries.get(envelope.queue_id)
        entry = entry_of(envelope)
        entry.message_crc, entry.checked = task.message_crc, True
        self._entries[envelope.queue_id] = entry
        self.space.used_bytes += entry.size_bytes - (0 if old is None else old.size_bytes)
        if self.on_committed is not None:
            self._loop.call_soon(self.on_committed, envelope)

    def _not_moved(self, task: Task, error: Exception) -> None:
        """A change was not made: whoever waits is told, and what is still true is tried again."""
        queue_id = task.queue_id
        vanished = isinstance(error, FileNotFoundError) and task.record is None and task.message is None
        if isinstance(error, Damaged) or vanished:
            self._set_aside(queue_id, task.record, "its file has vanished" if vanished else str(error))
            _resolve(task.waiters, KeyError(queue_id))
            return
        if not (isinstance(error, OSError) and error.errno in SHORTAGES):
            _resolve(task.waiters, self.refusal(error if isinstance(error, OSError) else None))
            task.waiters = []
            if task.put is not None:
                return
        if queue_id in self._entries or task.gone or task.waiters:
            self._mover.again(task)

    def _group_done(self) -> None:
        if self._journal.crowded:
            self._journal.flush()
        self._move_old()

    # -- from the journal to files

    def _arm(self) -> None:
        if self._tick_timer is None and not self._closing:
            self._tick_timer = self._loop.call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        """Runs while there is something to do, and no longer: an idle box pays nothing."""
        self._tick_timer = None
        if self.broken:
            return
        quiet, self._batches = self._batches == 0, 0
        if quiet and self._journal.unwritten:
            self._journal.flush()
        self._move_old()
        if self._journalled or self._journal.unwritten or not self._mover.idle:
            self._arm()

    def _move_old(self, *, everything: bool = False) -> None:
        """Have messages moved that are old, or crowd the journal; oldest first, a group at a time."""
        everything = everything or self._journal.crowded
        mover = self._mover
        old = time.monotonic() - MOVE_AFTER_SECONDS
        for queue_id, record in self._journalled.items():
            if len(mover.waiting) >= GROUP_MAX or not (everything or record.waiting_since < old):
                break
            if queue_id not in mover.under_way:
                task = mover.task(queue_id, record)
                if task.message is None:
                    task.message_crc = record.message_crc
        mover.wake(urgent=everything)

    # -- damaged messages (law 4)

    def _set_aside(
        self, queue_id: str, record: Record | None, reason: str, read: _Read | None = None
    ) -> None:
        entry = self._entries.pop(queue_id, None)
        if entry is None:
            return
        self.space.used_bytes -= entry.size_bytes
        if record is not None:
            del self._journalled[queue_id]
            self._leave_journal(record)
        self._mover.drop(queue_id)
        self._corrupt += 1
        maillog.corrupt(queue_id=queue_id, reason=reason)

        def done(future: asyncio.Future[None]) -> None:
            error = future.exception()
            if isinstance(error, OSError):
                self.refusal(error)
            if read is not None and not read.future.done():
                read.future.set_exception(CorruptMessage(reason))

        self.run(self._moving, self._put_aside, queue_id, record).add_done_callback(done)

    def _put_aside(self, queue_id: str, record: Record | None) -> None:
        """In the mover's thread."""
        if record is None:
            self._move_aside(queue_id)
        else:
            size_bytes = record.envelope_size_bytes + record.message_size_bytes
            self._save_aside(queue_id, self._journal.read_raw(record.offset_bytes, size_bytes))

    def _move_aside(self, name: str) -> None:
        try:
            self.disk.rename(self.directory / name, self._aside_path(name))
        except FileNotFoundError:
            return  # an admin took it
        self._sync_directory(self.directory / CORRUPT_NAME)
        self.disk.sync_directory(self.directory_fd)

    def _save_aside(self, name: str, data: bytes) -> None:
        path = self.directory / CORRUPT_NAME / name
        if path.exists() and path.read_bytes() == data:
            return  # by an earlier start
        path = self._aside_path(name)
        fd = self.disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self.disk.write(fd, data)
            self.disk.fdatasync(fd)
        finally:
            self.disk.close(fd)
        self._sync_directory(self.directory / CORRUPT_NAME)

    def _aside_path(self, name: str) -> Path:
        """A name in corrupt/ that is free."""
        path = self.directory / CORRUPT_NAME / name
        count = 0
        while path.exists():
            count += 1
            path = path.with_name(f"{name}.{count}")
        return path

    def _count_corrupt(self) -> int:
        return len(os.listdir(self.directory / CORRUPT_NAME))  # noqa: PTH208

    # -- the rest

    def usage(self) -> Usage:
        entries = self._entries.values()
        if self._corrupt:
            self._corrupt = self._count_corrupt()  # an admin may have taken some away
        return Usage(
            messages=len(entries),
            bytes=self.space.used_bytes,
            held=sum(1 for entry in entries if entry.held),
            corrupt=self._corrupt,
            oldest_accepted_at=min((entry.accepted_at for entry in entries), default=None),
            free_bytes=self.space.free_bytes(),
            reserved_bytes=self.space.reserved_bytes,
            broken=self.broken,
        )

    def stuck(self) -> str:
        """Why nothing becomes durable although the disk is not at fault, in words; "" while all is well."""
        seconds = 0.0 if self.broken else self._journal.stuck_seconds()
        if math.isinf(seconds):
            return "the thread that commits messages has ended"
        if seconds > COMMIT_PATIENCE_SECONDS:
            return f"messages have been waiting to be committed for {seconds:.0f} s"
        return ""

    def slow_disk(self) -> str:
        """That the disk does not answer, in words; "" while it does. No restart would help."""
        seconds = self.disk.waiting_seconds()
        if seconds <= DISK_PATIENCE_SECONDS:
            return ""
        return f"it has not answered for {seconds:.0f} s"

    def reconfigure(self, *, size_max_bytes: int, free_space_min_bytes: int) -> None:
        self.space.size_max_bytes = size_max_bytes
        self.space.free_space_min_bytes = free_space_min_bytes

    async def close(self) -> None:
        """Move what waits to files, empty the journal, let go of the lock; within CLOSE_SECONDS or so."""
        self._closing = True
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        deadline = self._loop.time() + CLOSE_SECONDS
        while not self.broken and self._loop.time() < deadline:
            self._move_old(everything=True)
            if not (self._commits or self._journalled) and self._mover.idle:
                break
            await asyncio.sleep(0.005)
        self._mover.stop()
        self.closed = True
        left_seconds = max(1.0, deadline - self._loop.time())
        await self.run(self._moving, self._journal.close, left_seconds)
        for executor in (self._moving, self._readers, self.writers):
            executor.shutdown(wait=False, cancel_futures=True)
        self._unlock()

    def run(
        self, executor: Executor, function: Callable[..., Result], *arguments: object
    ) -> asyncio.Future[Result]:
        return self._loop.run_in_executor(executor, function, *arguments)


def _drop_content(record: Record) -> None:
    record.envelope = None
    record.header = record.body = b""


def _resolve(waiters: list[asyncio.Future[None]], error: BaseException | None) -> None:
    for future in waiters:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
