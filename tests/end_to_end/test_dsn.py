"""NOTIFY, ORCPT, ENVID and RET (RFC 3461), from the device to the report: real clients, real next hops."""

from __future__ import annotations

import re
import smtplib
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path

import pytest
from flufl.bounce import all_failures

from tests.support import postfix
from tests.support.misbehaving_hop import EXTENSIONS, Message, MisbehavingHop
from tests.support.postfix import Postfix
from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.reports import fields_of, report_in

SENDER = "scans@office.example"
CONTENT = (
    b"From: scans@office.example\r\nSubject: Scan 0042\r\nMessage-ID: <42@office.example>\r\n\r\n"
    b"First page\r\n"
)
WITHOUT_DSN = tuple(word for word in EXTENSIONS if word != "DSN")
UNKNOWN = "550 5.1.1 no such user here"


def submit(
    relay: Relay, *recipients: tuple[str, str], sender: str = SENDER, mail: Sequence[str] = ()
) -> None:
    """``recipients``: an address, and the parameters of its RCPT."""
    with smtplib.SMTP("127.0.0.1", relay.port, timeout=30) as client:
        client.ehlo()
        assert client.has_extn("dsn")
        assert client.mail(sender, list(mail))[0] == 250
        for address, options in recipients:
            assert client.rcpt(address, options.split())[0] == 250
        assert client.data(CONTENT)[0] == 250


def reports(hop: MisbehavingHop) -> list[Message]:
    return [message for message in hop.messages if message.mail.startswith("FROM:<>")]


def reported(hop: MisbehavingHop) -> EmailMessage:
    wait_until(lambda: reports(hop), 20, "a report at the next hop")
    [report] = reports(hop)
    assert report.rcpts == [f"TO:<{SENDER}>"]
    return report_in(report.content)


def emptied(relay: Relay) -> None:
    wait_until(lambda: not relay.ask("queue", "list"), 20, "an empty queue")


def test_success_beyond_a_hop_without_dsn_is_reported_as_relayed(tmp_path: Path) -> None:
    with MisbehavingHop(extensions=WITHOUT_DSN) as hop, Relay(tmp_path, smart_host_port=hop.port) as relay:
        submit(
            relay,
            ("ann@far.example", "NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;Ann+2Bscan@far.example"),
            ("bob@far.example", "NOTIFY=FAILURE"),
            mail=["ENVID=QQ+3D314"],
        )
        report = reported(hop)
        emptied(relay)
    of_message, ann = fields_of(report)
    assert of_message["original-envelope-id"] == "QQ=314"
    assert (ann["action"], ann["status"]) == ("relayed", "2.0.0")
    assert ann["original-recipient"] == "rfc822;Ann+scan@far.example"
    assert ann["final-recipient"] == "rfc822;ann@far.example"
    assert re.fullmatch(r"FROM:<scans@office\.example> SIZE=\d+", hop.messages[0].mail)
    assert hop.messages[0].rcpts == ["TO:<ann@far.example>", "TO:<bob@far.example>"]


def test_a_hop_with_dsn_gets_all_as_it_came_and_we_report_nothing(tmp_path: Path) -> None:
    with MisbehavingHop() as hop, Relay(tmp_path, smart_host_port=hop.port) as relay:
        submit(
            relay,
            ("ann@far.example", "NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Ann+2Bscan@Far.example"),
            ("bob@far.example", "NOTIFY=NEVER"),
            ("eve@far.example", ""),
            mail=["RET=FULL", "ENVID=QQ+3D314"],
        )
        emptied(relay)
    [message] = hop.messages
    assert message.mail.endswith(" RET=FULL ENVID=QQ+3D314")
    assert message.rcpts == [
        "TO:<ann@far.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Ann+2Bscan@Far.example",
        "TO:<bob@far.example> NOTIFY=NEVER",
        "TO:<eve@far.example>",
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [("NOTIFY=NEVER", False), ("NOTIFY=SUCCESS,DELAY", False), ("NOTIFY=FAILURE", True), ("", True)],
)
def test_a_failure_is_told_to_those_who_want_to_know(tmp_path: Path, options: str, told: bool) -> None:
    def unknown(argument: str) -> str:
        return UNKNOWN if "ann@" in argument else "250 2.1.5 ok"

    with MisbehavingHop({"RCPT": unknown}) as hop, Relay(tmp_path, smart_host_port=hop.port) as relay:
        submit(relay, ("ann@far.example", options), mail=["RET=FULL"])
        emptied(relay)
        failed = relay.ask("trace", "ann@far.example")
        assert bool(reports(hop)) == told
        if told:
            report = reported(hop)
            assert all_failures(report) == (set(), {b"ann@far.example"})
            assert "First page" in report.as_string(), "RET=FULL brings it back whole"
    assert failed


def test_a_null_reverse_path_is_never_answered(tmp_path: Path) -> None:
    with MisbehavingHop({"RCPT": UNKNOWN}) as hop, Relay(tmp_path, smart_host_port=hop.port) as relay:
        submit(relay, ("ann@far.example", "NOTIFY=FAILURE,SUCCESS"), sender="<>", mail=["RET=FULL"])
        emptied(relay)
        assert not hop.messages


@pytest.mark.parametrize(("options", "told"), [("NOTIFY=DELAY", True), ("NOTIFY=FAILURE", False)])
def test_a_delay_is_told_to_those_who_want_to_know(tmp_path: Path, options: str, told: bool) -> None:
    def greylisting(argument: str) -> str:
        return "450 4.7.1 greylisted" if "ann@" in argument else "250 2.1.5 ok"

    relay = Relay(
        tmp_path, smart_host_port=0, queue_extra='retry_delays = ["1s"]\ndelay_warning_after = "2s"'
    )
    with MisbehavingHop({"RCPT": greylisting}) as hop:
        relay = Relay(
            tmp_path / "relay",
            smart_host_port=hop.port,
            queue_extra='retry_delays = ["1s"]\ndelay_warning_after = "2s"',
        )
        with relay:
            submit(relay, ("ann@far.example", options))
            wait_until(lambda: len([each for each in hop.commands if "ann@" in each]) > 4, 20, "retries")
            if told:
                assert fields_of(reported(hop))[1]["action"] == "delayed"
            else:
                assert not reports(hop)


@pytest.mark.skipif(bool(postfix.why_not()), reason=postfix.why_not())
def test_postfix_takes_over_what_it_is_asked_to_notify(tmp_path: Path) -> None:
    with Postfix() as hop, Relay(tmp_path, smart_host_port=hop.port) as relay:
        submit(
            relay,
            ("ann@far.example", "NOTIFY=SUCCESS ORCPT=rfc822;Ann+2Bscan@Far.example"),
            mail=["ENVID=QQ+3D314", "RET=HDRS"],
        )
        wait_until(lambda: len(list(hop.inbox.iterdir())) == 2, 30, "the message and Postfix's own report")
        emptied(relay)
        contents = [path.read_bytes() for path in hop.inbox.iterdir()]
    [report] = [content for content in contents if b"multipart/report" in content]
    of_message, ann = fields_of(report_in(report))
    assert of_message["reporting-mta"] == "dns; postfix.office.example"
    assert of_message["original-envelope-id"] == "QQ=314"
    assert ann["action"] == "delivered"
    assert ann["original-recipient"] == "rfc822;Ann+scan@Far.example"
