"""Who sends as whom: what may be claimed, and what is put in the place of the rest.

At accept, by the device: its own ``sender`` stands for whatever it claims; else a claim stands if it is
allowed; else ``default_sender`` takes its place; else the message is refused. Reverse-path, From and Sender
are judged apart. At the transaction, by the next hop: its ``sender`` stands for all of them.

Rules: pure; a header in, a header out, and every byte stays that need not go. The display name is kept. The
old From goes to Reply-To where there is none, if people could answer it. A From that is missing or names no
address gets one; a Sender that says the same as From goes. A null reverse-path stays null. A message with a
DKIM signature is changed only where a claim must not stand.
It must not know sockets, envelopes or the log.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from pi_relay import mailboxes
from pi_relay.config import Config, Device
from pi_relay.headers import Header, is_public_hostname
from pi_relay.mailboxes import Mailbox
from pi_relay.patterns import matches

ANY = "*"
_UNREAL_ENDS = (".localdomain", ".localhost", ".invalid")


class Name(NamedTuple):
    """In whose name a message goes; ``phrase``: a display name as a field takes it, b"" for the old one."""

    address: str
    phrase: bytes = b""


def named(mailbox: str) -> Name:
    """A mailbox of the configuration: ``Copier 2F <scans@office.example>`` or an address alone."""
    name, bracket, address = mailbox.rpartition("<")
    if not bracket:
        return Name(mailbox)
    name = name.strip()
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    return Name(address.rstrip("> "), mailboxes.phrase(name))


class NotAllowed(Exception):
    """A claim must not stand, and nothing may take its place. ``claimed``: the address, "" for none."""

    def __init__(self, claimed: str) -> None:
        super().__init__(claimed)
        self.claimed = claimed


@dataclass(frozen=True, slots=True)
class Rule:
    """What one device may claim, or every unknown client."""

    domains: tuple[str, ...]  # patterns
    patterns: tuple[str, ...] = ()  # of addresses, beyond the domains
    own: Name | None = None  # stands for whatever is claimed
    default: Name | None = None  # stands for what is not allowed

    @property
    def stand_in(self) -> Name | None:
        return self.own or self.default

    @property
    def takes_any(self) -> bool:
        return ANY in self.domains

    def allows(self, address: str) -> bool:
        """Whether an address may be claimed; of no weight where ``own`` stands for it anyway."""
        return matches(self.domains, address.rpartition("@")[2]) or (
            self.patterns != () and matches(self.patterns, address)
        )

    def reverse_path(self, claimed: str | None) -> str:
        """The reverse-path that a message gets for the one claimed; None: what was said is no path."""
        if claimed == "":
            return claimed
        if claimed is not None and self.own is None and self.allows(claimed):
            return claimed
        if self.stand_in is None:
            raise NotAllowed(claimed or "")
        return self.stand_in.address


def rule_for(config: Config, device: Device | None) -> Rule:
    submission = config.submission
    return Rule(
        domains=submission.sender_domains or (ANY,),
        patterns=device.senders if device else (),
        own=named(device.sender) if device and device.sender else None,
        default=Name(submission.default_sender) if submission.default_sender else None,
    )


# ── a header ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Rewriting:
    """A header, and what was done to it."""

    header: Header
    added: bytes = b""  # a From that was missing, to stand in front
    fields: tuple[str, ...] = ()  # what was changed: "from", "sender", "reply_to"
    claimed: tuple[str, ...] = ()  # the addresses that had to go
    signatures: tuple[str, ...] = ()  # what a change means to them: "dkim_broken", "content_kept"


# Nearly every From: a name or none, one address, one line.
_MAILBOX = rb"""([^\s"(),:;<>@\\\[\]]++@[a-z0-9.-]++)"""
_simple_from = re.compile(
    rb"""(?im)^from:[ \t]*+(?:(?:"[^"\\\r]*+"|[^"(),:;<>@\\\[\]\r]*+)[ \t]*+<%s>|%s)[ \t]*+\r\n(?![ \t])"""
    % (_MAILBOX, _MAILBOX)
).search


def judged(header: Header, rule: Rule, reverse_path: str) -> Rewriting:
    """The header as it may be accepted. ``reverse_path``: as ``rule`` gave it. Raises NotAllowed."""
    if rule.own is None and b"sender" not in header.names:
        simple = _simple_from(header.block)
        if simple and rule.allows((simple[1] or simple[2]).decode("utf-8", "replace")):
            return Rewriting(header)
    work = _Work(header)
    if rule.own is not None:
        work.sends_as(rule.own, reply_to=True)
    else:
        _judge_from(work, rule, reverse_path)
        _judge_sender(work, rule, reverse_path)
    return work.result()


def sent_as(header: Header, name: Name, *, reply_to: bool) -> Rewriting:
    """The header in somebody's name: From and Sender alike. ``reply_to``: the old From may become one."""
    if b"sender" not in header.names:
        simple = _simple_from(header.block)
        if simple and not name.phrase and (simple[1] or simple[2]) == name.address.encode():
            return Rewriting(header)
    work = _Work(header)
    work.sends_as(name, reply_to=reply_to)
    return work.result()


def _judge_from(work: _Work, rule: Rule, reverse_path: str) -> None:
    sender = Name(reverse_path) if reverse_path else None
    if work.from_is_missing:
        stand_in = sender or rule.default
        if stand_in and not work.is_signed:
            work.write_from(stand_in, reply_to=False)
        return
    claims = work.from_mailboxes
    if claims and all(rule.allows(each.address) for each in claims):
        return
    stand_in = rule.default or (None if claims else sender)
    if stand_in:
        work.write_from(stand_in, reply_to=True)
    elif not rule.takes_any:
        raise NotAllowed(", ".join(each.address for each in claims))


def _judge_sender(work: _Work, rule: Rule, reverse_path: str) -> None:
    claims = work.sender_mailboxes
    if claims is None:
        return
    if len(claims) == 1 and rule.allows(claims[0].address):
        if not work.is_signed or work.fields:
            work.drop_sender_like_from()
    elif not (rule.takes_any and work.is_signed):
        work.write_sender(rule.default or (Name(reverse_path) if reverse_path else None))


class _Work:
    """A header on the way to another one. It is taken apart only as far as is needed."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.is_signed = b"dkim-signature" in header.names
        self.added = b""
        self.fields: list[str] = []
        self.claimed: list[str] = []
        self._from_span = header.span(b"from")
        value = self._value(self._from_span)
        self.from_is_missing = not value.strip()
        self.from_mailboxes: list[Mailbox] = mailboxes.read(value)
        self.sender_mailboxes = self._read_sender()

    def _value(self, span: tuple[int, int] | None) -> bytes:
        return self.header.block[slice(*span)] if span else b""

    def _read_sender(self) -> list[Mailbox] | None:
        """None where there is no Sender; one said twice is none that could stand."""
        if b"sender" not in self.header.names:
            return None
        found = mailboxes.read(self._value(self.header.span(b"sender")))
        return found if self.header.names.count(b"sender") == 1 else found * 2

    def sends_as(self, name: Name, *, reply_to: bool) -> None:
        if not self._from_says(name):
            self.write_from(name, reply_to=reply_to)
        if self.sender_mailboxes is not None and (
            self.fields or not self.is_signed or not self._sender_is(name)
        ):
            self.write_sender(name)

    def _from_says(self, name: Name) -> bool:
        claims = self.from_mailboxes
        return self._is_from(name.address) and claims[0].name == (name.phrase or claims[0].name)

    def _sender_is(self, name: Name) -> bool:
        return [each.address for each in self.sender_mailboxes or ()] == [name.address]

    def write_from(self, name: Name, *, reply_to: bool) -> None:
        value, claims = self._value(self._from_span), self.from_mailboxes
        if self.from_is_missing:
            value, claims = b"", []
        new = mailboxes.replaced(value, claims, name.address, name.phrase)
        more = b""
        if reply_to and b"reply-to" not in self.header.names:
            answerable = [each.text for each in claims if each.address != name.address and _is_real(each)]
            if answerable:
                more = b"\r\nReply-To: " + b",\r\n ".join(answerable)
        if self._from_span:
            self._put(self._from_span, new + more)
        else:
            self.added = b"From:" + new + b"\r\n"
        self.fields += ["from", "reply_to"] if more else ["from"]
        self.claimed += [each.address for each in claims if each.address != name.address]
        self._from_span = self.header.span(b"from")
        self.from_mailboxes = mailboxes.read(new)

    def write_sender(self, name: Name | None) -> None:
        """``name`` instead of who stands there; None: the field goes."""
        claims = self.sender_mailboxes or []
        self.claimed += [each.address for each in claims if not self._is_from(each.address)]
        self.fields.append("sender")
        span = self.header.span(b"sender")
        if name and span and self.header.names.count(b"sender") == 1 and not self._is_from(name.address):
            self._put(span, mailboxes.replaced(self._value(span), claims, name.address))
        else:
            self.header = self.header.without(b"sender")

    def drop_sender_like_from(self) -> None:
        if self.sender_mailboxes and self._is_from(self.sender_mailboxes[0].address):
            self.header = self.header.without(b"sender")
            self.fields.append("sender")

    def _is_from(self, address: str) -> bool:
        return [each.address.lower() for each in self.from_mailboxes] == [address.lower()]

    def _put(self, span: tuple[int, int], value: bytes) -> None:
        block = self.header.block
        self.header = Header(block[: span[0]] + value + block[span[1] :])

    def result(self) -> Rewriting:
        signatures = _signatures(self.header) if self.fields else ()
        claimed = tuple(dict.fromkeys(self.claimed))
        return Rewriting(self.header, self.added, tuple(self.fields), claimed, signatures)


def _is_real(mailbox: Mailbox) -> bool:
    """Whether people elsewhere could answer it."""
    domain = mailbox.domain.lower()
    return (
        is_public_hostname(domain)
        and not domain.endswith(_UNREAL_ENDS)
        and not domain.startswith("[")
        and not domain.rpartition(".")[2].isdigit()
    )


_is_signed_content = re.compile(rb"(?i)multipart/signed\b|application/(?:x-)?pkcs7-mime\b").match


def _signatures(header: Header) -> tuple[str, ...]:
    """What becomes of a message's signatures where its sender is changed.

    DKIM covers From. S/MIME and PGP cover the content alone, which is not touched: it verifies, but may name
    somebody else than From does.
    """
    found = []
    if b"dkim-signature" in header.names:
        found.append("dkim_broken")
    if _is_signed_content(header.value(b"content-type")):
        found.append("content_kept")
    return tuple(found)
