"""Against servers that others wrote: Postfix, its smtp-sink, and aiosmtpd."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from pi_relay.model import FileSpan, StoredMessage
from tests.delivery.office import (
    HEADER,
    Office,
    config,
    deliver_once,
    envelope,
    failure,
    fates,
    large_message,
    smart_host,
    with_office,
)
from tests.support import postfix, sinks
from tests.support.certificates import Authority
from tests.support.dovecot_auth import MECHANISMS, password_server
from tests.support.processes import free_port, wait_until

A, B, C, D, E = (f"{name}@elsewhere.example" for name in "abcde")

ACCOUNT = {"auth": "password", "username": "u1234", "password": "sesame"}

needs_postfix = pytest.mark.skipif(bool(postfix.why_not()), reason=postfix.why_not() or "-")


def postfix_mails(server: postfix.Postfix, count: int) -> list[bytes]:
    """What lies in its Maildir, without the headers that Postfix put in front."""
    new = server.maildir / "new"
    wait_until(lambda: len(list(new.iterdir())) >= count, 20, f"{count} messages in the Maildir")
    return [path.read_bytes() for path in sorted(new.iterdir())]


@needs_postfix
def test_postfix_over_verified_tls(tmp_path: Path, trusted: Authority) -> None:
    leaf = trusted.leaf()
    parameters = {
        "smtpd_tls_security_level": "encrypt",
        "smtpd_tls_cert_file": str(leaf.certificate),
        "smtpd_tls_key_file": str(leaf.key),
        "message_size_limit": "20000000",
        "virtual_mailbox_limit": "0",
    }
    body = b"..a dot\r\n..\r\n" + "é\r\n".encode() + b"x" * 900 + b"\r\n"
    large = large_message(tmp_path / "large", 3_000_000)

    async def use(office: Office) -> None:
        for _ in range(3):
            mail = envelope(A, body_type="8BITMIME")
            assert fates(await office.send(mail, StoredMessage(HEADER, body))) == ["relayed"]
        assert fates(await office.deliver(message=large)) == ["relayed"]
        too_large = large_message(tmp_path / "too large", 20_000_000)
        assert fates(await office.deliver(message=too_large)) == ["message permanent 552"]

    with postfix.Postfix(parameters=parameters) as server:
        with_office(config(smart_host(server.port, host="localhost", tls="starttls")), use)
        mails = postfix_mails(server, 4)
    plain = body.replace(b"\r\n", b"\n").replace(b"\n..", b"\n.")[1:]
    assert sum(mail.endswith(b"\n\n" + plain) for mail in mails) == 3
    assert isinstance(large.body, FileSpan)
    content = (tmp_path / "large").read_bytes()[6:-5].replace(b"\r\n", b"\n")
    assert sum(mail.endswith(b"\n\n" + content) for mail in mails) == 1


@needs_postfix
def test_postfix_that_takes_two_recipients_and_closes_idle_sessions() -> None:
    parameters = {
        "smtpd_recipient_limit": "2",
        "smtpd_recipient_overshoot_limit": "1000",
        "smtpd_timeout": "1s",
        "smtpd_recipient_restrictions": "check_recipient_access inline:{c@elsewhere.example=REJECT}, permit",
    }

    async def use(office: Office) -> None:
        fate = fates(await office.deliver(A, B, C, D, E))
        assert fate == ["relayed", "relayed", "recipient permanent 554", "relayed", "relayed"]
        assert failure(await office.deliver(C)).reply.remote_mta == "127.0.0.1"
        await asyncio.sleep(1.5)
        assert fates(await office.deliver(A)) == ["relayed"]
        assert office.changes == []

    with postfix.Postfix(parameters=parameters) as server:
        with_office(config(smart_host(server.port)), use)
        assert len(postfix_mails(server, 3)) >= 3


@pytest.mark.skipif(bool(sinks.missing_tools()), reason=sinks.missing_tools() or "-")
def test_smtp_sink_takes_a_thousand_over_four_sessions(tmp_path: Path) -> None:
    async def use(office: Office) -> None:
        async def one_after_the_other() -> None:
            for _ in range(250):
                assert fates(await office.deliver()) == ["relayed"]

        await asyncio.gather(*(one_after_the_other() for _ in range(4)))

    with sinks.SmtpSink(tmp_path) as sink:
        with_office(config(smart_host(sink.port)), use)
        sink.wait_for(1000, 10)


# ── aiosmtpd ─────────────────────────────────────────────────────────────────────────────────────


class Keeper:
    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    async def handle_DATA(self, server: SMTP, session: Session, mail: Envelope) -> str:  # noqa: N802
        self.envelopes.append(mail)
        return "250 2.0.0 kept"


def _authenticator(
    server: SMTP, session: Session, mail: Envelope, mechanism: str, data: object
) -> AuthResult:
    good = (getattr(data, "login", b""), getattr(data, "password", b"")) == (b"u1234", b"sesame")
    return AuthResult(success=good, handled=False)


@pytest.fixture(params=["starttls", "implicit"])
def aiosmtpd(request: pytest.FixtureRequest, tls: ssl.SSLContext) -> Iterator[tuple[str, int, Keeper]]:
    keeper = Keeper()
    implicit = request.param == "implicit"
    more = {"ssl_context": tls} if implicit else {"tls_context": tls, "require_starttls": True}
    controller = Controller(
        keeper,
        hostname="127.0.0.1",
        port=0,
        auth_required=True,
        auth_require_tls=not implicit,  # it does not take implicit TLS for TLS
        authenticator=_authenticator,
        enable_SMTPUTF8=True,
        **more,
    )
    # It cannot tell the port that it was given.
    controller.port = free_port()
    controller.start()
    try:
        yield request.param, controller.port, keeper
    finally:
        controller.stop()


def test_aiosmtpd_with_tls_and_auth(aiosmtpd: tuple[str, int, Keeper]) -> None:
    mode, port, keeper = aiosmtpd
    host = smart_host(port, tls=mode, **ACCOUNT)
    mail = envelope("é@elsewhere.example", smtputf8=True)
    report = with_office(config(host), lambda office: office.send(mail))
    assert fates(report) == ["relayed"]
    assert keeper.envelopes[0].rcpt_tos == ["é@elsewhere.example"]
    assert keeper.envelopes[0].content == HEADER + b"A page.\r\n.\r\nAnother.\r\n"


def test_aiosmtpd_and_a_wrong_password(aiosmtpd: tuple[str, int, Keeper]) -> None:
    mode, port, keeper = aiosmtpd
    host = smart_host(port, tls=mode, **{**ACCOUNT, "password": "other"})
    assert fates(deliver_once(config(host))) == ["account transient 535"]
    assert not keeper.envelopes


# ── Postfix with SASL ────────────────────────────────────────────────────────────────────────────


@needs_postfix
@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_postfix_with_tls_and_sasl(mechanism: str, trusted: Authority) -> None:
    leaf = trusted.leaf()
    with password_server(ACCOUNT["username"], ACCOUNT["password"], [mechanism]) as passwords:
        parameters = {
            "smtpd_tls_security_level": "may",
            "smtpd_tls_auth_only": "yes",
            "smtpd_tls_cert_file": str(leaf.certificate),
            "smtpd_tls_key_file": str(leaf.key),
            **passwords.parameters(),
        }
        with postfix.Postfix(parameters=parameters) as server:
            host = smart_host(server.port, tls="starttls", **ACCOUNT)
            assert fates(deliver_once(config(host), timeouts=None)) == ["relayed"]
            wrong = smart_host(server.port, tls="starttls", **{**ACCOUNT, "password": "other"})
            assert fates(deliver_once(config(wrong), timeouts=None)) == ["account transient 535"]
        assert passwords.tried == [f"{mechanism} ok", f"{mechanism} fail"]


# ── memory ───────────────────────────────────────────────────────────────────────────────────────

_FORWARD_TWENTY = """
import asyncio, sys
from pathlib import Path
from pi_relay.model import FileSpan, StoredMessage
from tests.delivery.office import HEADER, Office, config, fates, smart_host

def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

async def main(port, path, length_bytes):
    office = Office(config(smart_host(port, connections_max=20)))
    message = StoredMessage(HEADER, FileSpan(path, 6, length_bytes))
    await asyncio.gather(*(office.deliver() for _ in range(20)))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_bytes()
    reports = await asyncio.gather(*(office.deliver(message=message) for _ in range(20)))
    assert all(fates(report) == ["relayed"] for report in reports)
    print(peak_bytes() - before)
    await office.delivery.close()

asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
"""


@pytest.mark.skipif(bool(sinks.missing_tools()), reason=sinks.missing_tools() or "-")
def test_twenty_large_messages_at_once_cost_next_to_no_memory(tmp_path: Path) -> None:
    span = large_message(tmp_path / "m", 25_000_000).body
    assert isinstance(span, FileSpan)
    with sinks.SmtpSink(tmp_path) as sink:
        grown_bytes = subprocess.run(
            [sys.executable, "-c", _FORWARD_TWENTY, str(sink.port), span.path, str(span.length_bytes)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    assert int(grown_bytes) < 12_000_000, f"{int(grown_bytes) / 1e6:.1f} MB more"
