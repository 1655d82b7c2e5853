"""Signed mail as the next hop receives it, judged by dkimpy and OpenDKIM; and keys in trouble."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import tracemalloc
from pathlib import Path

import pytest

from pi_relay import maillog
from pi_relay.config import Config, Dkim, SmartHost
from pi_relay.delivery import signing
from pi_relay.delivery.signing import Signer, SigningFailed
from pi_relay.model import FileSpan, StoredMessage
from pi_relay.signing_keys import make_key, read_key
from tests.delivery.office import HEADER, Office, config, deliver_once, fates, smart_host, with_office
from tests.support import signatures
from tests.support.misbehaving_hop import MisbehavingHop

PEMS = {kind: make_key(kind) for kind in ("rsa", "ed25519")}


class Keys:
    """Key files, their `[[dkim]]` entries, and their records as DNS would have them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: tuple[Dkim, ...] = ()
        self.records: dict[str, str] = {}

    def add(self, selector: str, kind: str = "rsa", domain: str = "office.example") -> Dkim:
        entry = Dkim(domain, selector, self.folder / f"{selector}.pem")
        self.put(entry, PEMS[kind])
        self.entries += (entry,)
        return entry

    def put(self, entry: Dkim, pem: bytes) -> None:
        entry.key_file.write_bytes(pem)
        self.records[f"{entry.selector}._domainkey.{entry.domain}"] = read_key(pem).record


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def office(keys: Keys, *hosts: SmartHost) -> Config:
    return config(*hosts, dkim=keys.entries)


def received(hop: MisbehavingHop, number: int = 0) -> bytes:
    """The message as a mailbox would have it: dots unstuffed, and the trace that the next hop puts on top."""
    content = hop.messages[number].content
    content = content if content.endswith(b"\r\n") else content + b"\r\n"
    return b"Received: by hop.example; now\r\n" + content.replace(b"\r\n.", b"\r\n")


def relayed(keys: Keys, message: StoredMessage) -> bytes:
    with MisbehavingHop() as hop:
        assert fates(deliver_once(office(keys, smart_host(hop)), message=message)) == ["relayed"]
    return received(hop)


def in_file(path: Path, header: bytes, body: bytes) -> StoredMessage:
    path.write_bytes(b"before" + body + b"after")
    return StoredMessage(header, FileSpan(str(path), 6, len(body)))


BODIES = {
    "empty": b"",
    "no line end": b"a page",
    "empty lines": b"a\r\n\r\n\r\n",
    "only empty lines": b"\r\n\r\n",
    "dots": b"..\r\n..a\r\n...\r\na.\r\n",
    "blanks": b"a \t b \t\r\n \r\n c\r\n",
    "8-bit": b"\xe9\xff \xa0\r\n",
    "long line": b"x" * 100_000 + b"\r\n",
}
# OpenDKIM's test mode reads a file in lines of bounded length, and wants some body.
NOT_FOR_OPENDKIM = ("long line",)


@pytest.mark.parametrize("stored_in", ["memory", "a file"])
@pytest.mark.parametrize("name", BODIES)
def test_bodies(keys: Keys, tmp_path: Path, name: str, stored_in: str) -> None:
    keys.add("relay1")
    body = BODIES[name]
    message = StoredMessage(HEADER, body) if stored_in == "memory" else in_file(tmp_path / "m", HEADER, body)
    arrived = relayed(keys, message)
    assert signatures.count(arrived) == 1
    assert signatures.dkimpy_verifies(arrived, keys.records)
    if not signatures.missing_tools() and name not in NOT_FOR_OPENDKIM:
        assert signatures.opendkim_verifies(arrived, keys.records)


HEADERS = {
    "folded": b"From:\r\n Scans\r\n\t<scans@office.example>\r\nSubject: a\r\n  long   one \r\n\r\n",
    "repeated": b"From: scans@office.example\r\nTo: a@x.example\r\nTo: b@x.example\r\nSubject: 1\r\n"
    b"Subject: 2\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n",
    "8-bit": b"From: B\xfcro <scans@office.example>\r\nSubject: Gesch\xe4ft\r\n\r\n",
    "UTF-8": "From: Büro <scans@office.example>\r\nSubject: 見積\r\n\r\n".encode(),
    "signed by another": b"DKIM-Signature: v=1; a=rsa-sha256; d=x.example; s=a; h=From; bh=YQ==; b=YQ==\r\n"
    + HEADER,
    "odd": b"FROM: scans@office.example\r\nX-Empty:\r\nSubject:\r\n\r\n",
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(keys: Keys, name: str) -> None:
    keys.add("relay1")
    header = b"Date: Tue, 24 Nov 2026 15:00:00 +0000\r\n" + HEADERS[name]
    arrived = relayed(keys, StoredMessage(header, b"a page\r\n"))
    assert arrived.endswith(header + b"a page\r\n")  # not an octet of it is touched
    alone = re.sub(rb"(?m)^DKIM-Signature: v=1; a=rsa-sha256; d=x.example.*\r\n", b"", arrived)
    assert signatures.dkimpy_verifies(alone, keys.records)
    assert signatures.missing_tools() or signatures.opendkim_verifies(alone, keys.records)


def test_two_keys_make_two_signatures(keys: Keys) -> None:
    keys.add("relay1")
    keys.add("relay2", "ed25519")
    arrived = relayed(keys, StoredMessage(HEADER, b"a page\r\n"))
    assert signatures.count(arrived) == 2
    assert signatures.dkimpy_verifies(arrived, keys.records)
    assert signatures.missing_tools() or signatures.opendkim_verifies(arrived, keys.records)


def test_the_judges_know_a_forgery(keys: Keys) -> None:
    keys.add("relay1")
    forged = relayed(keys, StoredMessage(HEADER, b"a page\r\n")).replace(b"a page", b"a pace")
    assert not signatures.dkimpy_verifies(forged, keys.records)
    assert signatures.missing_tools() or not signatures.opendkim_verifies(forged, keys.records)


@pytest.mark.parametrize(
    "sender", [b"a@elsewhere.example", b"a@sub.office.example", b"nobody", b"office.example"]
)
def test_mail_of_other_domains_is_not_signed(keys: Keys, sender: bytes) -> None:
    keys.add("relay1")
    arrived = relayed(keys, StoredMessage(b"From: " + sender + b"\r\n\r\n", b"a page\r\n"))
    assert signatures.count(arrived) == 0


def test_a_domain_beyond_ascii(keys: Keys) -> None:
    keys.add("relay1", domain="xn--bro-hoa.example")
    header = "From: <scans@Büro.example>\r\n\r\n".encode()
    assert signatures.dkimpy_verifies(relayed(keys, StoredMessage(header, b"a page\r\n")), keys.records)


def test_a_wrong_clock_is_not_told(keys: Keys) -> None:
    keys.add("relay1")

    def signed(clock_is_wrong: bool) -> bytes:
        signer = Signer(lambda: clock_is_wrong)
        return asyncio.run(signer.sign(keys.entries, "Q1", StoredMessage(HEADER, b"a\r\n"))).header

    assert re.search(rb"\bt=\d+;", signed(False))
    assert not re.search(rb"\bt=", signed(True))
    assert signatures.dkimpy_verifies(signed(True) + b"a\r\n", keys.records)


# ── large bodies ─────────────────────────────────────────────────────────────────────────────────


def test_35_mb_are_signed_in_flat_memory(keys: Keys, tmp_path: Path) -> None:
    keys.add("relay1")
    lines = (b"0123456789" * 7 + b"\r\n", b"..a  page\t \r\n", b" \t" * 40_000, b"\r\n" * 40_000)
    body = b"".join(line * (8_750_000 // len(line)) for line in lines) + b"The end.\r\n"
    message = in_file(tmp_path / "m", HEADER, body)
    signer = Signer()
    asyncio.run(signer.sign(keys.entries, "Q0", StoredMessage(HEADER, b"")))  # imports
    threads: set[int] = set()
    read = os.pread

    def pread(*arguments: int) -> bytes:
        threads.add(threading.get_ident())
        return read(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", pread)
        tracemalloc.start()
        try:
            signed = asyncio.run(signer.sign(keys.entries, "Q1", message))
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak_bytes < 2_000_000
    assert threading.get_ident() not in threads  # the loop was free meanwhile
    assert signatures.dkimpy_verifies(signed.header + body.replace(b"\r\n.", b"\r\n"), keys.records)


def test_a_body_is_hashed_once(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.add("relay1")
    opened: list[str] = []
    chunks = signing._chunks
    monkeypatch.setattr(signing, "_chunks", lambda span: (opened.append(span.path), chunks(span))[1])
    message = in_file(tmp_path / "m", HEADER, b"a page\r\n" * 30_000)

    async def thrice(office: Office) -> None:
        assert fates(await office.deliver(message=message)) == ["message transient 451"]
        for via in ("isp", "spare"):
            assert fates(await office.deliver(message=message, via=(via,))) == ["relayed"]

    with MisbehavingHop({"DOT": ["451 4.3.0 later", "250 2.0.0 ok"]}) as hop, MisbehavingHop() as spare:
        with_office(office(keys, smart_host(hop), smart_host(spare, "spare")), thrice)
    assert len(opened) == 1
    assert all(signatures.dkimpy_verifies(received(each), keys.records) for each in (hop, spare))


def test_remembered_hashes_are_bounded(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "BODY_HASHES_MAX", 3)
    keys.add("relay1")
    message = in_file(tmp_path / "m", HEADER, b"a page\r\n")

    async def many() -> Signer:
        signer = Signer()
        for number in range(5):
            await signer.sign(keys.entries, f"Q{number}", message)
        return signer

    assert [queue_id for queue_id, _ in asyncio.run(many())._body_hashes] == ["Q2", "Q3", "Q4"]


# ── keys in trouble ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def alerts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(maillog, "alert", lambda *, reason, **_: said.append(reason))
    return said


TROUBLES = {
    "gone": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "another kind of file": lambda path: (path.unlink(), path.mkdir()),
    "not a key": lambda path: path.write_text("hello"),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_mail_waits_for_its_key(keys: Keys, alerts: list[str], name: str) -> None:
    """Nothing goes out unsigned, nothing bounces, and the next hop is none the worse for it."""
    entry = keys.add("relay1")

    async def use(office: Office) -> None:
        assert fates(await office.deliver()) == ["relayed"]
        TROUBLES[name](entry.key_file)
        for _ in range(3):
            assert fates(await office.deliver()) == ["account transient 451"]
        assert office.delivery.hop_state("isp").condition == "open"
        other = StoredMessage(b"From: a@elsewhere.example\r\n\r\n", b"a page\r\n")
        assert fates(await office.deliver(message=other)) == ["relayed"]
        if entry.key_file.is_dir():
            entry.key_file.rmdir()
        keys.put(entry, PEMS["rsa"])
        assert fates(await office.deliver()) == ["relayed"]

    with MisbehavingHop() as first, MisbehavingHop() as second:
        with_office(office(keys, smart_host(first), smart_host(second, "spare")), use)
    assert second.messages == []  # another next hop could not mend it
    assert [signatures.count(received(first, number)) for number in range(3)] == [1, 0, 1]
    assert len(alerts) == 1
    assert str(entry.key_file) in alerts[0]


def test_one_bad_key_of_two_is_trouble(keys: Keys, alerts: list[str]) -> None:
    keys.add("relay1")
    keys.add("relay2", "ed25519").key_file.unlink()
    with MisbehavingHop() as hop:
        assert fates(deliver_once(office(keys, smart_host(hop)))) == ["account transient 451"]
    assert hop.messages == []


def test_trouble_is_told_again_after_it_was_over(keys: Keys, alerts: list[str]) -> None:
    entry = keys.add("relay1")
    message = StoredMessage(HEADER, b"")

    async def use() -> None:
        signer = Signer()
        for _ in range(2):
            entry.key_file.unlink()
            with pytest.raises(SigningFailed):
                await signer.sign(keys.entries, "Q1", message)
            keys.put(entry, PEMS["rsa"])
            await signer.sign(keys.entries, "Q1", message)

    asyncio.run(use())
    assert len(alerts) == 2


def test_a_key_that_changes_is_taken_up(keys: Keys) -> None:
    entry = keys.add("relay1")

    async def use(office: Office) -> None:
        assert fates(await office.deliver()) == ["relayed"]
        before = dict(keys.records)
        keys.put(entry, make_key("rsa"))
        assert before != keys.records
        assert fates(await office.deliver()) == ["relayed"]

    with MisbehavingHop() as hop:
        with_office(office(keys, smart_host(hop)), use)
    assert not signatures.dkimpy_verifies(received(hop, 0), keys.records)
    assert signatures.dkimpy_verifies(received(hop, 1), keys.records)
