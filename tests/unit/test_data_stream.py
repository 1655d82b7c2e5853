"""The DATA stream gives the same result for every split, and the one that a slow, obvious reader gives."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pi_relay.submission.data import TERMINATOR, DataStream
from pi_relay.submission.replies import Refused

Outcome = tuple[str, bytes, bytes, bool]  # code or "taken", the wire form, what follows, 8-bit


def obvious(data: bytes, *, bare_lf_allowed: bool, size_max: int) -> Outcome | None:
    """One octet after another, looking at all that came before. None: the data does not end."""
    wire = b""
    seen = b"\r\n"  # the end of the DATA command
    rest = data
    refusal = ""
    while True:
        if (seen + rest).startswith(TERMINATOR, len(seen) - 2) and seen.endswith(b"\r\n"):
            after = rest[3:]
            eight_bit = any(octet > 127 for octet in seen)
            return (refusal, b"", after, False) if refusal else ("taken", wire, after, eight_bit)
        if not rest:
            return None
        octet, following = rest[:1], rest[1:2]
        bare = following != b"\n" if octet == b"\r" else octet == b"\n" and not seen.endswith(b"\r")
        behind_bare_lf = seen.endswith(b"\n") and not seen.endswith(b"\r\n")
        alone = seen.endswith(b"\r\n") and following == b"\n"
        if refusal:
            pass
        elif len(seen) - 2 >= size_max:
            refusal = "552"
        elif octet == b"\0":
            refusal = "550 5.6.0"
        elif bare and (octet == b"\r" or not bare_lf_allowed):
            refusal = "550 5.6.11"
        elif bare:
            wire += b"\r\n"
        elif octet == b"." and (behind_bare_lf or alone):
            wire += b".."
        else:
            wire += octet
        seen, rest = seen + octet, rest[1:]


def streamed(data: bytes, splits: list[int], *, bare_lf_allowed: bool, size_max: int) -> Outcome | None:
    stream = DataStream(bare_lf_allowed=bare_lf_allowed, size_max_bytes=size_max)
    buffer, wire, refusal = bytearray(), b"", ""
    edges = sorted({0, len(data), *(split for split in splits if split < len(data))})
    for start, end in pairwise(edges):
        buffer += data[start:end]
        if stream.finished:
            continue
        if not refusal:
            try:
                wire += stream.feed(buffer)
                assert stream.finished or len(buffer) <= 4
            except Refused as refused:
                reply = refused.reply
                refusal = f"{reply.code} {reply.enhanced_status}" if reply.code == 550 else str(reply.code)
        if refusal and not stream.finished:
            stream.skip(buffer)
    if not stream.finished:
        return None
    return (
        (refusal, b"", bytes(buffer), False) if refusal else ("taken", wire, bytes(buffer), stream.eight_bit)
    )


pieces = st.sampled_from(
    [
        b"\r",
        b"\n",
        b".",
        b"\r\n",
        b"\r\n.",
        b"\r\n.\r\n",
        b"\n.\n",
        b"\n.\r\n",
        b"\r.\r",
        b"\r\n.\n",
        b"a",
        b"..",
        b"\0",
        b"\xe9",
    ]
)
texts = st.lists(pieces, max_size=14).map(b"".join)


@given(texts, st.lists(st.integers(1, 40), max_size=12), st.booleans(), st.sampled_from([0, 3, 7, 1000]))
@example(b".\r\n", [1, 2], True, 1000)
@example(b"\r\n.\n", [4], True, 1000)
@example(b"x\r\n.\r\nQUIT\r\n", list(range(1, 12)), False, 1000)
def test_every_split_gives_what_the_obvious_reader_gives(
    text: bytes, splits: list[int], bare_lf_allowed: bool, size_max: int
) -> None:
    data = text + b"\r\n.\r\n" + b"NEXT"
    expected = obvious(data, bare_lf_allowed=bare_lf_allowed, size_max=size_max)
    assert expected is not None
    assert streamed(data, splits, bare_lf_allowed=bare_lf_allowed, size_max=size_max) == expected
    whole = streamed(data, [], bare_lf_allowed=bare_lf_allowed, size_max=size_max)
    assert whole == expected
    octets = streamed(data, list(range(len(data))), bare_lf_allowed=bare_lf_allowed, size_max=size_max)
    assert octets == expected


@given(texts, st.booleans())
def test_what_comes_out_can_never_end_a_later_transmission(text: bytes, bare_lf_allowed: bool) -> None:
    outcome = streamed(text + b"\r\n.\r\n", [], bare_lf_allowed=bare_lf_allowed, size_max=10_000)
    assert outcome is not None
    _, wire, _, _ = outcome
    assert TERMINATOR not in b"\r\n" + wire
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", wire)
    assert not wire or wire.endswith(b"\r\n")


@pytest.mark.parametrize("split", range(1, 12))
def test_a_terminator_is_found_wherever_it_is_split(split: int) -> None:
    data = b"hello\r\n.\r\nRSET"
    expected = ("taken", b"hello\r\n", b"RSET", False)
    assert streamed(data, [split], bare_lf_allowed=False, size_max=100) == expected


def test_an_empty_message_ends_at_once() -> None:
    assert streamed(b".\r\n", [], bare_lf_allowed=False, size_max=100) == ("taken", b"", b"", False)


def test_the_size_counts_octets_as_they_came() -> None:
    stream = DataStream(bare_lf_allowed=True, size_max_bytes=100)
    buffer = bytearray(b"a\n..b\r\n.\r\n")
    assert stream.feed(buffer) == b"a\r\n...b\r\n"
    assert stream.size_bytes == len(b"a\n..b\r\n")


@pytest.mark.parametrize(("size_max", "taken"), [(7, True), (6, False)])
def test_a_message_of_just_the_limit_is_taken(size_max: int, taken: bool) -> None:
    outcome = streamed(b"hello\r\n.\r\n", [], bare_lf_allowed=False, size_max=size_max)
    assert outcome is not None
    assert (outcome[0] == "taken") is taken
