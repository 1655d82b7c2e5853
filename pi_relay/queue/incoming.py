"""A message on its way in, from MAIL to the end of data.

Purpose: small messages are gathered in memory for the journal, large ones stream to their file off the loop.
Rules: disk space is reserved before it is used; memory is one budget for all sessions: where it is spent,
``write`` waits for commits under way, and puts what it holds into its file where none is. Whatever fails lets
go of everything. It must not know SMTP.
"""

from __future__ import annotations

import asyncio
import zlib
from enum import Enum
from typing import TYPE_CHECKING

from pi_relay.model import Envelope
from pi_relay.queue import files
from pi_relay.queue.envelopes import encode
from pi_relay.queue.files import IN_MEMORY_MAX_BYTES
from pi_relay.queue.journal import Record, acceptable

if TYPE_CHECKING:
    from pi_relay.queue.store import Store

CHUNK_BYTES = 256 * 1024  # what a large message gathers before it is written
UNDECLARED_BYTES = 1_000_000  # reserved at MAIL where no SIZE is given; also the step of growing


class _Stage(Enum):
    OPEN = "open"
    COMMITTING = "committing"
    OVER = "over"


class Commit:
    """What a commit under way will give back, and who waits for it (nobody may: then he has left)."""

    __slots__ = ("envelope", "future", "held_bytes", "reserved_bytes")

    def __init__(
        self, envelope: Envelope, future: asyncio.Future[None], reserved_bytes: int, held_bytes: int
    ) -> None:
        self.envelope = envelope
        self.future = future
        self.reserved_bytes = reserved_bytes
        self.held_bytes = held_bytes  # of the memory budget


class Incoming:
    """Implements model.IncomingMessage."""

    __slots__ = (
        "_buffered_bytes",
        "_chunks",
        "_crc",
        "_fd",
        "_known_device",
        "_reserved_bytes",
        "_size_bytes",
        "_stage",
        "_store",
        "_writing",
        "queue_id",
    )

    def __init__(self, store: Store, queue_id: str, reserved_bytes: int, *, known_device: bool) -> None:
        self.queue_id = queue_id
        self._known_device = known_device
        self._store = store
        self._reserved_bytes = reserved_bytes
        self._chunks: list[bytes] = []
        self._buffered_bytes = 0
        self._size_bytes = 0
        self._fd = -1
        self._crc = 0
        self._writing = False  # a thread has the file
        self._stage = _Stage.OPEN

    async def write(self, data: bytes) -> None:
        if self._stage is not _Stage.OPEN:
            raise ValueError("the message is no longer open")
        memory = self._store.memory
        size_bytes = len(data)
        self._chunks.append(data)
        self._buffered_bytes += size_bytes
        self._size_bytes += size_bytes
        memory.held_bytes += size_bytes
        if self._size_bytes > self._reserved_bytes:
            self._reserve_more()
        if self._buffered_bytes >= CHUNK_BYTES or memory.spent:
            await self._relieve()

    def _reserve_more(self) -> None:
        more_bytes = max(self._size_bytes - self._reserved_bytes, UNDECLARED_BYTES)
        if not self._store.space.reserve(
            more_bytes, already_bytes=self._reserved_bytes, known_device=self._known_device
        ):
            self.abort()
            raise self._store.full()
        self._reserved_bytes += more_bytes

    async def _relieve(self) -> None:
        memory = self._store.memory
        while memory.spent and memory.committing_bytes and self._buffered_bytes < CHUNK_BYTES:
            await memory.released()
        if self._stage is _Stage.OPEN and (memory.spent or self._buffered_bytes >= CHUNK_BYTES):
            await self._spill()

    async def _spill(self) -> None:
        """Write what is gathered to the file, off the loop."""
        store, buffered_bytes = self._store, self._buffered_bytes
        chunks, self._chunks = self._chunks, []
        self._buffered_bytes = 0
        self._writing = True

        def written(future: asyncio.Future[None]) -> None:
            self._writing = False
            store.memory.release(buffered_bytes)
            if self._stage is _Stage.OVER:
                store.run(store.writers, self._discard)
            elif future.exception() is not None:
                self.abort()

        future = store.run(store.writers, self._append, chunks)
        future.add_done_callback(written)
        try:
            await asyncio.shield(future)
        except OSError as error:
            raise store.refusal(error) from error

    async def commit(self, envelope: Envelope) -> None:
        if self._stage is not _Stage.OPEN or self._writing:
            raise ValueError("the message is no longer open")
        if envelope.queue_id != self.queue_id or envelope.message_size_bytes != self._size_bytes:
            raise ValueError("the envelope is not of this message")
        store = self._store
        if store.broken or store.closed:
            self.abort()
            raise store.refusal(None)
        self._stage = _Stage.COMMITTING
        future = asyncio.get_running_loop().create_future()
        commit = Commit(envelope, future, self._reserved_bytes, self._buffered_bytes)
        chunks, self._chunks = self._chunks, []
        if self._fd < 0 and self._size_bytes <= IN_MEMORY_MAX_BYTES:
            message = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            if acceptable(message):
                record = Record(self.queue_id, commit)
                record.envelope, record.encoded = envelope, encode(envelope)
                record.header = message[: envelope.header_size_bytes]
                record.body = message[envelope.header_size_bytes :]
                store.append(record)
                await future
                return
        store.finish(commit, self._finish, chunks, encode(envelope))
        await future

    def abort(self) -> None:
        if self._stage is not _Stage.OPEN:
            return
        self._stage = _Stage.OVER
        store = self._store
        store.space.give_back(self._reserved_bytes)
        store.memory.release(self._buffered_bytes)
        self._chunks = []
        if self._fd >= 0 and not self._writing:
            store.run(store.writers, self._discard)

    # -- in a thread of the writers

    def _append(self, chunks: list[bytes]) -> None:
        disk = self._store.disk
        if self._fd < 0:
            self._fd = files.open_part(disk, self._store.directory, self.queue_id)
        for chunk in chunks:
            disk.write(self._fd, chunk)
            self._crc = zlib.crc32(chunk, self._crc)
        disk.start_writing(self._fd)

    def _finish(self, chunks: list[bytes], encoded: bytes) -> int:
        """Law 1 for a file: its content, then its name, both durable. Returns the message's CRC."""
        disk, store = self._store.disk, self._store
        try:
            self._append(chunks)
            disk.write(self._fd, files.record(encoded, self._crc))
            disk.fdatasync(self._fd)
            files.publish(disk, store.directory, self.queue_id)
            disk.sync_directory(store.directory_fd)
        except OSError:
            self._discard()
            raise
        disk.close(self._fd)
        return self._crc

    def _discard(self) -> None:
        disk = self._store.disk
        if self._fd >= 0:
            disk.close(self._fd)
            self._fd = -1
            disk.unlink(files.part_path(self._store.directory, self.queue_id))
