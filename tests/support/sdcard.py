"""An SD card for tests and bench: a disk in a FUSE file, below a loop device with ext4.

The kernel's writes and flushes reach the FUSE process one at a time, which makes each take as long as a card
would, counts them, and (``log=True``) keeps them in order, so that ``tests.support.power_cut`` can rebuild
the disk as it was at any moment. It needs root, /dev/fuse and loop devices: ``why_not()`` tells.

Run as a program it is that FUSE process.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RECORD = struct.Struct("<cQI")  # kind (WRITE or FLUSH), offset, length; a write's bytes follow
WRITE, FLUSH = b"W", b"F"


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds a request takes. The defaults are a middling card's: a new file with fsync takes 11 ms."""

    random_write: float = 1.5e-3
    sequential_write: float = 0.2e-3  # it starts where the last write ended
    read: float = 0.6e-3
    flush: float = 2.5e-3  # where anything was written since the last one
    per_byte: float = 1 / (18 * 1024 * 1024)


FREE = Costs(0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Counters:
    writes: int = 0
    bytes_written: int = 0
    flushes: int = 0  # of a disk with something to flush

    def __sub__(self, other: Counters) -> Counters:
        return Counters(
            self.writes - other.writes,
            self.bytes_written - other.bytes_written,
            self.flushes - other.flushes,
        )


class SdCard:
    """An ext4 file system on such a disk, mounted at ``self.path`` as long as the context lasts."""

    def __init__(self, directory: Path, *, size_bytes: int, costs: Costs = FREE, log: bool = False) -> None:
        self.path = directory / "card"
        self.base = directory / "base.img"  # the disk before anything was mounted; kept only with a log
        self.log = directory / "writes.log"
        self._image = directory / "disk.img"
        self._fuse = directory / "fuse"
        self._size_bytes = size_bytes
        self._costs = costs
        self._logged = log
        self._process: subprocess.Popen[bytes] | None = None
        self._loop_device = ""

    def __enter__(self) -> SdCard:
        try:
            self._make_image()
            self._serve()
            self._loop_device = _run(
                "losetup", "--show", "--find", "--direct-io=on", str(self._fuse / "disk")
            )
            self.path.mkdir()
            _run("mount", "-t", "ext4", self._loop_device, str(self.path))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.path.is_mount() and subprocess.run(["umount", str(self.path)], check=False).returncode:
            _run("umount", "--lazy", str(self.path))  # somebody holds a file open: still clean up
        if self._loop_device:
            _run("losetup", "--detach", self._loop_device)
            self._loop_device = ""
        if self._process is not None:
            self._process.terminate()  # libfuse unmounts on SIGTERM
            self._process.wait(30)
            self._process = None

    def counters(self) -> Counters:
        return Counters(**json.loads((self._fuse / "counters").read_text()))

    def fail(self, *, writes: bool = False, flushes: bool = False) -> None:
        """From now on such requests end in an I/O error; ``fail()`` heals the disk."""
        (self._fuse / "faults").write_text(f"{'W' * writes}{'F' * flushes}.")

    def remount(self) -> None:
        """What a restart of the machine does for a file system that has given up after errors."""
        _run("umount", str(self.path))
        _run("mount", "-t", "ext4", self._loop_device, str(self.path))

    def log_position(self) -> int:
        """How much has been logged so far: what was acknowledged by now must outlive a cut here or later."""
        return self.log.stat().st_size

    def _make_image(self) -> None:
        with self._image.open("wb") as image:
            image.truncate(self._size_bytes)
        _run(
            "mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self._image)
        )
        if self._logged:
            _run("cp", "--sparse=always", str(self._image), str(self.base))
            self.log.touch()

    def _serve(self) -> None:
        self._fuse.mkdir()
        options = [f"--{name.replace('_', '-')}={getattr(self._costs, name)}" for name in Costs.__slots__]
        if self._logged:
            options.append(f"--log={self.log}")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.sdcard", str(self._image), str(self._fuse), *options],
            cwd=Path(__file__).parents[2],
        )
        deadline = time.monotonic() + 10
        while not self._fuse.is_mount():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the FUSE disk did not start")
            time.sleep(0.01)


def why_not() -> str:
    """What keeps an SD card from being emulated here, in words for a skip; "" where nothing does."""
    if os.geteuid() != 0:
        return "an emulated SD card needs root"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not os.access(device, os.W_OK):
            return f"an emulated SD card needs {device}"
    try:
        _import_fuse()
    except (ImportError, OSError) as error:
        return f"an emulated SD card needs libfuse2 and fusepy: {error}"
    return "" if shutil.which("mkfs.ext4") else "an emulated SD card needs mkfs.ext4"


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout.strip()


def _import_fuse() -> Any:
    import fuse  # loads libfuse2, which only those who emulate a card have

    return fuse


class _Disk:
    """The FUSE operations, one at a time: /disk the disk, /counters what it did, /faults what must fail."""

    def __init__(self, image: Path, costs: Costs, log: Path | None) -> None:
        self._image = os.open(image, os.O_RDWR)
        self._size_bytes = os.fstat(self._image).st_size
        self._costs = costs
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND) if log else None
        self._writes = self._bytes_written = self._flushes = 0
        self._dirty = False
        self._failing = b""
        self._next_offset = -1

    def __call__(self, operation: str, *arguments: Any) -> Any:
        """fusepy's entry: an operation by its name."""
        method = getattr(self, operation, None)
        if method is None:
            raise OSError(errno.ENOSYS, operation)
        return method(*arguments)

    def init(self, _path: str) -> None:
        """Nothing to prepare."""

    def destroy(self, _path: str) -> None:
        os.close(self._image)

    def getattr(self, path: str, _handle: int | None = None) -> dict[str, int]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        if path == "/disk":
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": self._size_bytes}
        if path == "/counters":
            return {"st_mode": stat.S_IFREG | 0o400, "st_nlink": 1, "st_size": 4096}
        if path == "/faults":
            return {"st_mode": stat.S_IFREG | 0o200, "st_nlink": 1, "st_size": 0}
        raise OSError(errno.ENOENT, path)

    def readdir(self, _path: str, _handle: int) -> list[str]:
        return [".", "..", "disk", "counters", "faults"]

    def open(self, _path: str, _flags: int) -> int:
        return 0

    def read(self, path: str, length: int, offset: int, _handle: int) -> bytes:
        if path == "/counters":
            counters = asdict(Counters(self._writes, self._bytes_written, self._flushes))
            return json.dumps(counters).encode()[offset : offset + length]
        started_at = time.monotonic()
        data = os.pread(self._image, length, offset)
        self._next_offset = -1
        self._take(started_at, self._costs.read + length * self._costs.per_byte)
        return data

    def truncate(self, path: str, _length: int, _handle: int | None = None) -> None:
        if path != "/faults":  # written anew each time
            raise OSError(errno.EPERM, path)

    def write(self, path: str, data: bytes, offset: int, _handle: int) -> int:
        if path == "/faults":
            self._failing = data
            return len(data)
        if WRITE in self._failing:
            raise OSError(errno.EIO, "write")
        started_at = time.monotonic()
        os.pwrite(self._image, data, offset)
        self._note(WRITE, offset, data)
        self._writes += 1
        self._bytes_written += len(data)
        self._dirty = True
        seek = self._costs.sequential_write if offset == self._next_offset else self._costs.random_write
        self._next_offset = offset + len(data)
        self._take(started_at, seek + len(data) * self._costs.per_byte)
        return len(data)

    def fsync(self, _path: str, _data_only: int, _handle: int) -> int:
        if FLUSH in self._failing:
            raise OSError(errno.EIO, "flush")
        started_at = time.monotonic()
        if self._dirty:
            self._take(started_at, self._costs.flush)
            self._note(FLUSH, 0, b"")
            self._flushes += 1
            self._dirty = False
        return 0

    def _note(self, kind: bytes, offset: int, data: bytes) -> None:
        if self._log is not None:
            os.writev(self._log, [RECORD.pack(kind, offset, len(data)), data])

    @staticmethod
    def _take(started_at: float, seconds: float) -> None:
        left = started_at + seconds - time.monotonic()
        if left > 0:
            time.sleep(left)


def _main() -> None:
    parser = argparse.ArgumentParser(description="Serve one disk image by FUSE, as slowly as a card would.")
    parser.add_argument("image", type=Path)
    parser.add_argument("mount_point", type=Path)
    parser.add_argument("--log", type=Path)
    for name in Costs.__slots__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, required=True)
    arguments = parser.parse_args()
    costs = Costs(*(getattr(arguments, name) for name in Costs.__slots__))
    ctypes.CDLL(None).prctl(29, 1, 0, 0, 0)  # PR_SET_TIMERSLACK: sleep for as long as asked, not 50 us more
    _import_fuse().FUSE(
        _Disk(arguments.image, costs, arguments.log),
        str(arguments.mount_point),
        foreground=True,
        nothreads=True,  # a card does one thing at a time
        direct_io=True,
        big_writes=True,
        max_write=128 * 1024,
    )


if __name__ == "__main__":
    _main()
