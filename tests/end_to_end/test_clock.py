"""The real relay on a box whose clock has lost its year: what it must not tell anybody."""

from __future__ import annotations

import smtplib
import time
from pathlib import Path

import pytest

from pi_relay.state import clock_is_synchronised, note_time
from tests.support.misbehaving_hop import MisbehavingHop
from tests.support.processes import free_port, wait_until
from tests.support.relay import Relay

WITHOUT_DATE = "From: scans@office.example\r\nSubject: a scan\r\n\r\none\r\n"


@pytest.mark.skipif(clock_is_synchronised(), reason="this machine's clock is synchronised, and believed")
def test_a_missing_date_is_added_as_the_message_leaves(tmp_path: Path) -> None:
    hop_port = free_port()
    relay = Relay(tmp_path, smart_host_port=hop_port)
    note_time(relay.state_directory, time.time() + 86_400)
    with relay:
        with smtplib.SMTP("127.0.0.1", relay.port, timeout=20) as client:
            client.sendmail("scans@office.example", "ann@office.example", WITHOUT_DATE)
        (waiting,) = relay.ask("queue", "list")
        stored = relay.command("queue", "export", waiting["queue_id"]).stdout
        assert "Subject: a scan" in stored and "Date:" not in stored
        with MisbehavingHop(port=hop_port) as hop:
            relay.command("queue", "retry", "--all")
            wait_until(lambda: hop.messages, 20, "the message")
    assert hop.messages[0].content.count(b"\r\nDate: ") == 1
