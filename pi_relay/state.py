"""Small durable state beside the queue: how its files are written, and the last time that is known for sure.

A Pi has no clock chip: after a power cut it may believe in any year. The last known time is noted in the
state folder, so that a clock which runs behind it is found out.

Rules: a file is replaced as a whole or not at all, and is closed to others. It must not know the queue, nor
what the files of others mean.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

# How long a clock that nobody synchronises is distrusted: then a box without Internet works all the same.
CLOCK_PATIENCE_SECONDS = 600.0

_TIME_NOTE = "last-known-time"


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replaces the file's content so that a power cut leaves the old one or the new one. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask says
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


# ── the clock ────────────────────────────────────────────────────────────────────────────────────


def clock_is_wrong(now: float, *, last_known: float, is_synchronised: bool, running_seconds: float) -> bool:
    """Whether the clock must not be believed: it is behind a time that has certainly passed.

    ``now`` and ``last_known`` are seconds since the epoch. A synchronised clock is always believed, any other
    one after the relay has been running for CLOCK_PATIENCE_SECONDS.
    """
    return now < last_known and not is_synchronised and running_seconds < CLOCK_PATIENCE_SECONDS


def last_known_time(directory: Path) -> float:
    """The later of the build and of the last note_time(), in seconds since the epoch."""
    try:
        noted = float((directory / _TIME_NOTE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        noted = 0.0
    return max(_build_time(), noted if 0 <= noted < 1e11 else 0.0)


def note_time(directory: Path, now: float) -> None:
    """For a clock that is believed, and only then: once synchronised, at a stop, beside counters."""
    write_durably(directory / _TIME_NOTE, f"{now:.0f}\n".encode("ascii"))


def _build_time() -> float:
    """When this program was put together: $SOURCE_DATE_EPOCH of the build is the date of its files."""
    with contextlib.suppress(OSError):
        return Path(__file__).stat().st_mtime
    return 0.0


class Clock:
    """Whether the clock of this box can be believed, judged from the start of the process on."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._last_known = last_known_time(directory)
        self._started_at = time.monotonic()

    def is_wrong(self) -> bool:
        now = time.time()
        return now < self._last_known and clock_is_wrong(
            now,
            last_known=self._last_known,
            is_synchronised=clock_is_synchronised(),
            running_seconds=time.monotonic() - self._started_at,
        )

    def note(self) -> None:
        """At a stop: the next start knows at least this time. A clock that is behind notes nothing."""
        now = time.time()
        if now > self._last_known:
            with contextlib.suppress(OSError):
                note_time(self._directory, now)


def clock_is_synchronised() -> bool:
    """What the kernel says (adjtimex(2)); False where it cannot be asked."""
    import ctypes  # a megabyte, which a box with a good clock never needs

    try:
        libc = ctypes.CDLL(None, use_errno=True)
        status = libc.ntp_adjtime(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return False
    return status not in (-1, _TIME_ERROR)


_TIME_ERROR = 5  # sys/timex.h: "clock not synchronized"
