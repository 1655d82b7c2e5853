"""The header block: where it ends, what stands in it, and what is put in front."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pi_relay import headers
from pi_relay.headers import CRLF, Header

AT = 1_772_323_200.0  # 2026-03-01 00:00:00 UTC


def split(data: bytes) -> tuple[bytes, bytes]:
    header, body = headers.split(data, headers.end_of_block(data))
    return header.block, body


@pytest.mark.parametrize(
    ("data", "block", "body"),
    [
        (b"A: 1\r\n\r\nx\r\n", b"A: 1\r\n\r\n", b"x\r\n"),
        (b"A: 1\r\n two\r\n\tthree\r\nB : 2\r\n\r\n", b"A: 1\r\n two\r\n\tthree\r\nB : 2\r\n\r\n", b""),
        (b"\r\nx\r\n", b"\r\n", b"x\r\n"),
        (b"\r\n", b"\r\n", b""),
        (b"", b"\r\n", b""),
        (b"A: 1\r\n", b"A: 1\r\n\r\n", b""),
        (b"text\r\n", b"\r\n", b"text\r\n"),
        (b"text\r\n\r\nmore\r\n", b"\r\n", b"text\r\n\r\nmore\r\n"),
        (b"A: 1\r\nno field\r\nB: 2\r\n\r\nx\r\n", b"A: 1\r\n\r\n", b"no field\r\nB: 2\r\n\r\nx\r\n"),
        (b" continues nothing\r\nA: 1\r\n\r\n", b"\r\n", b" continues nothing\r\nA: 1\r\n\r\n"),
        (b"..dot\r\n", b"\r\n", b"..dot\r\n"),
        (b": no name\r\n\r\n", b"\r\n", b": no name\r\n\r\n"),
        (b"\xc3\xa9: 1\r\n\r\n", b"\r\n", b"\xc3\xa9: 1\r\n\r\n"),
        (b"A: \xff\r\n\r\n", b"A: \xff\r\n\r\n", b""),
    ],
)
def test_header_and_body_are_told_apart(data: bytes, block: bytes, body: bytes) -> None:
    assert split(data) == (block, body)


LINES = st.lists(
    st.sampled_from([b"A: 1", b"From: a@b", b" more", b"\t", b"text", b"", b"..", b"x y: z", b"Date:"]),
    max_size=8,
)


@given(LINES)
@example([b"text", b"A: 1"])
def test_nothing_is_lost_and_the_header_holds_only_fields(lines: list[bytes]) -> None:
    data = b"".join(line + CRLF for line in lines)
    block, body = split(data)
    assert data in (block + body, block[:-2] + body)  # an empty line is added at most
    fields = block.split(CRLF)[:-2]
    assert block.endswith(CRLF) and (not fields or fields[0][:1] not in b" \t")
    assert all(re.match(rb"[!-9;-~]+[ \t]*:|[ \t]", field) for field in fields)


@given(LINES, st.data())
def test_the_end_is_found_however_the_block_is_cut(lines: list[bytes], choice: st.DataObject) -> None:
    data = b"".join(line + CRLF for line in lines)
    whole = headers.end_of_block(data)
    cuts = sorted(choice.draw(st.sets(st.integers(0, len(data)))) | {len(data)})
    seen = 0
    for cut in cuts:
        found = headers.end_of_block(data[:cut], seen)
        seen = cut
        if found >= 0:
            break
    assert found == whole


def test_fields_are_read_and_dropped() -> None:
    header = Header(b"Return-Path: <a>\r\nX: 1\r\nreturn-PATH :\r\n <b>\r\nFrom: a\r\n\tb@c\r\n\r\n")
    assert header.names == [b"return-path", b"x", b"return-path", b"from"]
    assert header.value(b"from") == b"a b@c"
    assert header.value(b"date") == b""
    assert header.without(b"return-path").block == b"X: 1\r\nFrom: a\r\n\tb@c\r\n\r\n"
    assert header.without(b"date") is header
    assert Header(CRLF).names == []
    assert Header(b"X: 1\r\nReturn-Path: <a>\r\n\r\n").without(b"return-path").block == b"X: 1\r\n\r\n"
    assert Header(b"Return-Path: <a>\r\n\r\n").without(b"return-path").block == b"\r\n"


def test_a_name_in_a_value_is_no_field() -> None:
    header = Header(b"Subject: From: x\r\n From: y\r\n\r\n")
    assert header.names == [b"subject"]
    assert header.value(b"from") == b""


@pytest.mark.parametrize(
    "block",
    [
        b"Subject: x\r\n" + b" y\r\n" * 60_000,
        b"From: " + b"(" * 50_000 + b"\r\n",
        b"Return-Path:" + b" \r\n" * 60_000 + b"X: 1\r\n",
        b"A:\r\n" * 50_000,
        b"x" * 250_000 + b"\r\n",
    ],
)
def test_work_is_linear(block: bytes) -> None:
    """Twice the header costs about twice, not four times; what is quadratic here takes minutes."""
    header, _ = headers.split(block + CRLF, headers.end_of_block(block + CRLF))
    header.without(b"return-path")
    header.value(b"from")
    headers.repairs(header, queue_id="1", by="relay.office.example", reverse_path="", at=AT)


def trace(**more: str) -> bytes:
    given = {
        "helo": "scanner", "client": "192.168.1.7", "by": "relay.office.example", "protocol": "ESMTP",
        "queue_id": "0001", "recipient": "",
    }  # fmt: skip
    return headers.received(**(given | more), at=AT)


def test_received() -> None:
    field = trace(recipient="b@other.example")
    assert re.fullmatch(
        rb"Received: from scanner \(\[192\.168\.1\.7\]\)\r\n\tby relay\.office\.example with ESMTP"
        rb" id 0001\r\n"
        rb"\tfor <b@other\.example>;\r\n\t[^\r\n]+\r\n",
        field,
    )
    when = email.utils.parsedate_to_datetime(field.decode().rpartition(";")[2].strip())
    assert when.timestamp() == AT


@pytest.mark.parametrize("helo", ["", "a b", "x;y", 'a\\"b', "\udcff", "é", "(" * 300, "a\tb", "<script>"])
def test_a_client_cannot_write_into_received(helo: str) -> None:
    field = trace(helo=helo)
    name = field[len(b"Received: from ") : field.index(b" ([")]
    assert name and re.fullmatch(rb"[A-Za-z0-9.:_\[\]?-]{1,255}", name)


def test_received_of_ipv6_and_of_several_recipients() -> None:
    assert b"([IPv6:fd00::7])" in trace(client="fd00::7")
    assert b"for <" not in trace()


def test_protocol_names() -> None:
    names = {
        headers.protocol_name(extended=extended, utf8=utf8, tls=tls, authenticated=authenticated)
        for extended in (False, True)
        for utf8 in (False, True)
        for tls in (False, True)
        for authenticated in (False, True)
    }
    assert {"SMTP", "ESMTP", "ESMTPS", "ESMTPA", "ESMTPSA", "UTF8SMTP", "UTF8SMTPSA"} <= names
    assert headers.protocol_name(extended=True, utf8=False, tls=True, authenticated=True) == "ESMTPSA"


def repairs(
    block: bytes, *, by: str = "relay.office.example", reverse_path: str = "a@office.example"
) -> bytes:
    return headers.repairs(Header(block), queue_id="0001", by=by, reverse_path=reverse_path, at=AT)


def test_what_is_missing_is_added() -> None:
    both = repairs(b"Subject: s\r\n\r\n")
    assert re.fullmatch(rb"Date: [^\r\n]+\r\nMessage-ID: <[^@>\r\n]+@relay\.office\.example>\r\n", both)
    assert repairs(b"DATE: x\r\nMessage-Id: <1@x>\r\n\r\n") == b""
    assert repairs(b"Date: x\r\n\r\n").startswith(b"Message-ID: ")
    assert repairs(b"DKIM-Signature: v=1\r\n\r\n") == b""


def test_by_a_wrong_clock_the_date_is_left_for_later() -> None:
    block = b"Received: from x\r\nSubject: s\r\n\r\n"
    given = {"queue_id": "0001", "by": "relay.office.example", "reverse_path": ""}
    assert b"Date:" not in headers.repairs(Header(block), at=AT, dated=False, **given)
    dated = headers.with_date(block, AT)
    assert dated == b"Received: from x\r\nSubject: s\r\nDate: " + headers.date(AT) + b"\r\n\r\n"
    assert headers.with_date(dated, 0.0) is dated
    for own in (b"Received: x\r\nDATE : x\r\n\r\n", b"Received: x\r\nDKIM-Signature: v=1\r\n\r\n"):
        assert headers.with_date(own, AT) is own


def test_a_private_hostname_stays_inside() -> None:
    assert repairs(b"From: A <x@shop.example>\r\n\r\n", by="pi.local").endswith(b"@shop.example>\r\n")
    assert repairs(b"\r\n", by="raspberrypi").endswith(b"@office.example>\r\n")
    assert repairs(b"\r\n", by="raspberrypi", reverse_path="").endswith(b"@raspberrypi>\r\n")
    assert b"\r\n" not in repairs(b"From: <a@b\r\n c>\r\n\r\n", by="pi").split(b"Message-ID:")[1][:-2]


@pytest.mark.parametrize("at", [0.0, AT, 4_102_444_800.0])
def test_dates_are_read_back(at: float) -> None:
    assert email.utils.parsedate_to_datetime(headers.date(at).decode()).timestamp() == at


@pytest.fixture(params=["UTC", "Asia/Tokyo", "America/St_Johns"])
def time_zone(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        headers._date.cache_clear()
        yield
    time.tzset()
    headers._date.cache_clear()


@pytest.mark.usefixtures("time_zone")
def test_dates_are_those_that_the_library_writes() -> None:
    for at in (0.0, AT, 1_709_210_096.7, 1_719_830_096.0):
        assert headers.date(at).decode() == email.utils.formatdate(at, localtime=True)
