"""The parameters of MAIL and RCPT at random: what is taken is kept as it came, and is safe to hand on."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pi_relay.submission import parameters
from pi_relay.submission.replies import Refused

VALUES = st.one_of(
    st.from_regex(re.compile(r"(?:rfc822|utf-8|x-odd);(?:[!-~]|\+[0-9A-F]{2})*", re.ASCII), fullmatch=True),
    st.text(st.characters(exclude_characters=" \t", exclude_categories=("Cs",)), max_size=120),
)


@given(VALUES)
@example("QQ+3D314")
@example("x" * 100)
def test_an_envid_that_is_taken_is_xtext_of_printable_octets(value: str) -> None:
    try:
        asked = parameters.of_mail({"ENVID": value}, extended=True, tls=False)
    except Refused as refused:
        assert refused.reply.code == 501
        return
    assert asked.envid == value
    assert re.fullmatch(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2}){1,100}", value) and len(value) <= 100
    assert bytes.fromhex("".join(re.findall(r"\+(..)", value))).decode("ascii").isprintable()


@given(VALUES, st.booleans())
@example("rfc822;b+2Bscan@other.example", False)
@example("utf-8;é@other.example", True)
def test_an_original_recipient_that_is_taken_is_one_word(value: str, utf8: bool) -> None:
    try:
        asked = parameters.of_rcpt({"ORCPT": value}, extended=True, utf8=utf8)
    except Refused as refused:
        assert refused.reply.code == 501
        return
    assert asked.original_recipient == value
    kind, _, address = value.partition(";")
    assert kind and address and "=" not in value and len(value) <= 500
    assert not re.search(r"[\x00-\x20\x7f-\xa0]", value)
    assert value.isascii() or (utf8 and kind.lower() == "utf-8")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("NEVER", ("NEVER",)),
        ("never", ("NEVER",)),
        ("DELAY,success", ("DELAY", "SUCCESS")),
        ("FAILURE,FAILURE", ("FAILURE",)),
        ("FAILURE,NEVER", None),
        ("NEVER,NEVER", None),
        ("", None),
        (",", None),
        ("SUCCESS,", None),
        ("SUCCESS DELAY", None),
    ],
)
def test_notify(value: str, kept: tuple[str, ...] | None) -> None:
    if kept is None:
        with pytest.raises(Refused, match="501"):
            parameters.of_rcpt({"NOTIFY": value}, extended=True, utf8=False)
    else:
        assert parameters.of_rcpt({"NOTIFY": value}, extended=True, utf8=False).notify == kept


def test_nothing_given_is_nothing_asked() -> None:
    assert parameters.of_mail({}, extended=False, tls=False) == parameters.MailParameters()
    assert parameters.of_rcpt({}, extended=False, utf8=False) == parameters.RcptParameters()
