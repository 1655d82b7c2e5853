"""A file system in memory that is soon full: tmpfs of a few megabytes. It needs root: ``why_not()`` tells."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.support.processes import wait_until


class SmallDisk:
    """Mounted at ``self.path`` as long as the context lasts. ``fill`` and ``clear``: ballast of others."""

    def __init__(self, directory: Path, *, size_bytes: int) -> None:
        self.path = directory / "small"
        self._size_bytes = size_bytes
        self._ballast = self.path / "ballast"

    def __enter__(self) -> SmallDisk:
        self.path.mkdir()
        options = f"size={self._size_bytes},mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        if subprocess.run(["umount", str(self.path)], check=False).returncode:
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)

    def fill(self, leaving_bytes: int = 0) -> None:
        wait_until(lambda: self._take_all_but(leaving_bytes), 10, "the disk to be filled")

    def _take_all_but(self, leaving_bytes: int) -> bool:
        """False where somebody else has just taken some of it."""
        state = os.statvfs(self.path)
        free_bytes = state.f_bavail * state.f_frsize
        with self._ballast.open("ab") as ballast, suppress(OSError):
            os.posix_fallocate(ballast.fileno(), ballast.tell(), free_bytes - leaving_bytes)
            return True
        return False

    def clear(self) -> None:
        self._ballast.unlink()


def why_not() -> str:
    return "" if os.geteuid() == 0 else "a disk of its own needs root"
