"""Disks for the crash tests of the queue: one that remembers every call, one whose power goes at a call.

``LoggedDisk`` does everything for real and keeps a log; ``rebuild`` then lays a folder out as it could be
found had the power gone after any entry of the log: what was not synced is dropped, kept, or torn (any of the
sectors; of the names a prefix, for file systems keep their order).
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from pi_relay.queue.disk import Disk

SECTOR_BYTES = 512


class PowerCut(BaseException):
    """Nothing of the process survives it: it must not be caught as an error."""


class Unsynced(Enum):
    DROPPED = "dropped"
    KEPT = "kept"
    TORN = "torn"


class LoggedDisk(Disk):
    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.log: list[tuple[Any, ...]] = []
        self._lock = threading.Lock()
        self._inodes: dict[str, int] = {}  # by path
        self._open: dict[int, tuple[int, bool]] = {}  # fd: inode, appends
        self._positions: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._directories: dict[int, str] = {}

    def note(self, *words: Any) -> None:
        """Something that the queue has promised by now."""
        with self._lock:
            self.log.append(("note", *words))

    def make_directory(self, path: Path) -> None:
        super().make_directory(path)
        self._add("mkdir", self._name(path))

    def open(self, path: Path | str, flags: int) -> int:
        name = self._name(path)
        with self._lock:
            fd = super().open(path, flags)
            if name not in self._inodes:
                inode = self._inodes[name] = len(self._sizes)
                self._sizes[inode] = 0
                self.log.append(("create", name, inode))
            inode = self._inodes[name]
            if flags & os.O_TRUNC and self._sizes[inode]:
                self._sizes[inode] = 0
                self.log.append(("truncate", inode))
            self._open[fd] = inode, bool(flags & os.O_APPEND)
            self._positions[fd] = 0
        return fd

    def open_directory(self, path: Path) -> int:
        fd = super().open_directory(path)
        self._directories[fd] = self._name(path)
        return fd

    def allocate(self, fd: int, size_bytes: int) -> None:
        super().allocate(fd, size_bytes)
        self._logged_write(fd, 0, bytes(size_bytes))

    def write(self, fd: int, data: bytes) -> None:
        super().write(fd, data)
        inode, appends = self._open[fd]
        offset = self._sizes[inode] if appends else self._positions[fd]
        self._positions[fd] = offset + len(data)
        self._logged_write(fd, offset, data)

    def pwrite(self, fd: int, data: bytes, offset_bytes: int) -> None:
        super().pwrite(fd, data, offset_bytes)
        self._logged_write(fd, offset_bytes, data)

    def fdatasync(self, fd: int) -> None:
        super().fdatasync(fd)
        self._add("sync", self._open[fd][0])

    def rename(self, source: Path | str, target: Path | str) -> None:
        with self._lock:
            super().rename(source, target)
            self._inodes[self._name(target)] = self._inodes.pop(self._name(source))
            self.log.append(("rename", self._name(source), self._name(target)))

    def unlink(self, path: Path | str) -> None:
        with self._lock:
            super().unlink(path)
            if self._inodes.pop(self._name(path), None) is not None:
                self.log.append(("unlink", self._name(path)))

    def sync_directory(self, directory_fd: int) -> None:
        super().sync_directory(directory_fd)
        self._add("sync names", self._directories[directory_fd])

    def _name(self, path: Path | str) -> str:
        return os.path.relpath(path, self.root)

    def _add(self, *entry: Any) -> None:
        with self._lock:
            self.log.append(entry)

    def _logged_write(self, fd: int, offset: int, data: bytes) -> None:
        inode = self._open[fd][0]
        with self._lock:
            self._sizes[inode] = max(self._sizes[inode], offset + len(data))
            self.log.append(("write", inode, offset, bytes(data)))


@dataclass
class _Inode:
    content: bytearray = field(default_factory=bytearray)  # durable
    pending: list[tuple[int, bytes]] = field(default_factory=list)


def rebuild(log: list[tuple[Any, ...]], target: Path, unsynced: Unsynced, seed: int = 0) -> None:
    """Lay out under ``target`` what the disk may hold when the power goes after the last entry of ``log``."""
    choices = random.Random(seed)
    inodes: dict[int, _Inode] = {}
    names: dict[str, int | None] = {}  # None: a folder
    pending_names: list[tuple[Any, ...]] = []
    target.mkdir(parents=True)
    for entry in log:
        match entry:
            case ("create", _, int(inode)):
                inodes[inode] = _Inode()
                pending_names.append(entry)
            case ("rename" | "unlink" | "mkdir", *_):
                pending_names.append(entry)
            case ("truncate", int(inode)):
                inodes[inode] = _Inode()
            case ("write", int(inode), int(offset), bytes(data)):
                inodes[inode].pending.append((offset, data))
            case ("sync", int(inode)):
                for offset, data in inodes[inode].pending:
                    _put(inodes[inode].content, offset, data)
                inodes[inode].pending.clear()
            case ("sync names", str(directory)):
                for change in [c for c in pending_names if _touches(c, directory)]:
                    _rename(names, change)
                    pending_names.remove(change)
    for change in pending_names[: _how_many(unsynced, len(pending_names), choices)]:
        _rename(names, change)
    for name, held in sorted(names.items()):
        if not (target / name).parent.is_dir():
            continue  # its folder is lost
        if held is None:
            (target / name).mkdir(mode=0o700)
            continue
        content = bytearray(inodes[held].content)
        for offset, data in _surviving(inodes[held].pending, unsynced, choices):
            _put(content, offset, data)
        (target / name).write_bytes(content)


def _touches(change: tuple[Any, ...], directory: str) -> bool:
    paths = [word for word in change[1:] if isinstance(word, str)]
    return any((os.path.dirname(path) or ".") == directory for path in paths)  # noqa: PTH120


def _rename(names: dict[str, int | None], change: tuple[Any, ...]) -> None:
    match change:
        case ("mkdir", name):
            names[name] = None
        case ("create", name, inode):
            names[name] = inode
        case ("rename", source, target):
            if source in names:
                names[target] = names.pop(source)
        case ("unlink", name):
            names.pop(name, None)


def _how_many(unsynced: Unsynced, count: int, choices: random.Random) -> int:
    return {Unsynced.DROPPED: 0, Unsynced.KEPT: count, Unsynced.TORN: choices.randint(0, count)}[unsynced]


def _surviving(
    pending: list[tuple[int, bytes]], unsynced: Unsynced, choices: random.Random
) -> list[tuple[int, bytes]]:
    if unsynced is Unsynced.DROPPED:
        return []
    if unsynced is Unsynced.KEPT:
        return pending
    survived: list[tuple[int, bytes]] = []
    for offset, data in pending:
        for start in range(0, len(data), SECTOR_BYTES):
            if choices.random() < 0.5:
                survived.append((offset + start, data[start : start + SECTOR_BYTES]))
    return survived


def _put(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset + len(data):
        content.extend(bytes(offset + len(data) - len(content)))
    content[offset : offset + len(data)] = data


class CuttingDisk(Disk):
    """Works for so many calls; from then on the power is gone. ``on_cut`` is called once, in any thread."""

    def __init__(self, calls: int, on_cut: Callable[[], None]) -> None:
        super().__init__()
        self.calls_left = calls
        self.is_cut = False
        self._on_cut = on_cut
        self._lock = threading.Lock()

    def _count(self) -> None:
        with self._lock:
            if self.calls_left > 0:
                self.calls_left -= 1
                return
            first, self.is_cut = not self.is_cut, True
        if first:
            self._on_cut()
        raise PowerCut


def _cut_before(name: str) -> Callable[..., Any]:
    real = getattr(Disk, name)

    def call(self: CuttingDisk, *arguments: Any) -> Any:
        self._count()
        return real(self, *arguments)

    return call


for _name in (
    "make_directory",
    "open",
    "open_directory",
    "allocate",
    "write",
    "pwrite",
    "start_writing",
    "wait_written",
    "fdatasync",
    "rename",
    "unlink",
    "sync_directory",
):
    setattr(CuttingDisk, _name, _cut_before(_name))
