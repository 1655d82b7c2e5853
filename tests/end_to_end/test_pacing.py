"""A quota of the smart host, over restarts of the relay: counted as it was before."""

from __future__ import annotations

import smtplib
from pathlib import Path

from tests.support.misbehaving_hop import MisbehavingHop
from tests.support.processes import wait_until
from tests.support.relay import Relay

CONTENT = b"From: scans@office.example\r\nSubject: Scan 0042\r\n\r\nFirst page\r\n"


def submit(relay: Relay, count: int) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port, timeout=30) as client:
        for _ in range(count):
            client.sendmail("scans@office.example", ["ann@far.example"], CONTENT)


def test_a_spent_quota_is_still_spent_after_a_restart_and_status_says_so(tmp_path: Path) -> None:
    limit = "messages_per_hour_max = 3"
    with MisbehavingHop() as hop, Relay(tmp_path, smart_host_port=hop.port, smart_host_extra=limit) as relay:
        submit(relay, 2)
        wait_until(lambda: not relay.ask("queue", "list"), 20, "an empty queue")
        relay.stop()
        relay.start()
        submit(relay, 3)
        wait_until(lambda: len(hop.messages) == 3, 20, "three messages")
        status = relay.ask("status")
        assert status["health"] == "degraded"
        assert "paced until" in status["reasons"][0] and "messages_per_hour_max (3)" in status["reasons"][0]
        assert status["smart_hosts"][0]["pace"] == "messages_per_hour_max (3) is reached"
        assert "office is paced: messages_per_hour_max (3)" in relay.command("status").stdout
        waiting = relay.ask("queue", "list")
        assert len(waiting) == 2 and all(each["next_attempt_at"] for each in waiting)
        relay.stop()
        relay.start()
        relay.command("queue", "retry", "--all")
        submit(relay, 1)
        assert len(relay.ask("queue", "list")) == 3
        assert len(hop.messages) == 3, "neither a restart nor `queue retry` makes the quota larger"
