"""Devices of the last century, played by OpenSSL: let in one by one, and nobody with them."""

from __future__ import annotations

import re
import smtplib
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from pi_relay import maillog, passwords
from tests.support.misbehaving_hop import MisbehavingHop
from tests.support.processes import free_port, wait_until
from tests.support.relay import Relay

OLD, OLD_SIGNING_IN, OTHER = "127.0.0.9", "127.0.0.7", "127.0.0.8"
PASSWORD = "correct horse"  # noqa: S105
CONFIGURATION = """\
hostname = "relay.office.example"
postmaster = "admin@office.example"

[[listeners]]
address = "127.0.0.1:{port}"
[[listeners]]
address = "127.0.0.1:{port_implicit}"
tls = "implicit"
[[listeners]]
address = "127.0.0.1:{port_without_auth}"
auth = "off"
[[listeners]]
address = "127.0.0.1:{port_clear}"
tls = "off"

[[devices]]
name = "copier"
address = "127.0.0.9"
legacy = true

[[devices]]
name = "fax"
address = "127.0.0.7"
username = "fax"
password_hash = "{password_hash}"
legacy = true

[[devices]]
name = "laptop"
username = "laptop"
password_hash = "{password_hash}"

[smart_hosts.office]
host = "127.0.0.1"
port = {smart_host_port}
tls = "off"
"""


class Office(Relay):
    def __init__(self, directory: Path, hop: MisbehavingHop) -> None:
        self.port_implicit, self.port_without_auth, self.port_clear = (free_port() for _ in range(3))
        port = free_port()
        super().__init__(
            directory,
            port=port,
            configuration=CONFIGURATION.format(
                port=port,
                port_implicit=self.port_implicit,
                port_without_auth=self.port_without_auth,
                port_clear=self.port_clear,
                password_hash=passwords.hash_password(PASSWORD),
                smart_host_port=hop.port,
            ),
        )

    def events(self, event: str) -> list[dict[str, str]]:
        lines = self.log.read_text(encoding="utf-8").splitlines()
        parsed = [maillog.parse_line(line) for line in lines if line.startswith(f"{event} ")]
        return [found for found in parsed if found]

    def uses(self, device: str) -> list[str]:
        """What was logged of a legacy device."""
        return [event["what"] for event in self.events("legacy") if event["device"] == device]

    def client(self, source: str, port: int = 0) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", port or self.port, timeout=20, source_address=(source, 0))


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    with MisbehavingHop() as hop, Office(tmp_path_factory.mktemp("office"), hop) as relay:
        yield relay


def s_client(office: Office, source: str, *options: str, implicit: bool = False) -> str:
    """What OpenSSL says of the session, and what the relay says in it."""
    port = office.port_implicit if implicit else office.port
    starttls = [] if implicit else ["-starttls", "smtp"]
    ended = subprocess.run(
        [
            *("openssl", "s_client", "-bind", source, "-connect", f"127.0.0.1:{port}", *starttls),
            *("-crlf", "-ign_eof", *options),
        ],
        input="quit\n",
        capture_output=True,
        text=True,
        timeout=30,
    )
    return ended.stdout + ended.stderr


TLS_1_0 = ("-tls1", "-cipher", "DEFAULT@SECLEVEL=0")
TLS_1_1 = ("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")
OLD_CIPHER = ("-tls1_2", "-cipher", "AES128-SHA")


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("options", "session"),
    [(TLS_1_0, "TLSv1 "), (TLS_1_1, "TLSv1.1 "), (OLD_CIPHER, "TLSv1.2 AES128-SHA")],
    ids=["TLS 1.0", "TLS 1.1", "old cipher"],
)
def test_what_is_old_is_taken_from_a_legacy_device_alone(
    office: Office, options: tuple[str, ...], session: str, implicit: bool
) -> None:
    said = s_client(office, OLD, *options, implicit=implicit)
    found = re.search(r"Protocol *: (\S+)\s+Cipher *: (\S+)", said)
    assert found and " ".join(found.groups()).startswith(session)
    assert "221 2.0.0 bye" in said
    seen = len(office.events("refused"))
    refused = s_client(office, OTHER, *options, implicit=implicit)
    assert "221 2.0.0 bye" not in refused and "Cipher is (NONE)" in refused
    wait_until(lambda: len(office.events("refused")) > seen, 5, "the refusal in the log")
    last = office.events("refused")[-1]
    assert (last["client"], last["device"]) == (OTHER, "")
    assert '"legacy = true" in its [[devices]] section' in last["reason"]


def test_a_legacy_device_may_speak_new_tls_too(office: Office) -> None:
    assert "221 2.0.0 bye" in s_client(office, OLD, "-tls1_3")


def test_each_use_is_logged_once(office: Office) -> None:
    for _ in range(2):
        for options in (TLS_1_0, TLS_1_1, OLD_CIPHER, ("-tls1_3",)):
            s_client(office, OLD, *options)
    wait_until(lambda: len(office.uses("copier")) >= 3, 5, "the uses in the log")
    assert sorted(office.uses("copier")) == ["AES128-SHA", "TLSv1", "TLSv1.1"]


def test_auth_in_clear_is_offered_to_a_legacy_device_alone(office: Office) -> None:
    for port in (office.port, office.port_clear):
        with office.client(OLD_SIGNING_IN, port) as client:
            client.ehlo()
            assert client.esmtp_features["auth"].split() == ["PLAIN", "LOGIN"]
            assert client.mail("fax@office.example")[0] == 530
            assert client.login("fax", PASSWORD)[0] == 235
            assert client.mail("fax@office.example")[0] == 250
        with office.client(OTHER, port) as client:
            client.ehlo()
            assert "auth" not in client.esmtp_features
            assert client.docmd("AUTH", f"PLAIN {_plain('fax')}")[0] == 538
    wait_until(lambda: office.uses("fax"), 5, "the use in the log")
    assert office.uses("fax") == ["AUTH in clear"]
    assert PASSWORD not in office.log.read_text() and _plain("fax") not in office.log.read_text()


def test_a_legacy_device_signs_in_clear_only_as_itself(office: Office) -> None:
    for source in (OLD, OLD_SIGNING_IN):
        with office.client(source) as client:
            client.ehlo()
            assert client.docmd("AUTH", f"PLAIN {_plain('laptop')}")[0] == 535


def test_where_the_listener_has_no_auth_a_legacy_device_has_none(office: Office) -> None:
    with office.client(OLD_SIGNING_IN, office.port_without_auth) as client:
        client.ehlo()
        assert "auth" not in client.esmtp_features
        assert client.docmd("AUTH", f"PLAIN {_plain('fax')}")[0] == 502


def _plain(username: str) -> str:
    return b64encode(f"\0{username}\0{PASSWORD}".encode()).decode()
