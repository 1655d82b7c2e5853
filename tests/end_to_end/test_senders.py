"""Who sends as whom, from a device to what the next hop is shown, by the real daemon."""

from __future__ import annotations

import re
import smtplib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pi_relay.maillog import parse_line
from tests.support.misbehaving_hop import MisbehavingHop
from tests.support.processes import free_port, wait_until
from tests.support.relay import Relay

CONFIGURATION = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"

[[listeners]]
address = "127.0.0.1:{port}"

[submission]
sender_domains = ["office.example"]
default_sender = "relay@office.example"

[[devices]]
name = "copier"
address = "127.0.0.9"
sender = "Copier 2F <scans@office.example>"

[smart_hosts.own]
host = "127.0.0.1"
port = {own_port}
tls = "off"

[smart_hosts.isp]
host = "127.0.0.1"
port = {isp_port}
tls = "off"
sender = "u1234@isp.example"

[[routes]]
recipients = ["*@isp-only.example", "*@office.example"]
via = ["isp"]

[[routes]]
senders = ["relay@office.example", "scans@office.example"]
via = ["own"]

[queue]
free_space_min = "16 MB"
"""


def _answer_to_rcpt(argument: str) -> str:
    return "550 5.1.1 nobody of that name" if "nobody@" in argument else "250 ok"


class Office:
    """A relay with two smart hosts: ``own`` takes mail as it is, ``isp`` demands its own sender."""

    def __init__(self, relay: Relay, own: MisbehavingHop, isp: MisbehavingHop) -> None:
        self.relay, self.own, self.isp = relay, own, isp

    def send(self, to: str, header: str, *, reverse_path: str, device: str = "127.0.0.1") -> None:
        message = f"{header}Date: x\r\nMessage-ID: <1@x>\r\n\r\nFrom: a page\r\n"
        with smtplib.SMTP("127.0.0.1", self.relay.port, timeout=20, source_address=(device, 0)) as client:
            client.sendmail(reverse_path, to, message)

    def arrived(self, hop: MisbehavingHop, number: int = 1) -> tuple[str, str]:
        """The reverse-path, and the message less our Received."""
        wait_until(lambda: len(hop.messages) >= number, 20, "the message")
        message = hop.messages[number - 1]
        content = message.content.decode()
        own_field = re.match(r"Received: [^\r]*(?:\r\n\t[^\r]*)+\r\n", content)
        return message.mail.split()[0].removeprefix("FROM:"), content[own_field.end() if own_field else 0 :]

    def log(self, event: str) -> list[dict[str, str]]:
        time.sleep(0.2)
        lines = [parse_line(line) for line in self.relay.log.read_text().splitlines()]
        return [line for line in lines if line and line["event"] == event]


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with MisbehavingHop() as own, MisbehavingHop({"RCPT": _answer_to_rcpt}) as isp:
        port = free_port()
        configuration = CONFIGURATION.format(port=port, own_port=own.port, isp_port=isp.port)
        with Relay(tmp_path, port=port, configuration=configuration) as relay:
            yield Office(relay, own, isp)


def test_a_forged_sender_leaves_as_the_default_one(office: Office) -> None:
    office.send("a@x.example", "From: Boss <boss@evil.example>\r\n", reverse_path="boss@evil.example")
    assert office.arrived(office.own) == (
        "<relay@office.example>",
        "From: Boss <relay@office.example>\r\nReply-To: Boss <boss@evil.example>\r\n"
        "Date: x\r\nMessage-ID: <1@x>\r\n\r\nFrom: a page\r\n",
    )
    (accepted,) = office.log("accepted")
    assert (accepted["from"], accepted["claimed"]) == ("relay@office.example", "boss@evil.example")
    assert not office.log("rewritten")
    told = office.relay.command("trace", "boss@evil.example").stdout
    assert "not as boss@evil.example (changed: reverse_path,from,reply_to)" in told


def test_a_device_and_then_a_host_have_their_own(office: Office) -> None:
    """Whom people would answer is who wrote it: the first Reply-To stays."""
    office.send("a@isp-only.example", "From: ann@office.example\r\n", reverse_path="x", device="127.0.0.9")
    assert office.arrived(office.isp) == (
        "<u1234@isp.example>",
        "From: Copier 2F <u1234@isp.example>\r\nReply-To: ann@office.example\r\n"
        "Date: x\r\nMessage-ID: <1@x>\r\n\r\nFrom: a page\r\n",
    )
    (rewritten,) = office.log("rewritten")
    assert rewritten["from"] == "u1234@isp.example" and rewritten["next_hop"] == "isp"
    assert rewritten["rewritten"] == "reverse_path,from"
    assert rewritten["claimed"] == "scans@office.example"


def test_a_report_goes_to_whom_the_device_named_in_the_name_that_the_host_demands(office: Office) -> None:
    office.send(
        "nobody@isp-only.example",
        "From: ann@office.example\r\n",
        reverse_path="ann@office.example",
        device="127.0.0.9",
    )
    reverse_path, report = office.arrived(office.isp)
    assert reverse_path == "<>" and office.isp.messages[0].rcpts == ["TO:<ann@office.example>"]
    assert report.startswith("From: Mail relay <u1234@isp.example>\r\nTo: <ann@office.example>\r\n")
    assert "\r\nReply-To:" not in report.partition("\r\n\r\n")[0]


def test_a_stranger_does_not_get_the_report(office: Office) -> None:
    office.send("nobody@isp-only.example", "From: boss@evil.example\r\n", reverse_path="boss@evil.example")
    office.arrived(office.isp)
    assert office.isp.messages[0].rcpts == ["TO:<admin@office.example>"]
