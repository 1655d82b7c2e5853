"""A real Postfix as smart host, with TLS and a password.

Mail goes through whole, and a wrong password never fails it.
"""

from __future__ import annotations

import hashlib
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import postfix
from tests.support.dovecot_auth import MECHANISMS, password_server
from tests.support.postfix import Postfix
from tests.support.processes import wait_until
from tests.support.relay import Relay

pytestmark = pytest.mark.skipif(bool(postfix.why_not()), reason=postfix.why_not())

USERNAME, PASSWORD = "office", "tremendously secret"
MESSAGE = (
    b"From: printer@office.example\r\nTo: someone@office.example\r\nSubject: a page\r\n"
    b"Date: Tue, 24 Nov 2026 06:00:00 +0000\r\nMessage-ID: <page@office.example>\r\n\r\n"
    b"..two dots, and one:\r\n.\r\n" + "naïve 頁\r\n".encode() + b"x" * 900 + b"\r\n"
)


@contextmanager
def smart_host(folder: Path, *mechanisms: str) -> Iterator[tuple[Postfix, list[str], str]]:
    """The Postfix, what passwords were tried on it, and its certificate's fingerprint."""
    certificate, key, fingerprint = _certificate(folder)
    with password_server(USERNAME, PASSWORD, mechanisms or MECHANISMS) as passwords:
        parameters = {
            "smtpd_tls_cert_file": str(certificate),
            "smtpd_tls_key_file": str(key),
            "smtpd_tls_security_level": "encrypt",
            **passwords.parameters(),
        }
        with Postfix(parameters=parameters) as hop:
            yield hop, passwords.tried, fingerprint


def _certificate(folder: Path) -> tuple[Path, Path, str]:
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"),
            *("-subj", "/CN=postfix.office.example", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    return certificate, key, hashlib.sha256(der).hexdigest()


def _relay(folder: Path, hop: Postfix, fingerprint: str, password: str) -> Relay:
    lines = f'tls_verify = "sha256:{fingerprint}"\nusername = "{USERNAME}"\npassword_file = "office.password"'
    relay = Relay(folder, smart_host_port=hop.port, smart_host_tls="starttls", smart_host_extra=lines)
    secret = folder / "office.password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    return relay


def _submit(relay: Relay) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port, timeout=30) as connection:
        connection.sendmail("printer@office.example", "someone@office.example", MESSAGE, ["BODY=8BITMIME"])


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_mail_goes_through_whole(tmp_path: Path, mechanism: str) -> None:
    with (
        smart_host(tmp_path, mechanism) as (hop, tried, fingerprint),
        _relay(tmp_path / "relay", hop, fingerprint, PASSWORD) as relay,
    ):
        _submit(relay)
        wait_until(lambda: list(hop.inbox.iterdir()), 30, "the message in the Maildir")
    [arrived] = hop.inbox.iterdir()
    wanted = MESSAGE.replace(b"\r\n", b"\n")
    assert arrived.read_bytes().endswith(wanted)
    assert tried == [f"{mechanism} ok"]


def test_a_wrong_password_pauses_and_never_fails_mail(tmp_path: Path) -> None:
    with (
        smart_host(tmp_path) as (hop, tried, fingerprint),
        _relay(tmp_path / "relay", hop, fingerprint, "wrong") as relay,
    ):
        _submit(relay)
        _submit(relay)
        wait_until(lambda: relay.ask("status")["smart_hosts"][0]["state"] == "paused", 30, "the pause")
        status = relay.ask("status")
        waiting = relay.ask("queue", "list")
    assert status["health"] == "failing"
    assert {message["recipients"][0]["status"] for message in waiting} == {"pending"}
    assert len(waiting) == 2
    assert set(tried) == {"PLAIN fail"}
    assert len(tried) <= 2  # one a session, then the pause: repeated ones would lock the account
    assert list(hop.inbox.iterdir()) == []
