"""One relay as an office has it, a device that it knows, and a sink that tells what has arrived."""

from __future__ import annotations

import itertools
import re
import smtplib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from pi_relay.passwords import hash_password
from tests.support import sinks
from tests.support.processes import free_port, wait_until
from tests.support.relay import Relay
from tests.support.sinks import SmtpSink

DEVICE = "127.0.0.2"
PASSWORD = "correct horse"  # noqa: S105
STRANGER = "127.0.0.3"
PATIENCE_SECONDS = 10.0  # the figure is measured by the bench; here it only tells served from not served

# Limits as they come, but for those that the attack is not about.
_CONFIGURATION = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"

[[listeners]]
address = "127.0.0.1:{port}"

[submission]
networks = ["local"]
sender_domains = ["office.example"]
messages_per_hour_max = 0
{submission}

[[devices]]
name = "copier"
address = "127.0.0.2"

[[devices]]
name = "scanner"
username = "scanner"
password_hash = "{password_hash}"

[smart_hosts.office]
host = "127.0.0.1"
port = {smart_host_port}
tls = "off"

[queue]
{queue}
"""


class Office:
    """A relay, a smart host that is dead until promises are looked at, and one known device."""

    def __init__(
        self,
        directory: Path,
        *,
        submission: str = "",
        queue: str = 'free_space_min = "16 MB"',
        state_directory: Path | None = None,
    ) -> None:
        self._dump = directory / "arrived"
        self._sink = SmtpSink(directory, dump=self._dump)
        self.port = free_port()
        self.relay = Relay(
            directory / "relay",
            port=self.port,
            state_directory=state_directory,
            configuration=_CONFIGURATION.format(
                port=self.port,
                smart_host_port=self._sink.port,
                submission=submission,
                queue=queue,
                password_hash=hash_password(PASSWORD),
            ),
        )
        self._promised: set[str] = set()
        self._numbers = itertools.count()

    def submit(self, source: str = DEVICE, size_bytes: int = 2000) -> str:
        """The reply that decided, the greeting's included; a 250 is remembered as a promise."""
        message_id = f"<page-{next(self._numbers)}@office.example>"
        content = f"Message-ID: {message_id}\r\nSubject: a page\r\n\r\n" + "0123456789\r\n" * (
            size_bytes // 12
        )
        try:
            with smtplib.SMTP(
                "127.0.0.1", self.port, timeout=PATIENCE_SECONDS, source_address=(source, 0)
            ) as connection:
                connection.sendmail("copier@office.example", ["someone@office.example"], content)
        except smtplib.SMTPResponseException as refused:
            return f"{refused.smtp_code} {_text(refused.smtp_error)}"
        except smtplib.SMTPRecipientsRefused as refused:
            code, text = next(iter(refused.recipients.values()))
            return f"{code} {_text(text)}"
        self._promised.add(message_id)
        return "250 2.0.0"

    def sign_in(self, source: str) -> None:
        """As the device that has a password."""
        with smtplib.SMTP(
            "127.0.0.1", self.port, timeout=PATIENCE_SECONDS, source_address=(source, 0)
        ) as connection:
            connection.starttls()
            connection.login("scanner", PASSWORD)

    def serves_the_device(self, times: int = 5) -> None:
        """Every message of the known device is accepted, at the first try and before long."""
        for _ in range(times):
            started_at = time.monotonic()
            assert self.submit() == "250 2.0.0"
            assert time.monotonic() - started_at < PATIENCE_SECONDS
            time.sleep(0.2)

    def serves_everybody_again(self, timeout_seconds: float = 15) -> None:
        wait_until(
            lambda: self.submit(STRANGER).startswith("250 "), timeout_seconds, "a stranger to be served"
        )

    def keeps_its_promises(self, more: set[str] = frozenset(), timeout_seconds: float = 60) -> None:  # type: ignore[assignment]
        """All that was accepted arrives once the smart host is there."""
        promised = self._promised | more
        with self._sink:
            self.relay.command("queue", "retry", "--all")
            wait_until(
                lambda: promised <= self.arrived(), timeout_seconds, f"{len(promised)} messages to arrive"
            )

    def arrived(self) -> set[str]:
        """Message-IDs."""
        if not self._dump.exists():
            return set()
        return {found.decode() for found in re.findall(rb"(?m)^Message-ID: (<\S+>)", self._dump.read_bytes())}

    def has_no_tracebacks(self) -> None:
        assert "Traceback" not in self.relay.log.read_text()

    def connections(self) -> int:
        """Open sockets of the relay: those with clients, and a few of its own."""
        return len(psutil.Process(self.relay.pid).net_connections())

    def rss_bytes(self) -> int:
        resident: int = psutil.Process(self.relay.pid).memory_info().rss
        return resident


def _text(words: bytes | str) -> str:
    return words.decode() if isinstance(words, bytes) else words


@pytest.fixture
def open_office(tmp_path: Path) -> Iterator[Callable[..., Office]]:
    """``open_office(...)``: an Office whose relay runs until the test is over, and then is judged."""
    if sinks.missing_tools():
        pytest.skip(sinks.missing_tools())
    with ExitStack() as open_relays:

        def opened(**more: Any) -> Office:
            office = Office(tmp_path, **more)
            open_relays.enter_context(office.relay)
            return office

        yield opened


def connect(port: int, source: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS, source_address=(source, 0))
