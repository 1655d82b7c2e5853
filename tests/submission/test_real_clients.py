"""Clients that are not ours: what devices and admins send with, against the real server."""

from __future__ import annotations

import shutil
import smtplib
import ssl
import subprocess
from collections.abc import Callable
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path

import pytest

from pi_relay.config import Listener
from tests.support.certificates import Authority
from tests.support.processes import free_port
from tests.support.submission_room import PASSWORD, SUBMISSION, Room, configuration

OpenRoom = Callable[..., Room]

LETTER = b"From: a@office.example\r\nTo: b@other.example\r\nSubject: scan\r\n\r\n.dotted\r\nline\r\n"
STORED_BODY = b"..dotted\r\nline\r\n"


def run(*command: str, given: bytes = b"", code: int = 0) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    ended = subprocess.run(command, input=given, capture_output=True, timeout=60)
    said = (ended.stdout + ended.stderr).decode(errors="replace")
    assert ended.returncode == code, said
    return said


def only(room: Room) -> bytes:
    """The one message of the queue, as it is stored."""
    [(envelope, content)] = room.queued
    assert envelope.reverse_path == "a@office.example"
    assert [recipient.forward_path for recipient in envelope.recipients] == ["b@other.example"]
    return content


@pytest.fixture(params=["off", "starttls", "implicit"])
def secured(request: pytest.FixtureRequest, tmp_path: Path, open_room: OpenRoom) -> tuple[str, Room]:
    return request.param, open_room(
        configuration(tmp_path, Listener("127.0.0.1", free_port(), tls=request.param))
    )


def test_smtplib(secured: tuple[str, Room], client_context: ssl.SSLContext) -> None:
    tls, room = secured
    if tls == "implicit":
        client: smtplib.SMTP = smtplib.SMTP_SSL("localhost", room.port, context=client_context)
    else:
        client = smtplib.SMTP("localhost", room.port)
    with client:
        if tls == "starttls":
            client.starttls(context=client_context)
        if tls != "off":
            client.login("scanner", PASSWORD)
        assert client.sendmail("a@office.example", ["b@other.example"], LETTER) == {}
    content = only(room)
    assert content.endswith(b"\r\n\r\n" + STORED_BODY)
    name = {"off": b" with ESMTP id ", "starttls": b" with ESMTPSA id ", "implicit": b" with ESMTPSA id "}[
        tls
    ]
    assert name in content
    assert [event["auth"] for event in room.log()] == ["" if tls == "off" else "scanner"]


def test_smtplib_sends_utf8_addresses(tmp_path: Path, open_room: OpenRoom) -> None:
    room = open_room()
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@office.example", "用户@other.example", "scan"
    message.set_content("grüße")
    with smtplib.SMTP("127.0.0.1", room.port) as client:
        client.send_message(message)
    [(envelope, content)] = room.queued
    assert envelope.smtputf8
    assert envelope.body_type == "8BITMIME"
    assert envelope.recipients[0].forward_path == "用户@other.example"
    assert b" with UTF8SMTP id " in content


def test_smtplib_hears_why_not(tmp_path: Path, open_room: OpenRoom) -> None:
    room = open_room()
    with smtplib.SMTP("127.0.0.1", room.port) as client:
        with pytest.raises(smtplib.SMTPSenderRefused) as too_large:
            client.sendmail(
                "a@office.example", "b@other.example", b"x" * (SUBMISSION.message_size_max_bytes + 1)
            )
        assert too_large.value.smtp_code == 552
        with pytest.raises(smtplib.SMTPRecipientsRefused) as nowhere:
            client.sendmail("a@office.example", "nowhere", LETTER)
        assert nowhere.value.recipients["nowhere"][0] == 501
        assert client.sendmail("a@office.example", "b@other.example", LETTER) == {}
    only(room)


def test_swaks(secured: tuple[str, Room], authority: Authority) -> None:
    tls, room = secured
    options = {"off": [], "starttls": ["--tls"], "implicit": ["--tls-on-connect"]}[tls]
    if tls != "off":
        options += ["--tls-verify", "--tls-ca-path", str(authority.certificate)]
        options += ["--auth", "LOGIN", "--auth-user", "scanner", "--auth-password", PASSWORD]
    said = run(
        *("swaks", "--server", "localhost", "--port", str(room.port), "--from", "a@office.example"),
        *("--to", "b@other.example", "--data", "Subject: scan\n\nhello\n", "--pipeline", *options),
    )
    assert "queued as" in said
    assert b"\r\nSubject: scan\r\n\r\nhello\r\n" in only(room)


def test_curl(secured: tuple[str, Room], authority: Authority) -> None:
    tls, room = secured
    scheme = "smtps" if tls == "implicit" else "smtp"
    options = [] if tls == "off" else ["--ssl-reqd", "--cacert", str(authority.certificate)]
    if tls != "off":
        options += ["--user", f"scanner:{PASSWORD}"]
    run(
        *("curl", "-sS", f"{scheme}://localhost:{room.port}/device", "--mail-from", "a@office.example"),
        *("--mail-rcpt", "b@other.example", "-T", "-", *options),
        given=LETTER,
    )
    assert only(room).endswith(b"\r\n\r\n" + STORED_BODY)


def test_msmtp(secured: tuple[str, Room], authority: Authority) -> None:
    tls, room = secured
    options = {
        "off": ["--tls=off"],
        "starttls": ["--tls=on"],
        "implicit": ["--tls=on", "--tls-starttls=off"],
    }[tls]
    if tls != "off":
        options += [f"--tls-trust-file={authority.certificate}", "--auth=plain", "--user=scanner"]
        options += [f"--passwordeval=echo '{PASSWORD}'"]
    run(
        *("msmtp", "-C", "/dev/null", "--host=localhost", f"--port={room.port}", "--from=a@office.example"),
        *(*options, "b@other.example"),
        given=LETTER.replace(b"\r\n", b"\n"),
    )
    assert only(room).endswith(b"\r\n\r\n" + STORED_BODY)


@pytest.mark.parametrize("kept", [False, True])
def test_smtp_source(kept: bool, open_room: OpenRoom) -> None:
    room = open_room()
    run(
        *("smtp-source", "-s", "10", "-m", "200", "-l", "2048", *(["-d"] if kept else [])),
        *("-f", "a@office.example", "-t", "b@other.example", f"127.0.0.1:{room.port}"),
    )
    assert len(room.queued) == 200
    assert len({envelope.queue_id for envelope, _ in room.queued}) == 200


def test_smtp_source_with_many_recipients_and_a_large_message(tmp_path: Path, open_room: OpenRoom) -> None:
    submission = replace(SUBMISSION, message_size_max_bytes=30_000_000, recipients_max=50)
    room = open_room(configuration(tmp_path, submission=submission))
    run(
        *("smtp-source", "-s", "2", "-m", "2", "-l", "25000000", "-r", "50"),
        *("-f", "a@office.example", "-t", "b@other.example", f"127.0.0.1:{room.port}"),
    )
    assert [len(envelope.recipients) for envelope, _ in room.queued] == [50, 50]
    assert all(len(content) > 25_000_000 for _, content in room.queued)


def test_openssl_sees_what_tls_is_offered(secured: tuple[str, Room], authority: Authority) -> None:
    tls, room = secured
    if tls == "off":
        return
    starttls = ["-starttls", "smtp"] if tls == "starttls" else []
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{room.port}", *starttls, "-quiet"]
    command += ["-CAfile", str(authority.certificate), "-verify_return_error"]
    assert "221 2.0.0" in run(*command, "-crlf", "-ign_eof", given=b"QUIT\n")
    # asyncio closes without the alert that OpenSSL has made; the log says more.
    run(*command, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", given=b"QUIT\n", code=1)
    refusals = [event for event in room.log() if event["event"] == "refused"]
    assert refusals[-1]["reason"].startswith("TLS handshake: UNSUPPORTED_PROTOCOL; ")
