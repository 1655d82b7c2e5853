"""The paths of MAIL and RCPT: RFC 5321's grammar, its edges, and anything at all."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_relay.submission import paths
from pi_relay.submission.replies import Refused


def mail(argument: bytes, *, brackets_needed: bool = True) -> paths.Parsed:
    return paths.parse_mail(argument, brackets_needed=brackets_needed)


def rcpt(argument: bytes, *, brackets_needed: bool = True, utf8_allowed: bool = False) -> paths.Parsed:
    return paths.parse_rcpt(argument, brackets_needed=brackets_needed, utf8_allowed=utf8_allowed)


@pytest.mark.parametrize(
    ("argument", "path"),
    [
        (b"FROM:<a@b.example>", "a@b.example"),
        (b"from: <a@b.example> ", "a@b.example"),
        (b"FROM:<>", ""),
        (b"FROM:<@x.example,@y.example:a@b.example>", "a@b.example"),
        (b'FROM:<"a b\\"@"@b.example>', '"a b\\"@"@b.example'),
        (b"FROM:<a@[192.0.2.1]>", "a@[192.0.2.1]"),
        (b"FROM:<a@[IPv6:2001:db8::1]>", "a@[IPv6:2001:db8::1]"),
        (b"FROM:<a..b@docomo.example>", "a..b@docomo.example"),
        (b"FROM:<a.@docomo.example>", "a.@docomo.example"),
        (b"FROM:<MixedCase@B.Example>", "MixedCase@B.Example"),
        (b"FROM:<a@host_name>", "a@host_name"),
        (b"FROM:<" + b"l" * 64 + b"@b.example>", "l" * 64 + "@b.example"),
    ],
)
def test_taken(argument: bytes, path: str) -> None:
    assert mail(argument).path == path


@pytest.mark.parametrize(
    "argument",
    [
        b"",
        b"FROM:",
        b"FROM:a@b.example",
        b"FROM <a@b.example>",
        b"TO:<a@b.example>",
        b"FROM:<a@b.example",
        b"FROM:<a@b..example>",
        b"FROM:<a@b.example.>",
        b"FROM:<a@-b.example>",
        b"FROM:<a@b.example->",
        b"FROM:<.a@b.example>",
        b"FROM:<a b@b.example>",
        b"FROM:<a@b@c.example>",
        b"FROM:<a@>",
        b"FROM:<@b.example>",
        b"FROM:<a>",
        b"FROM:<postmaster>",
        b"FROM:<<a@b.example>>",
        b"FROM:Name <a@b.example>",
        b"FROM:<a@[192.0.2.256]>",
        b"FROM:<a@[2001:db8::1]>",
        b"FROM:<a@[IPv6:192.0.2.1]>",
        b"FROM:<" + b"l" * 65 + b"@b.example>",
        b"FROM:<l@" + b".".join([b"d" * 60] * 5) + b">",
        b"FROM:<\xff@b.example>",
        b"FROM:<\xc3\x28@b.example>",
        b"FROM:<a\x00@b.example>",
        b"FROM:<a\x1b@b.example>",
        b"FROM:<a@b.example\x7f>",
        "FROM:<a\u0085@b.example> SMTPUTF8".encode(),
        "FROM:<a\u2028@b.example> SMTPUTF8".encode(),
        b"FROM:<a@b.example>SIZE=1",
    ],
)
def test_refused(argument: bytes) -> None:
    with pytest.raises(Refused) as refused:
        mail(argument)
    assert refused.value.reply.code == 501


def test_brackets_may_be_missing_where_that_is_forgiven() -> None:
    parsed = mail(b"FROM:a@b.example SIZE=10", brackets_needed=False)
    assert parsed == ("a@b.example", {"SIZE": "10"}, True)
    with pytest.raises(Refused):
        mail(b"FROM:", brackets_needed=False)


def test_utf8_needs_smtputf8() -> None:
    assert mail("FROM:<用户@例え.example> SMTPUTF8".encode()).path == "用户@例え.example"
    assert rcpt("TO:<é@b.example>".encode(), utf8_allowed=True).path == "é@b.example"
    with pytest.raises(Refused) as of_mail:
        mail("FROM:<é@b.example>".encode())
    with pytest.raises(Refused) as of_rcpt:
        rcpt("TO:<é@b.example>".encode())
    for refused in (of_mail, of_rcpt):
        assert str(refused.value.reply).startswith("553 5.6.7 ")


def test_postmaster_stands_alone_for_a_recipient() -> None:
    assert rcpt(b"TO:<PostMaster>").path == "postmaster"
    with pytest.raises(Refused):
        rcpt(b"TO:<root>")
    with pytest.raises(Refused):
        rcpt(b"TO:<>")


def test_values_of_parameters_are_not_touched() -> None:
    parsed = mail(b"FROM:<a@b.example>  size=10 ENVID=aBc+2Bd Ret=hdrs BODY=8BITMIME\tSMTPUTF8")
    assert parsed.parameters == {
        "SIZE": "10",
        "ENVID": "aBc+2Bd",
        "RET": "hdrs",
        "BODY": "8BITMIME",
        "SMTPUTF8": "",
    }


@pytest.mark.parametrize("parameters", [b"SIZE=", b"=1", b"SIZE=1 SIZE=2", b"-X=1", b"SI_ZE=1", b"A=\x01"])
def test_parameters_that_are_none(parameters: bytes) -> None:
    with pytest.raises(Refused) as refused:
        mail(b"FROM:<a@b.example> " + parameters)
    assert refused.value.reply.code == 501


@given(st.binary(max_size=120))
def test_whatever_comes_is_parsed_or_refused(junk: bytes) -> None:
    for argument in (junk, b"FROM:" + junk, b"FROM:<" + junk + b">", b"FROM:<a@b> " + junk):
        try:
            parsed = mail(argument, brackets_needed=False)
        except Refused as refused:
            assert 501 <= refused.reply.code <= 555
        else:
            assert not re.search(r"[\x00-\x1f\x7f-\x9f<>]", parsed.path.split('"')[-1])


atoms = st.from_regex(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]{1,12}(\.[a-z]{1,6}){0,2}", fullmatch=True)
quoted = st.from_regex(r'"([ !#-\[\]-~]|\\[ -~]){0,20}"', fullmatch=True)
domains = st.from_regex(r"[A-Za-z0-9]([a-z0-9-]{0,10}[a-z0-9])?(\.[a-z0-9]{1,8}){0,3}", fullmatch=True)


@given(st.one_of(atoms, quoted), domains)
def test_whatever_the_grammar_makes_is_taken(local_part: str, domain: str) -> None:
    path = f"{local_part}@{domain}"
    assert mail(f"FROM:<{path}>".encode()).path == path
