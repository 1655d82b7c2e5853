"""`pi-relay sink`: takes mail as a smart host does, keeps it byte for byte, answers as scripted."""

from __future__ import annotations

import smtplib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine

MESSAGE = b"Subject: x\r\n\r\n.one\r\n..\r\nlong " + b"y" * 5000 + b"\r\n"


@contextmanager
def sink(pi_relay: CommandLine, maildir: Path, *arguments: str) -> Iterator[smtplib.SMTP]:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pi_relay",
            "sink",
            "--address",
            "127.0.0.1:0",
            "--maildir",
            maildir,
            *arguments,
        ],
        env=pi_relay.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        port = int(first.partition("127.0.0.1:")[2].partition(",")[0])
        client = smtplib.SMTP(timeout=20)
        client.connect("127.0.0.1", port)
        yield client
        client.close()
    finally:
        process.terminate()
        assert process.wait(20) == 0


def kept(maildir: Path) -> list[bytes]:
    assert not list((maildir / "tmp").iterdir())
    return [path.read_bytes() for path in sorted((maildir / "new").iterdir())]


def test_mail_is_kept_byte_for_byte(pi_relay: CommandLine, tmp_path: Path) -> None:
    with sink(pi_relay, tmp_path / "m") as client:
        for _ in range(2):
            assert client.sendmail("a@x.example", ["b@x.example"], MESSAGE) == {}
        assert client.has_extn("pipelining") and client.has_extn("8bitmime")
        assert client.quit()[0] == 221
    assert kept(tmp_path / "m") == [MESSAGE, MESSAGE]


def test_replies_of_a_verb_are_used_in_turn_and_the_last_stays(pi_relay: CommandLine, tmp_path: Path) -> None:
    script = ["--reply", "RCPT=450", "--reply", "RCPT=550 5.1.1 gone", "--reply", "rcpt=250"]
    with sink(pi_relay, tmp_path / "m", *script) as client:
        client.ehlo()
        client.mail("a@x.example")
        codes = [client.rcpt(f"{name}@x.example") for name in "bcde"]
    assert [code for code, _ in codes] == [450, 550, 250, 250]
    assert codes[1][1] == b"5.1.1 gone"


@pytest.mark.parametrize(
    ("verb", "code"), [("EHLO", 502), ("MAIL", 451), ("DATA", 554), ("DOT", 452), ("RSET", 500)]
)
def test_every_verb_can_be_scripted(pi_relay: CommandLine, tmp_path: Path, verb: str, code: int) -> None:
    with sink(pi_relay, tmp_path / "m", "--reply", f"{verb}={code}") as client:
        answers = {"EHLO": client.ehlo()[0], "MAIL": client.mail("a@x.example")[0]}
        client.rcpt("b@x.example")
        if answers["MAIL"] == 250:
            answers["DATA"] = client.docmd("DATA")[0]
            if answers["DATA"] == 354:
                client.send(b"Subject: x\r\n\r\n.\r\n")
                answers["DOT"] = client.getreply()[0]
        answers["RSET"] = client.docmd("RSET")[0]
    assert answers[verb] == code
    assert bool(kept(tmp_path / "m")) == (verb in ("EHLO", "RSET"))


def test_421_closes(pi_relay: CommandLine, tmp_path: Path) -> None:
    with sink(pi_relay, tmp_path / "m", "--reply", "EHLO=421") as client:
        assert client.ehlo()[0] == 421
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()


def test_it_breaks_off_amid_a_message(pi_relay: CommandLine, tmp_path: Path) -> None:
    with (
        sink(pi_relay, tmp_path / "m", "--drop-after", "1000") as client,
        pytest.raises((smtplib.SMTPServerDisconnected, OSError)),
    ):
        client.sendmail("a@x.example", ["b@x.example"], MESSAGE)
    assert kept(tmp_path / "m") == []


def test_it_waits_before_each_reply(pi_relay: CommandLine, tmp_path: Path) -> None:
    with sink(pi_relay, tmp_path / "m", "--delay", "0.2") as client:
        begun = time.monotonic()
        client.noop()
        assert time.monotonic() - begun >= 0.19


def test_a_message_without_recipient_or_with_nonsense_before_it(
    pi_relay: CommandLine, tmp_path: Path
) -> None:
    with sink(pi_relay, tmp_path / "m") as client:
        client.ehlo()
        assert client.docmd("DATA")[0] == 503
        assert client.docmd("DANCE")[0] == 502
        assert client.docmd("CONNECT")[0] == 502
        assert client.sendmail("", ["b@x.example"], b"") == {}
    assert kept(tmp_path / "m") == [b""] or kept(tmp_path / "m") == [b"\r\n"]
