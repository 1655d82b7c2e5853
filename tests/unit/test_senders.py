"""Who sends as whom: golden rewritings, what is refused, and any header at all.

A file of golden_rewritings/ holds cases, parted by empty lines. A case:

    # what it shows
    rule NAME             of RULES below; "office" where there is none
    reverse-path ADDRESS  after it was judged; "<>": the null one; ann@office.example where there is none
    < LINE                of the header that comes in
    + LINE                of what is put in front of it
    > LINE                of the header that comes out
    = FIELDS | CLAIMED | SIGNATURES   what is told of it; without it: nothing was changed

A line may hold \\t \\xFF; other backslashes stand for themselves.
"""

from __future__ import annotations

import email.headerregistry
import email.policy
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_relay import mailboxes, senders
from pi_relay.config import Config, Device, Queue, Submission
from pi_relay.headers import Header
from pi_relay.senders import Name, NotAllowed, Rule, named

GOLDEN = Path(__file__).parent / "golden_rewritings"
DOMAINS = ("office.example", "*.office.example", "xn--bro-hoa.example")
RELAY = Name("relay@office.example")
RULES = {
    "office": Rule(DOMAINS, default=RELAY),
    "no-default": Rule(DOMAINS),
    "branch": Rule(DOMAINS, ("*@branch.example",), default=RELAY),
    "anybody": Rule(("*",), default=RELAY),
    "nobody": Rule(("*",)),
    "copier": Rule(DOMAINS, own=named("Copier 2F <scans@office.example>"), default=RELAY),
    "plain": Rule(DOMAINS, own=named("scans@office.example")),
    "quoted": Rule(DOMAINS, own=named(r'"Copier, \"2F\"" <scans@office.example>')),
    "japanese": Rule(DOMAINS, own=named("二階のコピー機のとなりのスキャナー <scans@office.example>")),
}


class Case(NamedTuple):
    place: str
    rule: str
    reverse_path: str
    before: bytes
    added: bytes
    after: bytes
    told: str


def cases() -> Iterator[Case]:
    for file in sorted(GOLDEN.glob("*.txt")):
        number = 1
        for text in file.read_text().split("\n\n"):
            lines = [line for line in text.splitlines() if line[:1] != "#"]

            def only(mark: str, otherwise: str, lines: list[str] = lines) -> str:
                return next((line[len(mark) :] for line in lines if line.startswith(mark)), otherwise)

            def block(mark: str, lines: list[str] = lines) -> bytes:
                return b"".join(octets(line[2:]) + b"\r\n" for line in lines if line[:2] == mark)

            sender = only("reverse-path ", "ann@office.example").replace("<>", "")
            yield Case(
                f"{file.name}:{number}", only("rule ", "office"), sender, block("< ") + b"\r\n",
                block("+ "), block("> ") + b"\r\n", only("= ", ""),
            )  # fmt: skip
            number += text.count("\n") + 2


def octets(line: str) -> bytes:
    line = re.sub(r"\\x(..)", lambda found: chr(int(found[1], 16)), line).replace(r"\t", "\t")
    return line.encode("latin-1")


@pytest.mark.parametrize("case", [*cases()], ids=lambda case: case.place)
def test_golden_rewriting(case: Case) -> None:
    rewriting = senders.judged(Header(case.before), RULES[case.rule], case.reverse_path)
    assert rewriting.header.block == case.after
    assert rewriting.added == case.added
    told = " | ".join(
        [" ".join(rewriting.fields), ",".join(rewriting.claimed), " ".join(rewriting.signatures)]
    )
    assert re.sub(r"[ |]+$", "", told) == re.sub(r"[ |]+$", "", case.told)


def test_there_are_cases() -> None:
    assert len(list(cases())) > 50


@pytest.mark.parametrize("header", ["From: boss@evil.example", "From: ann@office.example, boss@evil.example"])
def test_without_a_default_sender_a_claim_is_refused(header: str) -> None:
    with pytest.raises(NotAllowed) as refused:
        senders.judged(Header(f"{header}\r\n\r\n".encode()), RULES["no-default"], "ann@office.example")
    assert "boss@evil.example" in refused.value.claimed


def test_the_rule_of_a_device() -> None:
    copier = Device("copier", sender="Copier 2F <scans@office.example>", senders=("*@branch.example",))
    submission = Submission(sender_domains=("office.example",), default_sender="relay@office.example")
    config = Config(
        "relay.office.example", Queue(Path("/nonexistent")), submission=submission, devices=(copier,)
    )
    assert senders.rule_for(config, copier) == Rule(
        ("office.example",), ("*@branch.example",), Name("scans@office.example", b"Copier 2F"), RELAY
    )
    assert senders.rule_for(config, None) == Rule(("office.example",), default=RELAY)


@pytest.mark.parametrize(
    ("rule", "claimed", "reverse_path"),
    [
        ("office", "ann@OFFICE.example", "ann@OFFICE.example"),
        ("office", "ann@büro.example", "ann@büro.example"),
        ("office", "ann@tokyo.office.example", "ann@tokyo.office.example"),
        ("office", "boss@evil.example", "relay@office.example"),
        ("office", "boss@office.example.evil.example", "relay@office.example"),
        ("office", "boss@notoffice.example", "relay@office.example"),
        ("office", "ann@office.example@evil.example", "relay@office.example"),
        ("office", None, "relay@office.example"),
        ("office", "", ""),
        ("branch", "Ann@Branch.example", "Ann@Branch.example"),
        ("copier", "ann@office.example", "scans@office.example"),
        ("copier", None, "scans@office.example"),
        ("copier", "", ""),
        ("nobody", "boss@evil.example", "boss@evil.example"),
        ("no-default", "boss@evil.example", None),
        ("no-default", None, None),
        ("nobody", None, None),
    ],
)
def test_the_reverse_path(rule: str, claimed: str | None, reverse_path: str | None) -> None:
    if reverse_path is None:
        with pytest.raises(NotAllowed):
            RULES[rule].reverse_path(claimed)
    else:
        assert RULES[rule].reverse_path(claimed) == reverse_path


# ── in the name that a next hop demands ──────────────────────────────────────────────────────────


def test_a_message_in_somebodys_name() -> None:
    header = Header(b"From: Ann <ann@office.example>\r\nSender: scans@office.example\r\nX: 1\r\n\r\n")
    isp = Name("u1234@isp.example")
    rewriting = senders.sent_as(header, isp, reply_to=True)
    assert rewriting.header.block == (
        b"From: Ann <u1234@isp.example>\r\nReply-To: Ann <ann@office.example>\r\nX: 1\r\n\r\n"
    )
    assert rewriting.fields == ("from", "reply_to", "sender")
    assert senders.sent_as(rewriting.header, isp, reply_to=True).header is rewriting.header
    bare = senders.sent_as(header, isp, reply_to=False).header.block
    assert bare == b"From: Ann <u1234@isp.example>\r\nX: 1\r\n\r\n"


# ── any header at all ────────────────────────────────────────────────────────────────────────────

PIECES = [
    "ann", "boss", "@", "office.example", "evil.example", "<", ">", "(", ")", '"', "\\", ",", ";", ":", " ",
    "\t", "\r\n ", "=?utf-8?Q?x?=", "\xe9", "[", "]", "[1.2.3.4]", ".", "<ann@office.example>",
    "boss@evil.example",
]  # fmt: skip
VALUES = st.lists(st.sampled_from(PIECES), max_size=12).map(lambda pieces: "".join(pieces).encode("latin-1"))
FIELDS = st.tuples(
    st.sampled_from([b"From", b"Sender", b"Reply-To", b"X", b"Subject", b"DKIM-Signature", b"fROM "]), VALUES
)


def without(block: bytes, *names: bytes) -> bytes:
    header = Header(block)
    for name in names:
        header = header.without(name)
    return header.block


@given(
    st.lists(FIELDS, max_size=5).filter(
        lambda fields: sum(name.strip().lower() == b"from" for name, _ in fields) < 2
    ),
    st.sampled_from([*RULES.values()]),
    st.sampled_from(["", "ann@office.example"]),
)
def test_nothing_else_is_touched_and_no_claim_stands_that_must_not(
    fields: list[tuple[bytes, bytes]], rule: Rule, reverse_path: str
) -> None:
    before = b"".join(name + b": " + value + b"\r\n" for name, value in fields) + b"\r\n"
    try:
        rewriting = senders.judged(Header(before), rule, reverse_path)
    except NotAllowed:
        assert rule.default is None and not rule.takes_any
        return
    after = rewriting.header.block
    names = {"from": b"from", "sender": b"sender", "reply_to": b"reply-to"}
    touched = [names[field] for field in rewriting.fields]
    assert without(after, *touched) == without(before, *touched)
    if not rewriting.fields:
        assert (after, rewriting.added) == (before, b"")
    for name in (b"from", b"sender"):
        span = rewriting.header.span(name)
        value = after[slice(*span)] if span else b""
        found = mailboxes.read(value)
        if rule.own:
            assert not span or [each.address for each in found] == [rule.own.address]
        elif value.strip() and not rule.takes_any:
            assert found and all(rule.allows(each.address) for each in found)
    again = senders.judged(Header(rewriting.added + after), rule, reverse_path)
    assert again.header.block == rewriting.added + after, "what was rewritten may stand"


NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=0x24F, exclude_categories=["Cc"]), max_size=20)


@given(NAMES)
def test_a_name_of_the_file_is_the_name_that_is_read(name: str) -> None:
    """By the standard library's parser, which only tests may wait for."""
    field = email.headerregistry.HeaderRegistry()(
        "From", (mailboxes.phrase(name) + b" <a@b.example>").decode("ascii").replace("\r\n", "")
    )
    assert isinstance(field, email.headerregistry.AddressHeader)
    (address,) = field.addresses
    assert address.addr_spec == "a@b.example"
    assert "".join(address.display_name.split()) == "".join(name.split())


@pytest.mark.parametrize(
    "field",
    [
        b"From: a" + b"\r\n x" * 60_000,
        b"From: a@b.example" + b"\r\n " * 60_000,
        b"From: " + b"(" * 50_000,
        b"From: " + b"(" * 25_000 + b")" * 25_000 + b"a@b.example",
        b"From: " + b"(" * 4_000 + b")" * 4_000 + b"a@b.example",
        b"From: " + b'"\\' * 50_000,
        b"From: " + b'"\\' * 4_000,
        b"From: " + b'"" ' * 2_500,
        b"From: " + b"<" * 8_000,
        b"From: " + b"a:" * 4_000,
        b"From: " + b"a@b.example," * 650,
        b"From: " + b"a " * 4_000 + b"@",
        b"From: a@" + b"b." * 4_000,
        b"From: ann@office.example\r\nSender: a" + b"\r\n\tx" * 60_000,
        b"From: ann@office.example\r\n" + b"Sender: boss@evil.example\r\n" * 8_000 + b"X: 1",
    ],
)
def test_work_is_linear(field: bytes) -> None:
    """What is quadratic here takes minutes; 250 KB take milliseconds."""
    started_at = time.process_time()
    senders.judged(Header(field + b"\r\n\r\n"), RULES["office"], "ann@office.example")
    senders.sent_as(Header(field + b"\r\n\r\n"), RELAY, reply_to=True)
    assert time.process_time() - started_at < 5
