"""What the queue may use of the disk and of the memory.

Purpose: sizes are reserved before they are written, so that a full disk is refused at MAIL and loses nothing;
small messages wait for their commit within one bound. It must not know messages or files.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

FREE_SPACE_AGE_SECONDS = 1.0  # how long an answer of the file system is believed
OWN_SHARE = 0.5  # of free_space_min stays free where DSNs and state changes write
UNKNOWN_SHARE = 0.8  # of size_max: what lies beyond it is for known devices


class DiskSpace:
    """Counts what is used and reserved against ``size_max_bytes`` and the partition's free space."""

    def __init__(self, directory: Path, size_max_bytes: int, free_space_min_bytes: int) -> None:
        self._directory = directory
        self.size_max_bytes = size_max_bytes
        self.free_space_min_bytes = free_space_min_bytes
        self.used_bytes = 0
        self.reserved_bytes = 0
        self._free_bytes = 0
        self._asked_at = float("-inf")

    def free_bytes(self) -> int:
        now = time.monotonic()
        if now - self._asked_at > FREE_SPACE_AGE_SECONDS:
            state = os.statvfs(self._directory)
            self._free_bytes = state.f_bavail * state.f_frsize
            self._asked_at = now
        return self._free_bytes

    def reserve(self, size_bytes: int, *, already_bytes: int = 0, known_device: bool = True) -> bool:
        """Set so much apart for a message that comes in; False: there is not so much.

        ``already_bytes``: what was reserved for it before. An unknown client's message, however large, is
        taken as long as all others keep within UNKNOWN_SHARE.
        """
        others_bytes = self.used_bytes + self.reserved_bytes - already_bytes
        if not known_device and others_bytes > self.size_max_bytes * UNKNOWN_SHARE:
            return False
        wanted_bytes = self.reserved_bytes + size_bytes
        if self.used_bytes + wanted_bytes > self.size_max_bytes:
            return False
        if self.free_bytes() - wanted_bytes < self.free_space_min_bytes:
            return False
        self.reserved_bytes = wanted_bytes
        return True

    def has_for_ourselves(self, size_bytes: int) -> bool:
        """Whether a DSN or a state change of this size may be written."""
        return self.free_bytes() - size_bytes >= self.free_space_min_bytes * OWN_SHARE

    def give_back(self, size_bytes: int) -> None:
        self.reserved_bytes -= size_bytes
        assert self.reserved_bytes >= 0


class MemoryBudget:
    """Bytes of messages that are neither durable nor in their file, all sessions together."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.committing_bytes = 0  # the part of it that will be free without anybody's doing
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def spent(self) -> bool:
        return self.held_bytes > self.max_bytes

    def release(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes
        assert self.held_bytes >= 0
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    async def released(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future
