"""The whole daemon signs: swaks in, the sink's Maildir out, dkimpy and OpenDKIM as judges of what arrived."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pi_relay.signing_keys import make_key, read_key
from tests.support import signatures
from tests.support.processes import free_port, greeting, wait_until
from tests.support.relay import PI_RELAY, Relay

pytestmark = pytest.mark.skipif(shutil.which("swaks") is None, reason="swaks is not installed")

RECORDS = {"relay1": "office.example", "relay2": "office.example", "own": "relay.office.example"}


@contextmanager
def sink(folder: Path, *arguments: str) -> Iterator[int]:
    """`pi-relay sink` with its Maildir in ``folder``. The port."""
    port = free_port()
    command = [PI_RELAY, "sink", "--address", f"127.0.0.1:{port}", "--maildir", folder, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: greeting(port), 30, "the sink to greet")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def arrived(folder: Path) -> list[bytes]:
    """What lies in the Maildir, with the trace that a real next hop would have put on top."""
    files = sorted((folder / "new").glob("*"), key=lambda file: file.stat().st_mtime_ns)
    return [b"Received: by sink.invalid; now\r\n" + file.read_bytes() for file in files]


def office(folder: Path, smart_host_port: int) -> tuple[Relay, dict[str, str]]:
    """A relay that signs, and what DNS would have of it."""
    sections, records = "", {}
    for selector, domain in RECORDS.items():
        pem = make_key("ed25519" if selector == "relay2" else "rsa")
        key_file = folder / f"{selector}.pem"
        key_file.write_bytes(pem)
        key_file.chmod(0o600)
        sections += f'[[dkim]]\ndomain = "{domain}"\nselector = "{selector}"\nkey_file = "{key_file}"\n'
        records[f"{selector}._domainkey.{domain}"] = read_key(pem).record
    relay = Relay(folder, smart_host_port=smart_host_port, queue_extra=f'retry_delays = ["1s"]\n{sections}')
    return relay, records


def swaks(relay: Relay, *arguments: str, to: str = "ann@elsewhere.example") -> None:
    subprocess.run(
        [
            *("swaks", "--server", "127.0.0.1", "--port", str(relay.port), "--to", to),
            *("--from", "scans@office.example", *arguments),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )


def is_genuine(message: bytes, records: dict[str, str]) -> bool:
    return signatures.dkimpy_verifies(message, records) and (
        bool(signatures.missing_tools()) or signatures.opendkim_verifies(message, records)
    )


def test_what_arrives_is_signed(tmp_path: Path) -> None:
    maildir = tmp_path / "Maildir"
    scan = tmp_path / "scan.pdf"
    scan.write_bytes(bytes(range(256)) * 4000)
    with sink(maildir) as port:
        relay, records = office(tmp_path, port)
        with relay:
            swaks(relay, "--body", ".dots\n..\n\n  blanks \t here  \n\n\n")
            swaks(relay, "--attach", f"@{scan}")
            wait_until(lambda: len(arrived(maildir)) == 2, 30, "two messages at the sink")
    assert [signatures.count(message) for message in arrived(maildir)] == [2, 2]
    assert all(is_genuine(message, records) for message in arrived(maildir))


def test_a_report_of_ours_is_signed(tmp_path: Path) -> None:
    maildir = tmp_path / "Maildir"
    with sink(maildir, "--reply", "RCPT=550", "--reply", "RCPT=250") as port:
        relay, records = office(tmp_path, port)
        with relay:
            swaks(relay)
            wait_until(lambda: arrived(maildir), 30, "the report at the sink")
    (report,) = arrived(maildir)
    assert b"multipart/report" in report
    assert b"d=relay.office.example" in report
    assert is_genuine(report, records)


def test_mail_waits_while_its_key_is_gone(tmp_path: Path) -> None:
    maildir = tmp_path / "Maildir"
    with sink(maildir) as port:
        relay, records = office(tmp_path, port)
        with relay:
            key_file = tmp_path / "relay1.pem"
            pem = key_file.read_bytes()
            key_file.unlink()
            swaks(relay)
            wait_until(lambda: relay.ask("queue", "list")[0]["attempts"] >= 3, 30, "three attempts")
            (waiting,) = relay.ask("queue", "list")
            reply = waiting["recipients"][0]["last_reply"]
            assert (waiting["state"], reply["code"], reply["enhanced_status"]) == ("deferred", 451, "4.3.5")
            assert arrived(maildir) == []
            assert relay.log.read_text().count("alert reason=") == 1
            key_file.write_bytes(pem)
            wait_until(lambda: arrived(maildir), 30, "the message at the sink")
    (message,) = arrived(maildir)
    assert signatures.count(message) == 2
    assert is_genuine(message, records)
