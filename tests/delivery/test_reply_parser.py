"""Replies as a stream of bytes: wherever the packets are cut, and whatever is in them."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pi_relay.delivery.wire import REPLY_SIZE_MAX_BYTES, REPLY_TEXT_MAX_CHARACTERS, Wire, tidy_reply


class Deaf(asyncio.Transport):
    """A transport that takes everything and says nothing: the bytes come from the test."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None: ...

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def write(self, data: Any) -> None: ...

    def abort(self) -> None: ...


def replies_to(pieces: list[bytes], wanted: int) -> tuple[list[tuple[int, list[bytes]]], str]:
    """What a wire makes of the pieces: the replies, and why it broke, if it did."""

    async def run() -> tuple[list[tuple[int, list[bytes]]], str]:
        wire = Wire(Deaf(), "hop.example")
        wire.ask(b"", wanted)
        for piece in pieces:
            wire.data_received(piece)
        held = sum(len(line) for _, lines in wire.replies for line in lines)
        assert held <= sum(map(len, pieces)) and len(wire._partial) <= REPLY_SIZE_MAX_BYTES + max(
            map(len, pieces)
        )
        return wire.replies, wire.broken

    return asyncio.run(run())


def has_control(text: str) -> bool:
    return any(character < " " or "\x7f" <= character < "\xa0" for character in text)


texts = st.binary(max_size=40).map(lambda text: text.replace(b"\n", b"").replace(b"\r", b""))
codes = st.integers(200, 599).filter(lambda code: code != 421)


@given(st.lists(st.tuples(codes, st.lists(texts, min_size=1, max_size=4)), min_size=1, max_size=5), st.data())
def test_where_the_stream_is_cut_does_not_matter(
    said: list[tuple[int, list[bytes]]], data: st.DataObject
) -> None:
    stream = b"".join(
        b"%d%s%s\r\n" % (code, b" " if number == len(lines) else b"-", line)
        for code, lines in said
        for number, line in enumerate(lines, 1)
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    replies, broken = replies_to(pieces, len(said))
    assert not broken
    assert [(code, [line.rstrip(b"\r") for line in lines]) for code, lines in replies] == said


@given(st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=20))
def test_anything_at_all_is_survived(pieces: list[bytes]) -> None:
    replies, broken = replies_to(pieces, 3)
    assert len(replies) <= 3
    assert not has_control(broken)


@given(codes, st.lists(st.binary(max_size=3000), min_size=1, max_size=5))
def test_a_reply_becomes_one_bounded_line(code: int, lines: list[bytes]) -> None:
    reply = tidy_reply(code, lines, "hop.example")
    assert len(reply.text) <= REPLY_TEXT_MAX_CHARACTERS
    assert not has_control(reply.text)
    assert not reply.enhanced_status or reply.enhanced_status[0] == str(code)[0]


def test_a_421_ends_the_session_whatever_else_was_asked() -> None:
    replies, broken = replies_to([b"250 ok\r\n421 4.3.2 bye\r\n250 ok\r\n"], 3)
    assert [code for code, _ in replies] == [250, 421] and "bye" in broken
