"""One plain file a message: header block | body | envelope record | state records.

Purpose: keep what is large or has to wait, so that an admin can list, read and copy it. Rules: a file is
written as ``ID.part``, synced, and only then gets its name: a ``.part`` is unfinished (swept at start), and
anything else that cannot be read is damaged (moved to corrupt/, never deleted). A record is the envelope
as JSON and a trailer of [length, message CRC, CRC, magic]; the last good one counts, found from the end, and
none is ever rewritten: an append that the power cut off hides nothing. It must not know the journal, nor when
a file is due.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pi_relay.model import Envelope, FileSpan, StoredMessage
from pi_relay.queue.disk import Disk
from pi_relay.queue.envelopes import decode

PART_SUFFIX = ".part"
IN_MEMORY_MAX_BYTES = 128 * 1024  # larger messages are handed on as a span of their file
TRAILER = struct.Struct(">III8s")
MAGIC = b"\x00pi-msg\n"
_FIRST_READ_BYTES = 16 * 1024
_TAIL_READ_BYTES = 4 * 1024
_TAIL_MAX_BYTES = 8 * 1024 * 1024  # further back than this no record is looked for
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
_APPEND = os.O_WRONLY | os.O_APPEND


class Damaged(Exception):
    """Bytes that are not what we wrote. The text says how, in a few words."""


class Record(NamedTuple):
    envelope: bytes  # encoded
    message_crc: int


class Change(NamedTuple):
    """What is to become of one message's file."""

    queue_id: str
    envelope: bytes | None  # encoded; None: the file goes
    message_crc: int = 0
    message: Sequence[bytes] | None = None  # a new file of these parts; None: the envelope is appended
    durable: bool = True  # new files always are

    @property
    def changes_names(self) -> bool:
        return self.envelope is None or self.message is not None


def record(envelope: bytes, message_crc: int) -> bytes:
    head = struct.pack(">II", len(envelope), message_crc)
    return envelope + TRAILER.pack(len(envelope), message_crc, zlib.crc32(head, zlib.crc32(envelope)), MAGIC)


def last_record(data: bytes) -> Record | None:
    """The last good record that lies wholly in the data, or None."""
    end = len(data)
    while (found := data.rfind(MAGIC, 0, end)) >= 0:
        start = found + len(MAGIC) - TRAILER.size
        if start >= 0:
            length, message_crc, crc, _ = TRAILER.unpack_from(data, start)
            envelope = data[max(start - length, 0) : start]
            if len(envelope) == length and zlib.crc32(data[start : start + 8], zlib.crc32(envelope)) == crc:
                return Record(envelope, message_crc)
        end = found + len(MAGIC) - 1
    return None


def read_record(path: str, directory_fd: int | None = None) -> Record:
    """A file's last record. Raises Damaged, or OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        return _read_last_record(fd, os.lseek(fd, 0, os.SEEK_END))
    finally:
        os.close(fd)


def _read_last_record(fd: int, size_bytes: int) -> Record:
    window_bytes = _TAIL_READ_BYTES
    while True:
        found = last_record(os.pread(fd, window_bytes, max(size_bytes - window_bytes, 0)))
        if found is not None:
            return found
        if window_bytes >= min(size_bytes, _TAIL_MAX_BYTES):
            raise Damaged("no envelope record" if size_bytes else "an empty file")
        window_bytes *= 8


def read_message(path: str, *, check: bool) -> tuple[Envelope, StoredMessage]:
    """A message by its file; ``check`` compares a large one with its CRC too (small ones always are).

    Raises Damaged, or OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(fd, _FIRST_READ_BYTES, 0)
        whole = len(data) < _FIRST_READ_BYTES
        found = last_record(data) if whole else _read_last_record(fd, os.fstat(fd).st_size)
        if found is None:
            raise Damaged("no envelope record" if data else "an empty file")
        envelope = decode_or_damaged(found.envelope)
        size_bytes, header_bytes = envelope.message_size_bytes, envelope.header_size_bytes
        if size_bytes > IN_MEMORY_MAX_BYTES:
            if check and _crc_of(fd, size_bytes) != found.message_crc:
                raise Damaged("the message's checksum does not fit")
            header = os.pread(fd, header_bytes, 0)
            return envelope, StoredMessage(header, FileSpan(path, header_bytes, size_bytes - header_bytes))
        message = data[:size_bytes] if whole else os.pread(fd, size_bytes, 0)
        if len(message) != size_bytes or zlib.crc32(message) != found.message_crc:
            raise Damaged("the message's checksum does not fit")
        return envelope, StoredMessage(message[:header_bytes], message[header_bytes:])
    finally:
        os.close(fd)


def decode_or_damaged(data: bytes) -> Envelope:
    try:
        return decode(data)
    except ValueError as error:
        raise Damaged(str(error)) from error


def _crc_of(fd: int, size_bytes: int) -> int:
    crc = offset = 0
    while offset < size_bytes:
        data = os.pread(fd, min(size_bytes - offset, 1 << 20), offset)
        if not data:
            raise Damaged("the file is shorter than its message")
        crc = zlib.crc32(data, crc)
        offset += len(data)
    return crc


def part_path(directory: Path, queue_id: str) -> str:
    return f"{directory}/{queue_id}{PART_SUFFIX}"


def open_part(disk: Disk, directory: Path, queue_id: str) -> int:
    return disk.open(part_path(directory, queue_id), _NEW)


def publish(disk: Disk, directory: Path, queue_id: str) -> None:
    """Give a synced part its name; durable once the folder is synced."""
    disk.rename(part_path(directory, queue_id), f"{directory}/{queue_id}")


def apply(disk: Disk, directory: Path, directory_fd: int, changes: Sequence[Change]) -> dict[str, OSError]:
    """Carry out a group of changes; on return all of them are durable that shall be.

    What the disk said to one file's open, write, rename or unlink comes back by queue id: that change is not
    made, the others are. A SyncError is raised: then nothing of the group may be believed.
    """
    failed: dict[str, OSError] = {}
    unsynced: dict[str, int] = {}
    try:
        for change in changes:
            with _noting(failed, change.queue_id):
                _write(disk, directory, change, unsynced)
        for fd in unsynced.values():
            disk.wait_written(fd)
        for fd in unsynced.values():
            disk.fdatasync(fd)
    finally:
        for fd in unsynced.values():
            disk.close(fd)
    for change in changes:
        if change.message is not None and change.queue_id not in failed:
            with _noting(failed, change.queue_id):
                publish(disk, directory, change.queue_id)
    if any(change.changes_names for change in changes):
        disk.sync_directory(directory_fd)
    return failed


@contextmanager
def _noting(failed: dict[str, OSError], queue_id: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        failed[queue_id] = error


def _write(disk: Disk, directory: Path, change: Change, unsynced: dict[str, int]) -> None:
    """One file's part of a group, as far as it goes without waiting for the device."""
    queue_id = change.queue_id
    if change.envelope is None:
        disk.unlink(f"{directory}/{queue_id}")
        return
    data = record(change.envelope, change.message_crc)
    if change.message is None:
        fd = disk.open(f"{directory}/{queue_id}", _APPEND)
    else:
        fd = open_part(disk, directory, queue_id)
        data = b"".join((*change.message, data))
    try:
        disk.write(fd, data)
    except OSError:
        disk.close(fd)
        if change.message is not None:
            disk.unlink(part_path(directory, queue_id))
        raise
    if change.message is None and not change.durable:
        disk.close(fd)
        return
    disk.start_writing(fd)
    unsynced[queue_id] = fd
