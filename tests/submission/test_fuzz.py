"""Sessions at random: whatever a client sends, however it is cut, we keep our word.

Held against each: every reply is well formed, nothing but replies is said, what is answered "queued" is in
the queue once and as it was sent, what is not is not, what is kept can be handed on; and (by the room itself)
no exception, no task, no place in the queue is left. The client is a legacy device, so that it may try AUTH
without TLS; at TLS its bytes are no handshake. Everyday the sessions are few; the long tests hold many more,
and look at our memory.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pi_relay import passwords
from pi_relay.config import Device
from pi_relay.delivery.transaction import Extensions, commands
from pi_relay.model import Envelope, StoredMessage
from pi_relay.submission.auth import Authenticator
from tests.support.submission_room import PASSWORD, PASSWORD_HASH, SUBMISSION, Client, Room, configuration

GROWTH_MAX_BYTES = 8_000_000

START_TLS = b"220 2.0.0 start TLS\r\n"

MAILS = [
    b"MAIL FROM:<a@office.example>",
    b"MAIL FROM:<> SIZE=10 BODY=8BITMIME",
    b"MAIL FROM:a@office.example SMTPUTF8",
    b"MAIL FROM:<a@office.example> RET=FULL ENVID=QQ+3D314",
    b"MAIL FROM:<a@office.example> ret=hdrs smtputf8 size=0 body=7bit",
    b"MAIL FROM:<a@office.example> ENVID=+0D+0A RET=NONE",
    b"MAIL FROM:<a@office.example> REQUIRETLS",
    b"MAIL FROM:<x@evil.example>",
    b"MAIL FROM:<KONICA MINOLTA>",
    b"MAIL FROM:",
    b"MAIL",
]
RCPTS = [
    b"RCPT TO:<b@other.example>",
    b"RCPT TO:b@other.example",
    b"RCPT TO:<b@other.example> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;b+2Bx@other.example",
    b"RCPT TO:<b@other.example> notify=never",
    b"RCPT TO:<b@other.example> NOTIFY=NEVER,SUCCESS",
    b"RCPT TO:<b@other.example> ORCPT=utf-8;\xc3\xa9@other.example",
    b"RCPT TO:<\xc3\xa9@other.example>",
    b"RCPT TO:<",
]
SIGNING_IN = [
    b"AUTH PLAIN AGEAYg==",
    b"AUTH PLAIN AHNjYW5uZXIAY29ycmVjdCBob3JzZQ==",
    b"AUTH PLAIN\r\nAHNjYW5uZXIAY29ycmVjdCBob3JzZQ==",
    b"AUTH PLAIN\r\n*",
    b"AUTH LOGIN\r\nc2Nhbm5lcg==\r\nY29ycmVjdCBob3JzZQ==",
    b"AUTH LOGIN c2Nhbm5lcg==\r\nd3Jvbmc=",
    b"AUTH LOGIN\r\n=\r\n=",
    b"AUTH LOGIN",
    b"AUTH CRAM-MD5",
    b"AUTH",
]
OTHERS = [
    b"EHLO device",
    b"HELO device",
    b"HELO ",
    b"EHLO",
    b"DATA",
    b"DATA x",
    b"RSET",
    b"NOOP",
    b"VRFY x",
    b"HELP",
    b"EXPN",
    b"QUIT now",
    b"STARTTLS",
    b"STARTTLS now",
    b"BDAT 1",
    b".",
    b"",
]
COMMANDS = st.sampled_from([*MAILS, *RCPTS, *SIGNING_IN, *OTHERS])
LINES = st.sampled_from(
    [
        b"Subject: s",
        b"From: a@office.example",
        b"From: x@evil.example",
        b"Sender: (",
        b" folded",
        b"",
        b"text",
        b"..",
        b"Date: x",
    ]
)
MESSAGES = st.lists(LINES, max_size=5).map(lambda lines: b"".join(line + b"\r\n" for line in lines) + b".")
ODD = st.one_of(
    st.binary(max_size=30),
    st.sampled_from(
        [b"\r", b"\n", b"\0", b"a\nb", b"a\rb", b"\r\n.", b"x" * 600, b"x" * 13_000, b"\xff" * 40]
    ),
)
TRANSACTION = st.builds(
    lambda *parts: b"\r\n".join((*parts[:2], *parts[2], *parts[3:])),
    st.sampled_from([b"EHLO d", b"HELO d", b"EHLO d\r\n" + SIGNING_IN[1]]),
    st.sampled_from(MAILS),
    st.lists(st.sampled_from(RCPTS), min_size=1, max_size=3),
    st.just(b"DATA"),
    MESSAGES,
)
PIECES = st.lists(st.one_of(COMMANDS, COMMANDS, TRANSACTION, MESSAGES, ODD), max_size=14)
ENDS = st.sampled_from([b"\r\nQUIT\r\n", b"\r\n.\r\nQUIT\r\n", b""])


RULES = replace(SUBMISSION, sender_domains=("office.example",), default_sender="relay@office.example")
DEVICES = (
    Device("old", address="127.0.0.1", legacy=True),
    Device("scanner", address="127.0.0.0/8", username="scanner", password_hash=PASSWORD_HASH, legacy=True),
)


@pytest.fixture(scope="module", params=[SUBMISSION, RULES], ids=["any sender", "rules"])
def room(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    server_context: ssl.SSLContext,
) -> Iterator[Room]:
    directory = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(passwords, "verify", lambda password, _: password == PASSWORD)  # at once
        with Room(
            configuration(directory, submission=request.param, devices=DEVICES),
            log_directory=directory / "log",
            context=server_context,
            legacy_context=server_context,
            authenticator=Authenticator(delay_seconds=0),
        ) as opened:
            yield opened


def often(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


sessions = given(PIECES, ENDS, st.lists(st.integers(0, 4000), max_size=6))


@often(300)
@sessions
@example([b"EHLO d\r\nMAIL FROM:<a@b>\r\nRCPT TO:<b@c>\r\nDATA\r\n."], b"\r\nQUIT\r\n", [])
def test_a_session(room: Room, pieces: list[bytes], end: bytes, cuts: list[int]) -> None:
    hold_a_session(room, pieces, end, cuts)


@pytest.mark.slow
def test_many_sessions_do_not_grow_us(room: Room) -> None:
    """All of them once and again, without hypothesis, which remembers what it tried."""
    held: list[tuple[list[bytes], bytes, list[int]]] = []

    @often(2000)
    @sessions
    def hold(pieces: list[bytes], end: bytes, cuts: list[int]) -> None:
        held.append((pieces, end, cuts))
        hold_a_session(room, pieces, end, cuts)

    def memory_bytes_after_all() -> int:
        for session in held:
            hold_a_session(room, *session)
            room.queued.clear()
        resident: int = psutil.Process().memory_info().rss
        return resident

    hold()
    warm_bytes = memory_bytes_after_all()
    for _ in range(2):
        memory_bytes_after_all()
    assert memory_bytes_after_all() - warm_bytes < GROWTH_MAX_BYTES


def hold_a_session(room: Room, pieces: list[bytes], end: bytes, cuts: list[int]) -> None:
    said = b"\r\n".join(pieces) + end
    before = len(room.queued)
    with Client(room.port) as client:
        for start, stop in _parts(len(said), cuts):
            try:
                client.send(said[start:stop])
            except (BrokenPipeError, ConnectionResetError):
                break
        with suppress(OSError):
            client.socket.shutdown(socket.SHUT_WR)
        heard = client.rest()
    heard, begun, _ = heard.partition(START_TLS)
    heard += begun  # what OpenSSL says after it is its own
    lines = heard.split(b"\r\n")
    assert lines.pop() == b"" and lines[0].startswith(b"220 ")
    assert all(re.fullmatch(rb"[2-5][0-9]{2}[ -][ -~]*", line) for line in lines), heard
    promised = re.findall(rb"(?m)^250 2\.0\.0 queued as (\S+)\r$", heard)
    kept = room.queued[before:]
    assert [envelope.queue_id.encode() for envelope, _ in kept] == promised
    for envelope, content in kept:
        assert envelope.device in ("old", "scanner")
        assert_can_be_handed_on(envelope)
        assert envelope.message_size_bytes == len(content)
        header, body = content[: envelope.header_size_bytes], content[envelope.header_size_bytes :]
        assert header.startswith(b"Received: from ") and header.endswith(b"\r\n\r\n")
        assert not body or body.endswith(b"\r\n")
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0|\r\n\.\r\n", content)
        if room.config.submission is RULES:
            assert not re.search(rb"(?m)^(?:From|Sender): x@evil", header)
            assert envelope.reverse_path in ("", "a@office.example", "relay@office.example")


def assert_can_be_handed_on(envelope: Envelope) -> None:
    """With every parameter, as commands of one line each."""
    everything = Extensions(True, 0, True, True, True)
    nothing = StoredMessage(b"", b"")
    said = commands(
        envelope, envelope.recipients, envelope.reverse_path, nothing, everything, smtputf8=envelope.smtputf8
    )
    for line in (said.mail, *said.rcpts):
        assert line.endswith(b"\r\n") and len(line) <= 2048
        assert not re.search(rb"[\x00-\x1f\x7f]", line[:-2])
        assert envelope.smtputf8 or line.isascii()


def _parts(size: int, cuts: list[int]) -> Iterator[tuple[int, int]]:
    marks = sorted({0, size, *(cut for cut in cuts if cut < size)})
    yield from pairwise(marks)


LINE = st.binary(max_size=40).map(lambda line: re.sub(rb"[\r\n\0]", b"?", line))


@often(150)
@given(st.lists(LINE, max_size=20), st.lists(st.integers(0, 500), max_size=4))
def test_what_is_accepted_is_what_is_queued(room: Room, lines: list[bytes], cuts: list[int]) -> None:
    """The body comes out octet by octet as it went in (and dot-stuffed, as it stays in the queue)."""
    stuffed = b"".join((b"." + line if line[:1] == b"." else line) + b"\r\n" for line in lines)
    before = len(room.queued)
    with Client(room.port) as client:
        client.greeted().ask("MAIL FROM:<a@office.example>", "RCPT TO:<b@other.example>", "DATA")
        said = b"Subject: s\r\n\r\n" + stuffed + b".\r\n"
        for start, stop in _parts(len(said), cuts):
            client.send(said[start:stop])
        assert client.reply().startswith("250 ")
    envelope, content = room.queued[before]
    assert content[envelope.header_size_bytes :] == stuffed
    assert content[: envelope.header_size_bytes].endswith(b"Subject: s\r\n\r\n")
    assert (envelope.body_type == "7BIT") == stuffed.isascii()


# ── the header: exact but for what we say we touch ───────────────────────────────────────────────

TOUCHED = {b"from", b"sender", b"reply-to", b"return-path"}
ADDED = {b"date", b"message-id"}  # where they are missing
NAMES = st.sampled_from(
    b"From FROM Sender Reply-To Return-Path Date Message-ID Subject To Bcc Received Content-Type X-Odd x"
    b" DKIM-Signature Resent-From".split()
)
PARTS = b"""<x@evil.example> a@office.example Boss "Boss, g:a@office.example; =?utf-8?q?B=F6ss?= =?x?b?GyRC?=
    \xff " ( ) \\ , ; < > @ : [ . \xe3\x81\x82 multipart/signed""".split()
WORDS = st.sampled_from([*PARTS, b" ", b"\r\n ", b"\r\n\t", b"x" * 300])
TEXT = st.binary(max_size=12).map(lambda text: re.sub(rb"[\r\n\0]", b"?", text))
VALUES = st.lists(st.one_of(WORDS, WORDS, TEXT), max_size=8).map(b"".join)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
headers_at_random = given(FIELDS, st.sampled_from([b"a@office.example", b"x@evil.example", b""]))


@often(150)
@headers_at_random
@example([(b"From", b"Boss <x@evil.example>"), (b"X-Odd", b"\r\n  a\r\n\tb ")], b"a@office.example")
def test_the_header_stays_but_for_what_we_touch(
    room: Room, fields: list[tuple[bytes, bytes]], sender: bytes
) -> None:
    keep_a_header(room, fields, sender)


@pytest.mark.slow
@often(5000)
@headers_at_random
def test_many_headers_stay_but_for_what_we_touch(
    room: Room, fields: list[tuple[bytes, bytes]], sender: bytes
) -> None:
    keep_a_header(room, fields, sender)


def keep_a_header(room: Room, fields: list[tuple[bytes, bytes]], sender: bytes) -> None:
    body = b"..\r\nFrom: nobody\r\n"
    before = len(room.queued)
    with Client(room.port) as client:
        client.greeted().ask(b"MAIL FROM:<%s>" % sender, "RCPT TO:<b@other.example>", "DATA")
        client.send(b"".join(b"%s: %s\r\n" % field for field in fields) + b"\r\n" + body + b".\r\n")
        code = client.reply()[:3]
        assert client.ask("NOOP").startswith("250 ")
    assert len(room.queued) - before == (code == "250")
    if code != "250":
        assert code in ("550", "554")
        return
    envelope, content = room.queued[before]
    header = content[: envelope.header_size_bytes]
    assert content[envelope.header_size_bytes :] == body
    assert header.endswith(b"\r\n\r\n")
    trace, *kept = re.split(rb"\r\n(?![ \t])", header[:-4])
    assert trace.startswith(b"Received: from ")
    came = [b"%s: %s" % field for field in fields]
    ours = TOUCHED | (ADDED - {name_of(field) for field in came})
    assert [field for field in kept if name_of(field) not in ours] == [
        field for field in came if name_of(field) not in ours
    ]
    from_fields = sum(name_of(field) == b"from" for field in kept)
    signed = b"dkim-signature" in map(name_of, came)  # then it is not mended
    assert from_fields == 1 or (from_fields == 0 and (signed or room.config.submission is not RULES))


def name_of(field: bytes) -> bytes:
    return field.partition(b":")[0].lower()
