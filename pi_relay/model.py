"""The plain data that flows through the house, and nothing else.

Rules: frozen dataclasses and enums only; no behaviour beyond what a value says of itself.
It must not know sockets, disks, clocks or the configuration.

Conventions: wall-clock times are seconds since the epoch (UTC); sizes are bytes of the wire form
(CRLF, dot-stuffed, without the final ``.CRLF``). A recipient is never deleted from its envelope, so
that its position is a name for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

ENVELOPE_FORMAT_VERSION = 1


class RecipientStatus(StrEnum):
    PENDING = "pending"
    RELAYED = "relayed"
    FAILED = "failed"


class Kind(StrEnum):
    """What a message is to us: loops of reports are prevented by this, not by the null path alone."""

    MAIL = "mail"
    DSN = "dsn"
    REPORT = "report"  # ours, to the postmaster


class Scope(StrEnum):
    """How far a failure reaches; it decides who waits and whether anybody is told."""

    RECIPIENT = "recipient"
    MESSAGE = "message"
    NEXT_HOP = "next_hop"
    ACCOUNT = "account"


@dataclass(frozen=True, slots=True)
class Reply:
    """An SMTP reply (RFC 5321 4.2), ours or the other side's."""

    code: int
    enhanced_status: str  # "5.1.1" (RFC 3463), or "" where the other side gave none
    text: str  # one line; the enhanced status is taken off
    remote_mta: str = ""  # who said it, empty for ourselves

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code), self.enhanced_status, self.text) if part)


@dataclass(frozen=True, slots=True)
class Recipient:
    forward_path: str  # without brackets
    original_recipient: str | None = None  # ORCPT (RFC 3461), as given: "rfc822;..."
    notify: tuple[str, ...] | None = None  # NOTIFY; None: absent
    status: RecipientStatus = RecipientStatus.PENDING
    last_reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """All that is known of a message beside its bytes; stored with it."""

    queue_id: str
    reverse_path: str  # "" is the null reverse-path
    recipients: tuple[Recipient, ...]
    accepted_at: float
    kind: Kind = Kind.MAIL
    attempts: int = 0  # every try, counted by the schedule or not
    slots_used: int = 0  # of the retry schedule
    next_attempt_at: float | None = None  # None: at once
    held: str = ""  # the reason, "" = not held: "admin", "runaway", "undeliverable"
    delay_reported: bool = False
    body_type: str = "7BIT"  # what the content is: "8BITMIME" where any octet has its high bit
    smtputf8: bool = False
    envid: str | None = None
    ret: str | None = None  # "FULL" | "HDRS", as given
    requiretls: bool = False  # RFC 8689: only over TLS that is verified, to those who keep to the same
    original_reverse_path: str | None = None  # before sender rewriting, where it differs
    client: str = ""  # address
    device: str = ""  # name, "" for an unknown client
    header_size_bytes: int = 0  # the header block with the empty line that ends it
    message_size_bytes: int = 0  # header block and body
    format_version: int = ENVELOPE_FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class FileSpan:
    """Bytes that lie in a file."""

    path: str
    offset_bytes: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message's bytes in wire form. Small bodies come in memory, large ones stay in their file."""

    header: bytes  # the header block, including the empty line that ends it
    body: bytes | FileSpan


@dataclass(frozen=True, slots=True)
class NextHop:
    name: str  # of the smart host, or the MX host
    host: str
    port: int
    tls_policy: str  # "starttls" | "implicit" | "off" | "may": where it is offered
    credentials_name: str = ""  # whose account we use, "" for none
    tls_used: str = ""  # what came of "may", in words for the log


class HopCondition(StrEnum):
    OPEN = "open"
    PAUSED = "paused"  # in trouble: nobody tries before the pause is over
    PROBING = "probing"  # the pause is over: one attempt may try
    PACED = "paced"  # it gets no more for a moment: mail waits for it, and takes no other way


@dataclass(frozen=True, slots=True)
class HopState:
    """Whether mail may be tried at a next hop now."""

    condition: HopCondition
    scope: Scope | None = None  # of the trouble, None while open
    until_monotonic: float = 0.0  # when a pause, or the wait for its pace, ends
    reply: Reply | None = None  # what told of the trouble


@dataclass(frozen=True, slots=True)
class Failure:
    scope: Scope
    reply: Reply
    permanent: bool


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What became of each recipient of one attempt: {position in the envelope: outcome}."""

    results: Mapping[int, tuple[NextHop | None, Reply | Failure]]
    notify_handed_on: frozenset[int] = frozenset()  # positions whose NOTIFY the next hop took over (RFC 3461)


@dataclass(frozen=True, slots=True)
class WayOut:
    """Recipients that leave together: their positions, and the names of the next hops to try in turn.

    An empty ``via``: no route takes them (the file was changed since we accepted).
    """

    positions: tuple[int, ...]
    via: tuple[str, ...]


class QueueRefusal(Exception):
    """The queue cannot take a message now. ``reply`` is what the client is told (452 or 451)."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class IncomingMessage(Protocol):
    """A message on its way into the queue, from MAIL to the end of data.

    Its space is reserved from the start. ``write`` and ``commit`` raise QueueRefusal and have then
    let go of everything; ``abort`` may be called at any time, any number of times.
    """

    queue_id: str

    async def write(self, data: bytes) -> None:
        """Append wire-form bytes. Waits while the memory or the disk is behind: reading pauses with it."""

    async def commit(self, envelope: Envelope) -> None:
        """Returns once the message is durable (law 1) and its delivery is arranged."""

    def abort(self) -> None:
        """Forget the message and give back what was reserved."""
