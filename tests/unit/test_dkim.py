"""What is signed, by the letter of RFC 6376; dkimpy is the judge."""

from __future__ import annotations

import re
from hashlib import sha256

import dkim as dkimpy
import pytest
from dkim.canonicalization import Relaxed
from hypothesis import example, given
from hypothesis import strategies as st

from pi_relay import dkim
from pi_relay.signing_keys import KINDS, KeyInvalid, SigningKey, make_key, read_key

KEYS = {kind: read_key(make_key(kind)) for kind in KINDS}


def relaxed(chunks: list[bytes]) -> bytes:
    written: list[bytes] = []
    body = dkim.RelaxedBody(written.append)
    for chunk in chunks:
        body.update(chunk)
    body.close()
    return b"".join(written)


def stuffed(body: bytes) -> bytes:
    return re.sub(rb"(?m)^\.", b"..", body)


def by_dkimpy(body: bytes) -> bytes:
    canonical: bytes = Relaxed.canonicalize_body(body)
    return canonical


# ── the body ─────────────────────────────────────────────────────────────────────────────────────

BODIES = (
    (b"", b""),
    (b"\r\n", b""),
    (b"\r\n\r\n\r\n", b""),
    (b" \t\r\n\r\n", b""),
    (b"a", b"a\r\n"),
    (b"a\r\n", b"a\r\n"),
    (b"a\r\n\r\n\r\n", b"a\r\n"),
    (b"a \t \r\n \r\n", b"a\r\n"),
    (b"a \t b\t\r\n", b"a b\r\n"),
    (b"\r\n\r\na\r\n", b"\r\n\r\na\r\n"),
    (b" a\r\n\tb\r\n", b" a\r\n b\r\n"),
    (b"..\r\n.. a\r\n...b\r\na.\r\n..", b".\r\n. a\r\n..b\r\na.\r\n.\r\n"),
    (b"a\r\n\r\n\r\n..\r\n", b"a\r\n\r\n\r\n.\r\n"),
    (b"\xe9\xff\xa0 \xa0\r\n", b"\xe9\xff\xa0 \xa0\r\n"),
)


@pytest.mark.parametrize(("stored", "canonical"), BODIES)
@pytest.mark.parametrize("size_bytes", [1, 2, 3, 100])
def test_a_body_is_relaxed_whatever_the_chunks(stored: bytes, canonical: bytes, size_bytes: int) -> None:
    pieces = [stored[start : start + size_bytes] for start in range(0, len(stored), size_bytes)]
    assert relaxed(pieces) == canonical


@given(
    st.lists(st.sampled_from([b" ", b"\t", b"\r\n", b".", b"a", b"\xff", b"\r\n.", b"  \r\n"]), max_size=40),
    st.lists(st.integers(1, 5), min_size=1, max_size=20),
)
@example([b".", b"\r\n", b".", b"."], [3, 1])
def test_a_body_is_relaxed_as_dkimpy_does_it(words: list[bytes], sizes: list[int]) -> None:
    received = b"".join(words)
    if received and not received.endswith(b"\r\n"):
        received += b"\r\n"  # as it arrives: the end of data stands on a line of its own
    stored, pieces = stuffed(received), []
    while stored:
        sizes.append(sizes.pop(0))
        pieces.append(stored[: sizes[0]])
        stored = stored[sizes[0] :]
    assert relaxed(pieces) == by_dkimpy(received)


def test_many_line_ends_are_counted_not_kept() -> None:
    """A body of line ends alone does not gather in memory, and all of them are there if text follows."""
    longest, total = 0, 0

    def write(data: bytes) -> None:
        nonlocal longest, total
        longest, total = max(longest, len(data)), total + len(data)

    body = dkim.RelaxedBody(write)
    for _ in range(200):
        body.update(b"\r\n" * 4096)
    assert (longest, total) == (0, 0)
    body.update(b"a")
    body.close()
    assert total == 200 * 4096 * 2 + 3
    assert longest < 65536


# ── the header block ─────────────────────────────────────────────────────────────────────────────

HEADER = (
    b"Received: from a by b; Thu, 1 Jan 2026 00:00:00 +0000\r\n"
    b"From: Scans <scans@office.example>\r\n"
    b"To: a@elsewhere.example\r\n"
    b"Subject: a scan\r\n"
    b"\r\n"
)
BODY = b"A page.\r\n..\r\nAnother \t one. \r\n\r\n"
RECEIVED_BODY = b"A page.\r\n.\r\nAnother \t one. \r\n\r\n"


def signed(block: bytes, body: bytes = BODY, kind: str = "rsa", at: float | None = 1_700_000_000.0) -> bytes:
    """The field."""
    key = KEYS[kind]
    return dkim.signature(
        block,
        domain="office.example",
        selector="relay1",
        algorithm=key.algorithm,
        sign=key.sign,
        body_hash=sha256(relaxed([body])).digest(),
        at=at,
    )


def is_genuine(message: bytes, key: SigningKey) -> bool:
    records = {b"relay1._domainkey.office.example.": key.record.encode()}
    genuine: bool = dkimpy.verify(message, dnsfunc=lambda name, timeout=5: records.get(name))
    return genuine


BLOCKS = {
    "plain": HEADER,
    "folded": HEADER.replace(b"Subject: a", b"Subject:\r\n\ta \r\n  b\t\tc"),
    "repeated": b"To: b@elsewhere.example\r\nSubject: second\r\n" + HEADER + b"",
    "odd names": HEADER.replace(b"To:", b"tO:").replace(b"From:", b"FROM:"),
    "8-bit": HEADER.replace(b"a scan", b"Gesch\xe4ft \xe2\x82\xac"),
    "empty": HEADER.replace(b"a scan", b""),
    "every field": b"".join(
        b"%s: some\r\n text\r\n" % name.encode() for name in dkim.SIGNED if name != "From"
    )
    + HEADER,
    "signed before": b"DKIM-Signature: v=1; d=other.example; b=xyz\r\n" + HEADER,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BLOCKS)
def test_dkimpy_finds_the_signature_genuine(name: str, kind: str) -> None:
    field = signed(BLOCKS[name], kind=kind)
    assert is_genuine(field + BLOCKS[name] + RECEIVED_BODY, KEYS[kind])


@pytest.mark.parametrize(
    ("change", "to"),
    [
        (b"a scan", b"a scam"),
        (b"From: ", b"From: evil@office.example\r\nFrom: "),
        (b"Another", b"Yet another"),
        (b"elsewhere", b"somewhere"),
    ],
)
def test_what_was_changed_is_not_genuine(change: bytes, to: bytes) -> None:
    message = signed(HEADER) + HEADER + RECEIVED_BODY
    assert is_genuine(message, KEYS["rsa"])
    assert not is_genuine(message.replace(change, to, 1), KEYS["rsa"])


@pytest.mark.parametrize("name", BLOCKS)
def test_the_field_is_folded(name: str) -> None:
    field = signed(BLOCKS[name])
    assert field.startswith(b"DKIM-Signature: v=1;")
    assert max(map(len, field.split(b"\r\n"))) <= 78
    assert all(line.startswith(b"\t") for line in field.split(b"\r\n")[1:-1])
    assert field.endswith(b"\r\n")


def test_the_tags() -> None:
    field = b"".join(signed(HEADER).split())
    assert b"v=1;a=rsa-sha256;c=relaxed/relaxed;d=office.example;s=relay1;t=1700000000;" in field
    assert b"h=From:From:Subject:To;bh=" in field
    assert b"t=" not in b"".join(signed(HEADER, at=None).split()).partition(b"h=")[0]


FROMS = (
    (b"scans@office.example", "office.example"),
    (b"Scans <scans@Office.Example>", "office.example"),
    (b"<scans@office.example.>", "office.example"),
    (b'"boss@bank.example" <scans@office.example>', "office.example"),
    (b'"a, b@bank.example, c" <scans@office.example>', "office.example"),
    (b"boss@bank.example <scans@office.example>", "office.example"),
    (b"scans@office.example (boss@bank.example)", "office.example"),
    (b"(a (b@c.example) d) scans@office.example", "office.example"),
    (b'"a@b"@office.example', "office.example"),
    (b'"a \\" @b.example" <scans@office.example>', "office.example"),
    (b"scans@office.example, other@elsewhere.example", "office.example"),
    (b"Office: scans@office.example;", "office.example"),
    (b"<@a.example,@b.example:scans@office.example>", "office.example"),
    (b"Scans\r\n <scans@office.example>", "office.example"),
    (b"Scans <scans@office.example", "office.example"),
    ("<scans@büro.example>".encode(), "büro.example"),
    (b"nobody", ""),
    (b"", ""),
    (b'"' * 5000, ""),
)


@pytest.mark.parametrize(("value", "domain"), FROMS)
def test_the_domain_of_from(value: bytes, domain: str) -> None:
    assert dkim.from_domain(b"To: x@y.example\r\nfrom : " + value + b"\r\n\r\n") == domain


def test_no_from() -> None:
    assert dkim.from_domain(b"X-From: a@office.example\r\n\r\n") == ""


# ── the record in DNS ────────────────────────────────────────────────────────────────────────────


def test_a_record_is_split_in_strings_of_255() -> None:
    record = KEYS["rsa"].record
    strings = dkim.record_strings(record)
    assert "".join(strings) == record
    assert [len(each) <= 255 for each in strings] == [True, True]


@pytest.mark.parametrize(
    ("found", "trouble"),
    [
        (("v=DKIM1; k=rsa; p=QUJD",), ""),
        (("p=QU JD ;v=DKIM1",), ""),
        (("v=DKIM1; h=sha1:sha256; s=email; t=s; p=QUJD; n=note",), ""),
        ((), "absent"),
        (("v=DKIM1; p=QUJD", "v=DKIM1; p=QUJD"), "several"),
        (("v=DKIM1; p=",), "revoked"),
        (("v=DKIM1; p=QUJE",), "different"),
        (("v=DKIM1; k=ed25519; p=QUJD",), "different"),
        (("v=DKIM1; h=sha1; p=QUJD",), "different"),
        (("v=DKIM1; s=tlsrpt; p=QUJD",), "different"),
        (("hello",), "different"),
    ],
)
def test_what_is_found_is_compared(found: tuple[str, ...], trouble: str) -> None:
    assert dkim.record_trouble(found, "v=DKIM1; k=rsa; p=QUJD") == trouble


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


def test_keys_are_made_and_read() -> None:
    rsa, ed25519 = KEYS["rsa"], KEYS["ed25519"]
    assert (rsa.bits, rsa.algorithm) == (2048, "rsa-sha256")
    assert (ed25519.bits, ed25519.algorithm) == (256, "ed25519-sha256")
    assert ed25519.record.startswith("v=DKIM1; k=ed25519; p=")
    assert len(ed25519.public) == 44


@pytest.mark.parametrize("pem", [b"", b"hello", make_key("rsa")[:200]])
def test_what_is_no_key(pem: bytes) -> None:
    with pytest.raises(KeyInvalid) as invalid:
        read_key(pem)
    assert invalid.value.message
    assert invalid.value.hint
