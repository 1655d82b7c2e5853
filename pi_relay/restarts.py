"""Why the relay was started anew: how the run before this one ended, when nobody had asked for it.

While the relay runs, a note lies in the state folder; it goes at a stop in good order. Whoever finds it at a
start knows that the run before was cut short. What systemd knows of that, the unit's ExecStopPost= has
written beside it; and what the watchdog found, if anything, is in the note itself.

Rules: written at a start, at a stop, and when the watchdog despairs; never in between. It must not know what
is wrong with whom.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pi_relay.state import write_durably
from pi_relay.status import Restart

RUNNING_FILE = "running.json"
RESULT_FILE = "service-result"  # "$SERVICE_RESULT $EXIT_CODE $EXIT_STATUS" (systemd.exec(5)), by the unit
LAST_RESTART_FILE = "last-restart.json"
RESULT_SIZE_MAX_BYTES = 200

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# By $SERVICE_RESULT. "{}" is the signal's name or the exit status.
_RESULTS = {
    "watchdog": "it gave the watchdog no sign of life",
    "oom-kill": "it was killed: out of memory",
    "signal": "it was killed by signal {}",
    "core-dump": "it crashed by signal {}",
    "exit-code": "it ended with exit status {}",
    "timeout": "it took too long to start or to stop, and was killed",
}
MACHINE_WENT_DOWN = "the machine went down without a stop: a power cut, a reset or a crash"
KILLED = "it was killed, or crashed"


class Restarts:
    """The notes of one state folder. Where the disk takes none, they are missing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.last: Restart | None = None  # that nobody had asked for

    def begin(self) -> Restart | None:
        """At a start, once we are alone on the queue: what became of the run before, None: all was well."""
        reason = self._how_it_ended()
        self.last = self._read_last()
        restart = Restart(time.time(), reason) if reason else None
        with contextlib.suppress(OSError):
            if restart is not None:
                self.last = restart
                self._write(LAST_RESTART_FILE, asdict(restart))
            self._write(RUNNING_FILE, {"boot_id": _boot_id()})
            (self._directory / RESULT_FILE).unlink(missing_ok=True)
        return restart

    def note(self, trouble: str) -> None:
        """What may soon be the reason of a restart; "" takes it back."""
        with contextlib.suppress(OSError):
            self._write(RUNNING_FILE, {"boot_id": _boot_id(), "trouble": trouble})

    def end(self) -> None:
        """At a stop in good order."""
        with contextlib.suppress(OSError):
            (self._directory / RUNNING_FILE).unlink(missing_ok=True)

    def _how_it_ended(self) -> str:
        """In words; "" where it was in good order."""
        running, result = self._read(RUNNING_FILE), self._result()
        if running is None and not result:
            return ""
        if not result:
            same_boot = running is not None and running.get("boot_id") == _boot_id()
            result = KILLED if same_boot else MACHINE_WENT_DOWN
        trouble = str(running.get("trouble", "")) if running else ""
        return f"{result} ({trouble})" if trouble else result

    def _result(self) -> str:
        try:
            words = (self._directory / RESULT_FILE).read_text("utf-8", "replace")
        except OSError:
            return ""
        result, _, status = words[:RESULT_SIZE_MAX_BYTES].strip().partition(" ")
        if result in _RESULTS:
            return _RESULTS[result].format(status.rpartition(" ")[2] or "?")
        return f"systemd says: {result}" if result else ""

    def _read_last(self) -> Restart | None:
        noted = self._read(LAST_RESTART_FILE) or {}
        at, reason = noted.get("at"), noted.get("reason")
        return Restart(at, reason) if isinstance(at, int | float) and isinstance(reason, str) else None

    def _read(self, name: str) -> dict[str, Any] | None:
        """None where there is none; an unreadable one says nothing."""
        try:
            noted = json.loads((self._directory / name).read_text("utf-8", "replace"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}

    def _write(self, name: str, noted: dict[str, Any]) -> None:
        write_durably(self._directory / name, json.dumps(noted).encode() + b"\n")


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""
