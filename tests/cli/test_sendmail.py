"""`pi-relay sendmail` as cron and smartd call it: against the real relay, and what becomes of the message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pi_relay.cli.sendmail import in_wire_lines, recipients_of, with_from
from tests.cli.test_with_relay import Office
from tests.support.command_line import CommandLine
from tests.support.processes import wait_until


@pytest.fixture
def office(pi_relay: CommandLine, tmp_path: Path) -> Iterator[Office]:
    office = Office(pi_relay, tmp_path)
    office.start_smart_host()
    office.start_relay()
    yield office
    office.stop()


def sent(office: Office, *arguments: str, message: str) -> bytes:
    """The one message that arrives at the smart host, less our trace fields and repairs."""
    before = len(office.arrived())
    result = office.pi_relay("sendmail", *arguments, input=message)
    assert result.returncode == 0, result.stderr
    assert result.stdout == result.stderr == ""
    wait_until(lambda: len(office.arrived()) > before, 20, "the message to arrive")
    (arrived,) = office.arrived()
    fields = arrived.partition(b"Message-ID: ")[2]
    return fields.partition(b"\r\n")[2]


def envelope(office: Office, about: str) -> tuple[str, set[str]]:
    events = office.ask("trace", about)
    (accepted,) = (event for event in events if event["event"] == "accepted")
    return accepted["from"], {event["to"] for event in events if event["event"] == "relayed"}


def test_recipients_on_the_command_line(office: Office) -> None:
    arrived = sent(
        office, "-oi", "-f", "ups@office.example", "-F", "The UPS", "ann@office.example,bob@office.example",
        message="Subject: power\n\nfails\n.\nand is back\n",
    )  # fmt: skip
    assert arrived == (
        b"From: The UPS <ups@office.example>\r\nSubject: power\r\n\r\nfails\r\n..\r\nand is back\r\n"
    ).replace(b"\r\n..\r\n", b"\r\n.\r\n")
    assert envelope(office, "ups@office.example") == (
        "ups@office.example",
        {"ann@office.example", "bob@office.example"},
    )


def test_recipients_in_the_header(office: Office) -> None:
    message = (
        "From: smartd@office.example\nTo: Ann <ann@office.example>,\n root\nBcc: bob@office.example,\n"
        " cy@office.example\nSubject: disk\n\nfails\n"
    )
    arrived = sent(office, "-t", "-fsmartd@office.example", message=message)
    assert b"cc:" not in arrived.lower() and b"bob" not in arrived and b"cy@" not in arrived
    assert b"To: Ann <ann@office.example>,\r\n root\r\nSubject: disk\r\n\r\nfails\r\n" in arrived
    assert envelope(office, "smartd@office.example")[1] == {
        "ann@office.example",
        "bob@office.example",
        "cy@office.example",
        "admin@office.example",  # root is the postmaster
    }


def test_a_user_without_a_domain_is_an_address_of_this_machine(office: Office) -> None:
    sent(office, "-i", "-f", "root", "ann@office.example", message="no header at all\n")
    assert envelope(office, "ann@office.example")[0].startswith("root@")


def test_what_the_relay_refuses_is_told(office: Office) -> None:
    result = office.pi_relay("sendmail", "-i", "ann@", input="x\n")
    assert result.returncode == 1
    assert result.stderr.startswith("pi-relay: ann@: 501 5.1.3")
    assert office.pi_relay("sendmail", "--sysexits", "-i", "ann@", input="x\n").returncode == 69


def test_without_a_relay(pi_relay: CommandLine) -> None:
    pi_relay.file.write_text('listeners = [{address = "127.0.0.1:9"}]\n')
    result = pi_relay("sendmail", "ann@office.example", input="x\n")
    assert result.returncode == 4
    assert "does not answer" in result.stderr and "hint: " in result.stderr
    assert pi_relay("sendmail", "--sysexits", "ann@office.example", input="x\n").returncode == 75


@pytest.mark.parametrize("arguments", [[], ["-t"], ["--", "-x@office.example"], ["-bs", "a@x.example"]])
def test_wrong_usage(pi_relay: CommandLine, arguments: list[str]) -> None:
    result = pi_relay("sendmail", *arguments, input="Subject: x\n\nx\n")
    assert result.returncode == 2
    assert result.stderr.startswith("pi-relay")
    assert pi_relay("sendmail", "--sysexits", *arguments, input="Subject: x\n\nx\n").returncode == 64


def test_newaliases_and_mailq(office: Office) -> None:
    assert office.pi_relay("sendmail", "-bi").returncode == 0
    assert "Nothing waits" in office.pi_relay("sendmail", "-bp").stdout


@pytest.mark.parametrize(
    ("data", "dots_are_content", "wire"),
    [
        (b"a\nb", True, b"a\r\nb\r\n"),
        (b"a\r\nb\r\n", True, b"a\r\nb\r\n"),
        (b"a\n.\nb\n", True, b"a\r\n.\r\nb\r\n"),
        (b"a\n.\nb\n", False, b"a\r\n"),
        (b".\nb\n", False, b""),
        (b"From root Tue Nov 24\nSubject: x\n\nx\n", True, b"Subject: x\r\n\r\nx\r\n"),
        (b"a\rb\n", True, b"a\r\nb\r\n"),
        (b"", True, b""),
    ],
)
def test_line_ends(data: bytes, dots_are_content: bool, wire: bytes) -> None:
    assert in_wire_lines(data, dots_are_content=dots_are_content) == wire


def test_resent_fields_go_first() -> None:
    message = b"To: a@x.example\r\nResent-To: b@x.example\r\nBcc: c@x.example\r\n\r\nTo: d@x.example\r\n"
    assert recipients_of(message) == (["b@x.example"], message)


def test_a_text_that_is_no_header_stays_whole() -> None:
    assert with_from(b"disk failed\r\n", "a@x.example", "A") == (
        b"From: A <a@x.example>\r\n\r\ndisk failed\r\n"
    )
