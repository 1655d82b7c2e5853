"""`pi-relay dkim`: the key it makes, what it says to publish, and what DNS says of it."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import pytest

from pi_relay.config import check
from pi_relay.signing_keys import make_key, read_key
from tests.support.command_line import CommandLine

NAME = "relay1._domainkey.office.example"
FAILS = ["server failure"]


def in_strings(text: str) -> str:
    return " ".join(f'"{text[at : at + 255]}"' for at in range(0, len(text), 255))


@contextmanager
def dns_server(records: dict[str, list[str]]) -> Iterator[int]:
    """Answers for these TXT records, each text in strings of 255, and knows no other name. The port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                data, client = listening.recvfrom(4096)
                if not data:
                    return
                query = dns.message.from_wire(data)
                answer = dns.message.make_response(query)
                name = query.question[0].name
                texts = records.get(str(name).lower().rstrip("."))
                if texts == FAILS:
                    answer.set_rcode(dns.rcode.SERVFAIL)
                elif texts:
                    answer.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", *map(in_strings, texts)))
                else:
                    answer.set_rcode(dns.rcode.NXDOMAIN)
                listening.sendto(answer.to_wire(), client)

        thread = threading.Thread(target=serve)
        thread.start()
        port: int = listening.getsockname()[1]
        try:
            yield port
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"", ("127.0.0.1", port))
            thread.join(10)


class Office:
    def __init__(self, pi_relay: CommandLine, port: int, records: dict[str, list[str]]) -> None:
        self.records = records
        self.folder = pi_relay.file.parent
        self.file = pi_relay.file
        self._pi_relay = pi_relay
        self.file.write_text(f'{self.file.read_text()}[direct]\ndns_servers = ["127.0.0.1:{port}"]\n')

    def __call__(self, *arguments: str, exits: int = 0, **environment: str) -> str:
        result = self._pi_relay("dkim", *arguments, **environment)
        assert result.returncode == exits, (result.stdout, result.stderr)
        return result.stdout + result.stderr

    def ask(self, *arguments: str, exits: int = 0) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self(*arguments, "--json", exits=exits))
        return document


@pytest.fixture
def office(pi_relay: CommandLine) -> Iterator[Office]:
    records: dict[str, list[str]] = {}
    with dns_server(records) as port:
        yield Office(pi_relay, port, records)


def test_from_nothing_to_a_signing_relay(office: Office) -> None:
    """The three steps that the command tells, done as it tells them."""
    words = office("office.example")
    key_file = office.folder / "dkim" / "relay1.pem"
    record = read_key(key_file.read_bytes()).record
    assert f"name:  {NAME}\nvalue: {record}\n" in words
    assert "not there yet" in words

    office.records[NAME] = [record]
    section = words.partition("[[dkim]]")[2].partition("\n\n")[0]
    office.file.write_text(f"{office.file.read_text()}\n[[dkim]]{section}\n")
    words = office("office.example")
    assert "the record is right" in words
    assert "has this key already" in words
    config, findings = check(office.file, not_yet=())
    assert config is not None, findings
    assert [(each.domain, each.selector, each.key_file) for each in config.dkim] == [
        ("office.example", "relay1", key_file)
    ]


def test_the_key_is_closed_to_others_and_never_made_anew(office: Office) -> None:
    first = office.ask("office.example")
    path = Path(first["key_file"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = path.read_bytes()
    second = office.ask("office.example", exits=1)
    assert (first["made"], second["made"]) == (True, False)
    assert first["record"] == second["record"]
    assert path.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_makes_belongs_to_the_relay(office: Office, pi_relay: CommandLine) -> None:
    os.chown(pi_relay.state_directory, 12345, 23456)
    path = Path(office.ask("office.example")["key_file"])
    for each in (path, path.parent):
        assert (each.stat().st_uid, each.stat().st_gid) == (12345, 23456)


def test_as_json(office: Office) -> None:
    document = office.ask("Office.Example", "--type", "ed25519", "--selector", "ed")
    record = read_key((office.folder / "dkim" / "ed.pem").read_bytes()).record
    assert document == {
        "domain": "office.example",
        "selector": "ed",
        "type": "ed25519",
        "bits": 256,
        "key_file": str(office.folder / "dkim" / "ed.pem"),
        "made": True,
        "configured": False,
        "record_name": "ed._domainkey.office.example",
        "record": record,
        "record_strings": [record],
        "dns": "absent",
        "dns_found": [],
    }


def test_the_zone_line_is_the_record_in_strings(office: Office) -> None:
    words = office("office.example")
    line = next(line for line in words.splitlines() if " IN TXT " in line)
    document = office.ask("office.example", exits=1)
    assert line == f'{NAME}. IN TXT ( "{document["record_strings"][0]}" "{document["record_strings"][1]}" )'
    assert "".join(document["record_strings"]) == document["record"]


@pytest.mark.parametrize(
    ("published", "says"),
    [
        ([], "absent"),
        (["v=DKIM1; k=rsa; p="], "revoked"),
        ([read_key(make_key("rsa")).record], "different"),
        (["v=spf1 -all", "v=DKIM1; p=QUJD"], "several"),
    ],
)
def test_a_record_that_is_not_right(office: Office, published: list[str], says: str) -> None:
    office.ask("office.example")
    office.records[NAME] = published
    document = office.ask("office.example", exits=1)
    assert document["dns"] == says
    assert sorted(document["dns_found"]) == sorted(published)
    assert all(text in office("office.example", exits=1) for text in published)


def test_a_new_key_under_a_name_that_is_taken(office: Office) -> None:
    office.records[NAME] = [read_key(make_key("rsa")).record]
    assert office.ask("office.example", exits=1)["dns"] == "different"


def test_a_dns_that_fails(office: Office) -> None:
    """A key just made is no failure for it; a record that cannot be checked later is one."""
    office.records[NAME] = FAILS
    assert office.ask("office.example")["dns"] == "unknown"
    assert "cannot be asked now" in office("office.example", exits=1)


def test_a_key_that_the_file_names_lies_where_it_says(office: Office) -> None:
    office.file.write_text(
        f"{office.file.read_text()}\n"
        '[[dkim]]\ndomain = "office.example"\nselector = "relay1"\nkey_file = "keys/mine.pem"\n'
        '[[dkim]]\ndomain = "branch.example"\nselector = "relay1"\nkey_file = "dkim/relay2.pem"\n'
    )
    assert office.ask("office.example")["key_file"] == str(office.folder / "keys" / "mine.pem")
    # Another domain's key is not taken for ours.
    other = office.ask("office.example", "--selector", "relay2")["key_file"]
    assert other == str(office.folder / "dkim" / "relay2.office.example.pem")


def test_a_file_with_errors_or_without_toml_is_no_hindrance(office: Office) -> None:
    office.file.write_text(f'dance = "x"\n{office.file.read_text()}')
    assert office.ask("office.example")["dns"] == "absent"
    office.file.write_text("= =")
    assert "relay1.pem" in office("office.example", exits=1)


def test_what_is_no_key_is_left_alone(office: Office) -> None:
    path = office.folder / "dkim" / "relay1.pem"
    path.parent.mkdir()
    path.write_text("hello")
    path.chmod(0o600)
    assert "holds no private key" in office("office.example", exits=1)
    assert path.read_text() == "hello"
    path.chmod(0o644)
    assert "chmod 600" in office("office.example", exits=1)


def test_another_type_under_the_same_selector(office: Office) -> None:
    office("office.example")
    assert "--selector" in office("office.example", "--type", "ed25519", exits=1)


def test_a_domain_beyond_ascii(office: Office) -> None:
    assert office.ask("büro.example")["record_name"] == "relay1._domainkey.xn--bro-hoa.example"


def test_in_japanese(office: Office) -> None:
    assert "新しい鍵を作りました" in office("office.example", LANG="ja_JP.UTF-8")
