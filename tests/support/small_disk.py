"""A file system in memory that is soon full: tmpfs of a few megabytes. It needs root: ``why_not()`` tells."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


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
        state = os.statvfs(self.path)
        free_bytes = state.f_bavail * state.f_frsize
        with self._ballast.open("ab") as ballast:
            os.posix_fallocate(ballast.fileno(), ballast.tell(), free_bytes - leaving_bytes)

    def clear(self) -> None:
        self._ballast.unlink()


def why_not() -> str:
    return "" if os.geteuid() == 0 else "a disk of its own needs root"
