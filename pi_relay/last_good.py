"""The last good configuration, kept over restarts.

A file that is spoilt while the relay runs changes nothing; after a power cut the relay would stand before
one that it cannot use, with nobody there. So a copy of what is in force is kept in the state folder. It
holds what the file holds and no more: secrets in files of their own stay there, and relative paths count from
the folder of the original.

Rules: written only when it changes. The admin's file always goes first. It must not know what is in it.
"""

from __future__ import annotations

from pathlib import Path

from pi_relay.config import Config, Finding, check
from pi_relay.state import write_durably

FILE_NAME = "last-good.toml"


def keep(directory: Path, original: Path) -> None:
    """Keep what the file says, for it has just been found good. Raises OSError."""
    path, content = directory / FILE_NAME, original.read_bytes()
    if not path.exists() or path.read_bytes() != content:
        write_durably(path, content, 0o600)


def load(directory: Path, original: Path) -> tuple[Config | None, list[Finding]]:
    """The kept configuration as if ``original`` held it; None: there is none, or it is of no use any more."""
    path = directory / FILE_NAME
    return check(original, content=path) if path.exists() else (None, [])
