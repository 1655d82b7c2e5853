"""Postfix's smtp-sink as next hop and smtp-source as sender: cheap enough to load both cores with the relay.

Neither keeps mail; what must be read again goes to ``SmtpSink(dump=...)`` or to a private Postfix.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import free_port, greeting, wait_until


class SmtpSink:
    """A next hop that takes everything and counts it.

    ``dump``: a file to which each message is appended, with its envelope as X- headers. ``host``: "" listens
    at every address.
    """

    def __init__(
        self, directory: Path, *, host: str = "127.0.0.1", port: int = 0, dump: Path | None = None
    ) -> None:
        self.port = port or free_port()
        self._host = host
        self._counters = directory / f"smtp-sink-{self.port}.counters"
        # By itself it lets in 100 at a time: one that is many MX hosts at once bears what they all would.
        self._arguments = ["smtp-sink", "-c", "-m", "1000"]
        if os.geteuid() == 0:
            self._arguments += ["-u", "root"]
        if dump is not None:
            self._arguments += ["-D", str(dump)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SmtpSink:
        with self._counters.open("wb") as counters:
            self._process = subprocess.Popen(
                [*self._arguments, f"{self._host}:{self.port}", "512"],
                stdout=counters,
                stderr=subprocess.DEVNULL,
            )
        wait_until(lambda: greeting(self.port), 10, "smtp-sink to answer")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def count(self) -> int:
        """Messages taken since it was started."""
        return self._counted(b"mesg")

    def connections(self) -> int:
        """Sessions that have ended, since it was started."""
        return self._counted(b"sess")

    def _counted(self, what: bytes) -> int:
        with self._counters.open("rb") as counters:
            counters.seek(max(0, self._counters.stat().st_size - 128))
            seen = re.findall(what + rb"=(\d+)", counters.read())
        return int(seen[-1]) if seen else 0

    def wait_for(self, messages: int, timeout_seconds: float) -> float:
        """Wait until so many have come; returns the monotonic time at which that was seen."""
        wait_until(lambda: self.count() >= messages, timeout_seconds, f"{messages} messages at the sink")
        return time.monotonic()


def smtp_source(
    port: int,
    *,
    messages: int,
    sessions: int = 1,
    size_bytes: int = 2048,
    keep_connections: bool = False,
    sender: str = "printer@office.example",
    recipient: str = "someone@office.example",
    timeout_seconds: float = 600,
) -> float:
    """Submit messages as fast as the sessions can; returns the seconds it took until the last 250."""
    started_at = time.monotonic()
    subprocess.run(
        [
            "smtp-source",
            *(["-d"] if keep_connections else []),
            *("-s", str(sessions), "-m", str(messages), "-l", str(size_bytes)),
            *("-f", sender, "-t", recipient, f"127.0.0.1:{port}"),
        ],
        check=True,
        timeout=timeout_seconds,
    )
    return time.monotonic() - started_at


def smtp_sources(
    port: int,
    recipients: Sequence[str],
    *,
    messages: int,
    sessions: int,
    size_bytes: int = 2048,
    sender: str = "printer@office.example",
    timeout_seconds: float = 600,
) -> None:
    """Submit so many messages to each of the recipients, each in one session, so many sessions at once."""
    source = ["smtp-source", "-d", "-m", str(messages), "-l", str(size_bytes), "-f", sender, "-t", "{}"]
    subprocess.run(
        ["xargs", "-P", str(sessions), "-I{}", *source, f"127.0.0.1:{port}"],
        input="\n".join(recipients),
        text=True,
        check=True,
        timeout=timeout_seconds,
    )


def missing_tools() -> str:
    """What keeps these from running here, in words for a skip; "" where nothing does."""
    missing = [tool for tool in ("smtp-sink", "smtp-source") if shutil.which(tool) is None]
    return f"{' and '.join(missing)} not installed (Debian's postfix)" if missing else ""
