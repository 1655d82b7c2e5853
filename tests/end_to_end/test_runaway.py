"""A device that sends without end: held, listed, kept over a restart, let go by its name."""

from __future__ import annotations

import re
import smtplib
from pathlib import Path

import pytest

from tests.support.misbehaving_hop import MisbehavingHop
from tests.support.processes import free_port, wait_until
from tests.support.relay import Relay

CONTENT = b"From: scans@office.example\r\nSubject: Motion\r\n\r\nA picture\r\n"

_FILE = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"
[[listeners]]
address = "127.0.0.1:{port}"
[submission]
messages_per_hour_max = 2
[[devices]]
name = "camera"
address = "127.0.0.3"
messages_per_hour_max = 3
[smart_hosts.office]
host = "127.0.0.1"
port = {smart_host_port}
tls = "off"
[queue]
free_space_min = "16 MB"
"""


def send(relay: Relay, source: str, count: int) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port, timeout=30, source_address=(source, 0)) as client:
        for _ in range(count):
            client.sendmail("scans@office.example", ["ann@far.example"], CONTENT)


def relayed(hop: MisbehavingHop) -> int:
    """Messages, not copies: a crash may repeat what had just left."""
    return len({re.findall(rb"^Message-ID: (\S+)", message.content, re.M)[0] for message in hop.messages})


def test_a_runaway_is_held_over_a_restart_until_it_is_let_go(tmp_path: Path) -> None:
    port = free_port()
    with MisbehavingHop() as hop:
        configuration = _FILE.format(port=port, smart_host_port=hop.port)
        with Relay(tmp_path, port=port, configuration=configuration) as relay:
            send(relay, "127.0.0.3", 5)
            send(relay, "127.0.0.1", 3)
            wait_until(lambda: relayed(hop) == 5, 20, "what was within the limits")
            wait_until((relay.state_directory / "quotas.json").exists, 20, "the counts, written soon")
            relay.kill()
            relay.start()
            held = relay.ask("queue", "list", "--state", "held")
            assert sorted(each["device"] for each in held) == ["", "camera", "camera"]
            status = relay.ask("status")
            assert status["queue"]["held"] == 3
            relay.stop()
            relay.start()
            send(relay, "127.0.0.3", 4)
            with pytest.raises(smtplib.SMTPSenderRefused) as refused:
                send(relay, "127.0.0.3", 1)
            assert refused.value.smtp_code == 450 and b"4.7.1" in refused.value.smtp_error  # type: ignore[operator]
            assert any("camera is over its limit of 3" in each for each in relay.ask("status")["reasons"])
            relay.command("queue", "release", "--device", "camera")
            wait_until(lambda: relayed(hop) == 11, 20, "what was let go")
            assert len(relay.ask("queue", "list", "--device", "127.0.0.1")) == 1
            relay.command("queue", "release", "--device", "127.0.0.1")
            wait_until(lambda: relayed(hop) == 12, 20, "what an unknown client had sent")
            assert not relay.ask("queue", "list")
            log = relay.log.read_text()
    alerts = [line for line in log.splitlines() if line.startswith("alert ") and "started anew" not in line]
    assert len(alerts) == 4, "for each held once in each process, for the refusal once"
    assert 'alert reason="over its limit of 3 messages an hour, its mail is held" device=camera' in log
