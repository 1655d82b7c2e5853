"""What stands in a header block, and what is put in front of it."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Iterator
from email import message_from_bytes, policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_relay import headers
from pi_relay.headers import Header


def split(data: bytes) -> tuple[Header, bytes]:
    return headers.split(data, headers.end_of_block(data))


def test_names_are_in_order_and_in_lower_case() -> None:
    header = Header(b"RECEIVED: a\r\n\tb: c\r\nFrom : x\r\nSubject:\r\n y\r\n\r\n")
    assert header.names == [b"received", b"from", b"subject"]


def test_a_value_is_unfolded() -> None:
    header = Header(b"Subject: one\r\n two\r\n\tthree\r\nMessage-ID:\r\n <a@b>\r\n\r\n")
    assert header.value(b"subject") == b"one two three"
    assert header.value(b"message-id") == b"<a@b>"
    assert header.value(b"date") == b""


def test_every_field_of_a_name_is_left_out_and_the_rest_stays() -> None:
    header = Header(b"Return-Path: <a@b>\r\nTo: c\r\nRETURN-PATH:\r\n <d>\r\n\te\r\nCc: f\r\n\r\n")
    assert header.without(b"return-path").block == b"To: c\r\nCc: f\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "block", "body"),
    [
        (b"A: b\r\n\r\nbody\r\n", b"A: b\r\n\r\n", b"body\r\n"),
        (b"A: b\r\n", b"A: b\r\n\r\n", b""),
        (b"\r\nbody\r\n", b"\r\n", b"body\r\n"),
        (b"", b"\r\n", b""),
        (b"no header\r\nat all\r\n", b"\r\n", b"no header\r\nat all\r\n"),
        (b"A: b\r\nno field\r\nC: d\r\n\r\nbody\r\n", b"A: b\r\n\r\n", b"no field\r\nC: d\r\n\r\nbody\r\n"),
        (b" folds nothing\r\nA: b\r\n\r\n", b"\r\n", b" folds nothing\r\nA: b\r\n\r\n"),
        (b"A: b\r\n c\r\n\td\r\n\r\ne: f\r\n", b"A: b\r\n c\r\n\td\r\n\r\n", b"e: f\r\n"),
        (b": no name\r\n\r\nx\r\n", b"\r\n", b": no name\r\n\r\nx\r\n"),
        (b"..A: stuffed\r\n\r\nx\r\n", b"..A: stuffed\r\n\r\n", b"x\r\n"),
    ],
)
def test_where_the_header_ends(data: bytes, block: bytes, body: bytes) -> None:
    header, rest = split(data)
    assert (header.block, rest) == (block, body)


lines = st.sampled_from(
    [b"A: b", b" folded", b"\tfolded", b"", b"text", b"From: x", b":", b"x y: z", b"\xe9: a"]
)


@given(st.lists(lines, max_size=8))
def test_nothing_is_lost_and_the_block_is_only_fields(found: list[bytes]) -> None:
    data = b"".join(line + b"\r\n" for line in found)
    header, body = split(data)
    assert header.block.endswith(b"\r\n")
    assert header.block[:-2] + body in (
        data,
        data.replace(b"\r\n\r\n", b"\r\n", 1),
        data.removeprefix(b"\r\n"),
    )
    fields = header.block.removesuffix(b"\r\n")
    assert not fields or re.fullmatch(rb"(?:[!-9;-~]+[ \t]*:[^\r]*\r\n(?:[ \t][^\r]*\r\n)*)+", fields)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_the_end_is_found_whatever_was_seen_before(data: bytes, cuts: list[int]) -> None:
    data = data.replace(b"\0", b"\r\n")
    whole = headers.end_of_block(data)
    seen = 0
    for cut in sorted(min(cut, len(data)) for cut in cuts):
        end = headers.end_of_block(data[:cut], seen)
        if end >= 0:
            assert end == whole
            return
        seen = cut
    assert headers.end_of_block(data, seen) == whole


@pytest.fixture(params=["UTC", "Asia/Tokyo", "America/St_Johns"])
def time_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    headers._date.cache_clear()
    yield request.param
    monkeypatch.undo()
    time.tzset()
    headers._date.cache_clear()


def test_the_date_is_the_one_that_the_library_writes(time_zone: str) -> None:
    for at in (0.0, 1_709_210_096.7, 1_719_830_096.0):
        assert headers.date(at).decode() == email.utils.formatdate(at, localtime=True)


def test_the_trace_can_be_read_by_others() -> None:
    trace = headers.received(
        helo="NPIF65E56",
        client="192.168.1.23",
        by="relay.office.example",
        protocol="ESMTPSA",
        queue_id="0A1B2C",
        recipient="b@other.example",
        at=1_719_830_096.0,
    )
    message = message_from_bytes(trace + b"\r\n", policy=policy.SMTP)
    text = " ".join(str(message["Received"]).split())
    assert text.startswith(
        "from NPIF65E56 ([192.168.1.23]) by relay.office.example "
        "with ESMTPSA id 0A1B2C for <b@other.example>; "
    )
    moment = email.utils.parsedate_to_datetime(text.rpartition("; ")[2])
    assert moment.timestamp() == 1_719_830_096


@pytest.mark.parametrize(
    ("helo", "client", "opening"),
    [
        ("", "10.0.0.1", b"Received: from unknown ([10.0.0.1])\r\n"),
        ("a(b)\r\nX: y", "10.0.0.1", b"Received: from a?b???X:?y ([10.0.0.1])\r\n"),
        ("[10.0.0.1]", "fd00::1", b"Received: from [10.0.0.1] ([IPv6:fd00::1])\r\n"),
    ],
)
def test_an_odd_helo_cannot_write_fields(helo: str, client: str, opening: bytes) -> None:
    trace = headers.received(
        helo=helo, client=client, by="r.example", protocol="SMTP", queue_id="1", recipient="", at=0.0
    )
    assert trace.startswith(opening)
    assert b" for " not in trace
    assert all(len(line) < 998 for line in trace.split(b"\r\n"))


@pytest.mark.parametrize(
    ("extended", "utf8", "tls", "authenticated", "name"),
    [
        (False, False, False, False, "SMTP"),
        (True, False, False, False, "ESMTP"),
        (True, False, True, False, "ESMTPS"),
        (True, False, True, True, "ESMTPSA"),
        (True, True, True, True, "UTF8SMTPSA"),
    ],
)
def test_the_protocol_is_named_as_registered(
    extended: bool, utf8: bool, tls: bool, authenticated: bool, name: str
) -> None:
    assert headers.protocol_name(extended=extended, utf8=utf8, tls=tls, authenticated=authenticated) == name


def repairs(block: bytes, by: str = "relay.office.example", reverse_path: str = "") -> bytes:
    return headers.repairs(Header(block), queue_id="ID", by=by, reverse_path=reverse_path, at=1.0)


def test_only_what_is_missing_is_added() -> None:
    assert repairs(b"Date: x\r\nMessage-ID: <y>\r\n\r\n") == b""
    assert repairs(b"Date: x\r\n\r\n") == b"Message-ID: <1.ID@relay.office.example>\r\n"
    assert repairs(b"Message-ID: <y>\r\n\r\n").startswith(b"Date: ")


def test_a_signed_message_stays_as_it_is() -> None:
    assert repairs(b"DKIM-Signature: v=1\r\nFrom: a@b\r\n\r\n") == b""


@pytest.mark.parametrize(
    ("block", "by", "reverse_path", "domain"),
    [
        (b"From: Copier <scan@office.example>\r\n\r\n", "pi.local", "", b"office.example"),
        (b"From: scan@office.example (Copier)\r\n\r\n", "pi", "", b"office.example"),
        (b"\r\n", "pi.home.arpa", "scan@office.example", b"office.example"),
        (b"\r\n", "pi.local", "", b"pi.local"),
        (b"From: scan@office.example\r\n\r\n", "relay.example", "", b"relay.example"),
    ],
)
def test_a_message_id_needs_a_domain_that_others_know(
    block: bytes, by: str, reverse_path: str, domain: bytes
) -> None:
    found = re.search(rb"^Message-ID: <[^@]+@([^>]+)>\r$", repairs(block, by, reverse_path), re.MULTILINE)
    assert found is not None
    assert found[1] == domain
