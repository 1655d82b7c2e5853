"""How the command line says sizes, times and strangers' words; dots taken out at every split."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_relay import maillog
from pi_relay.cli import output
from pi_relay.cli.queue import unstuffed


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (999_949, "999.9 KB"),
        (999_990, "1.0 MB"),
        (5 * 10**13, "50000.0 GB"),
    ],
)
def test_sizes(size_bytes: int, text: str) -> None:
    assert output.size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0.9, "0s"),
        (59, "59s"),
        (60, "1m 00s"),
        (3599, "59m 59s"),
        (3600, "1h 00m"),
        (90_000, "1d 1h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert output.duration_text(seconds) == text


@given(st.integers(0, 253_402_300_799))
def test_times_are_read_back(seconds: int) -> None:
    assert output.seconds_of(maillog.rfc3339(seconds)) == seconds


def test_times_with_milliseconds() -> None:
    assert output.seconds_of("1970-01-01T00:00:01.250Z") == 1.25


def test_ahead_and_ago() -> None:
    assert output.ahead(maillog.rfc3339(time.time() + 7300)) == "in 2h 01m"
    assert output.ahead(maillog.rfc3339(time.time() - 5)) == "now"
    assert output.ago(None) == "never"


@given(st.text())
def test_what_is_printable_cannot_steer_a_terminal(text: str) -> None:
    assert output.printable(text).isprintable()


def test_columns_fit_wide_letters(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("機器", "X"), [("複合機", "1"), ("copier", "2")])
    assert capsys.readouterr().out.splitlines() == ["機器    X", "複合機  1", "copier  2"]


MESSAGES = st.lists(st.sampled_from([b"\r\n", b".", b"..", b"a", b"\r", b"\n", b"a.b"])).map(b"".join)


@given(MESSAGES, st.lists(st.integers(0, 40)))
def test_stuffed_messages_come_back_at_every_split(message: bytes, cuts: list[int]) -> None:
    lines = message.split(b"\r\n")
    wire_form = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)
    places = [0, *sorted(min(cut, len(wire_form)) for cut in cuts), len(wire_form)]
    pieces = [wire_form[start:end] for start, end in pairwise(places)]
    assert b"".join(unstuffed(pieces)) == message
