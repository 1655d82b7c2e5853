"""The only place where the queue changes the disk.

Purpose: every call by which the queue creates, writes, syncs, renames or unlinks goes through one ``Disk``,
so that the crash tests can cut the power at each of them. Rules: a call either does all of its work or raises
OSError (short writes are carried on); nothing is retried after an error, for a second fsync may report
success for pages that the kernel has dropped. It must not know messages, envelopes or the loop.

It also knows since when a call has been waiting for the device, so that a slow disk can be told from a thread
that is stuck.

Reading goes past this module: it changes nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

SYNC_FILE_RANGE_WAIT_BEFORE = 1  # linux/fs.h
SYNC_FILE_RANGE_WRITE = 2
SYNC_FILE_RANGE_WAIT_AFTER = 4
FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


@cache
def _sync_file_range() -> Callable[[int, int], int] | None:
    """sync_file_range(2) on a whole file as ``(fd, flags) -> 0 | -1``, or None where libc has none."""
    import ctypes  # a megabyte: only for those who move messages to files

    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def sync_whole_file(fd: int, flags: int) -> int:
        return int(function(fd, 0, 0, flags))

    return sync_whole_file


class SyncError(OSError):
    """A sync failed: what was written before it may be lost, whatever a later sync says."""


class Disk:
    """The real one. All methods block; errors are OSError."""

    def __init__(self) -> None:
        self._waiting_since: dict[int, float] = {}  # by thread: in a call that may wait for the device

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        thread = threading.get_ident()
        self._waiting_since[thread] = time.monotonic()
        try:
            yield
        finally:
            del self._waiting_since[thread]

    def is_waiting(self, thread: int | None) -> bool:
        """Whether this thread is in a call that the device has not answered yet."""
        return thread in self._waiting_since

    def waiting_seconds(self) -> float:
        """For how long the device has not answered, in the call that has waited longest."""
        since = min(list(self._waiting_since.values()), default=None)
        return 0.0 if since is None else time.monotonic() - since

    def make_directory(self, path: Path) -> None:
        """Make a folder of mode 0700 in one that is there."""
        path.mkdir(DIRECTORY_MODE)

    def open(self, path: Path | str, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)

    def open_directory(self, path: Path) -> int:
        """For ``sync_directory``; held open, so that a shortage of descriptors cannot stop a sync."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def allocate(self, fd: int, size_bytes: int) -> None:
        with self._waiting():
            os.posix_fallocate(fd, 0, size_bytes)

    def write(self, fd: int, data: bytes) -> None:
        with self._waiting():
            written = os.write(fd, data)
            while written < len(data):
                written += os.write(fd, memoryview(data)[written:])

    def pwrite(self, fd: int, data: bytes, offset_bytes: int) -> None:
        with self._waiting():
            written = os.pwrite(fd, data, offset_bytes)
            while written < len(data):
                written += os.pwrite(fd, memoryview(data)[written:], offset_bytes + written)

    def start_writing(self, fd: int) -> None:
        """Let the device begin with a file's dirty pages. A hint only: it makes nothing durable."""
        sync_range = _sync_file_range()
        if sync_range is not None:
            sync_range(fd, SYNC_FILE_RANGE_WRITE)

    def wait_written(self, fd: int) -> None:
        """Wait for what ``start_writing`` began. Not durable either; errors show at ``fdatasync``."""
        sync_range = _sync_file_range()
        if sync_range is not None:
            sync_range(fd, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER)

    def fdatasync(self, fd: int) -> None:
        """Make a file's content durable. Raises SyncError."""
        try:
            with self._waiting():
                os.fdatasync(fd)
        except OSError as error:
            raise SyncError(error.errno, error.strerror) from error

    def rename(self, source: Path | str, target: Path | str) -> None:
        os.rename(source, target)  # noqa: PTH104 - the hot callers hold plain strings

    def unlink(self, path: Path | str) -> None:
        """Unlink; a name that is gone already is no error."""
        try:
            os.unlink(path)  # noqa: PTH108
        except FileNotFoundError:
            return

    def sync_directory(self, directory_fd: int) -> None:
        """Make a folder's names durable. Raises SyncError."""
        try:
            with self._waiting():
                os.fsync(directory_fd)
        except OSError as error:
            raise SyncError(error.errno, error.strerror) from error
