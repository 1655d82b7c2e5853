"""One message on its way in: from MAIL to the moment it is durable.

Rules: the header block is gathered (256 KiB at most), judged and given our trace and its missing fields; the
body goes to the queue as it comes, never parsed, never held. It must not know the connection it came by.
"""

from __future__ import annotations

from typing import NamedTuple

from pi_relay import headers, senders
from pi_relay.headers import Header
from pi_relay.model import Envelope, IncomingMessage, Recipient
from pi_relay.submission.parameters import MailParameters
from pi_relay.submission.paths import Parsed
from pi_relay.submission.replies import (
    HEADER_TOO_LARGE,
    LOOP,
    SENDER_NOT_ALLOWED,
    SEVERAL_FROM,
    Refused,
)


class Origin(NamedTuple):
    """Where a message comes from, as its Received field and its envelope tell it."""

    helo: str
    client: str
    device: str
    hostname: str  # ours
    protocol: str  # "ESMTPSA" ...
    at: float  # seconds since the epoch
    dated: bool  # whether that is to be believed


class Transaction:
    """``given``: the reverse-path as it came; ``reverse_path``: what ``rule`` made of it. ``asked``: the
    parameters of MAIL. ``via``: the ways out of each recipient, as the routes gave them. ``size_bytes``: what
    was stored. ``held``: why it is not to be delivered yet. ``began_at``: in the loop's time.
    """

    __slots__ = (
        "_gathered",
        "_header_size_bytes",
        "_looked_at",
        "_needs_utf8",
        "_original_reverse_path",
        "_rule",
        "asked",
        "began_at",
        "claimed",
        "held",
        "incoming",
        "message_id",
        "recipients",
        "reverse_path",
        "rewritten",
        "signatures",
        "size_bytes",
        "via",
    )

    def __init__(
        self,
        incoming: IncomingMessage,
        rule: senders.Rule,
        given: Parsed,
        reverse_path: str,
        asked: MailParameters,
        *,
        began_at: float,
    ) -> None:
        self.incoming = incoming
        self._rule = rule
        self.reverse_path = reverse_path
        self.asked = asked
        self._original_reverse_path: str | None = None
        self.rewritten: tuple[str, ...] = ()
        self.claimed: tuple[str, ...] = ()
        if reverse_path != given.path:
            self._original_reverse_path = given.path if given.is_valid else ""
            self.rewritten, self.claimed = ("reverse_path",), (given.path,)
        self.signatures: tuple[str, ...] = ()
        self.began_at = began_at
        self.held = ""
        self.recipients: list[Recipient] = []
        self.via: list[tuple[str, ...]] = []
        self.size_bytes = 0
        self.message_id = ""
        self._gathered = bytearray()
        self._looked_at = 0
        self._header_size_bytes = 0
        self._needs_utf8 = False

    async def take(self, piece: bytes, origin: Origin, *, last: bool) -> None:
        """The next part of the message, in wire form; ``last``: nothing follows.

        Refused: the header says that it must not be taken. QueueRefusal: there is no place for it.
        """
        if not self._header_size_bytes:
            piece = self._front(piece, origin, last=last)
        if piece:
            self.size_bytes += len(piece)
            await self.incoming.write(piece)

    async def commit(self, origin: Origin, *, eight_bit: bool) -> None:
        """Returns once the message is durable."""
        await self.incoming.commit(
            Envelope(
                queue_id=self.incoming.queue_id,
                reverse_path=self.reverse_path,
                recipients=tuple(self.recipients),
                accepted_at=origin.at,
                held=self.held,
                body_type="8BITMIME" if eight_bit else "7BIT",
                smtputf8=self._needs_utf8,
                envid=self.asked.envid,
                ret=self.asked.ret,
                requiretls=self.asked.requiretls,
                original_reverse_path=self._original_reverse_path,
                client=origin.client,
                device=origin.device,
                header_size_bytes=self._header_size_bytes,
                message_size_bytes=self.size_bytes,
            )
        )

    def abort(self) -> None:
        self.incoming.abort()

    def _front(self, piece: bytes, origin: Origin, *, last: bool) -> bytes:
        """Our fields, the header and what came of the body with it, once the header is whole; else b""."""
        if self._gathered:
            self._gathered += piece
            end = headers.end_of_block(self._gathered, self._looked_at)
        else:
            end = headers.end_of_block(piece)
        size = len(self._gathered) or len(piece)
        if (end if end >= 0 else size) > headers.BLOCK_SIZE_MAX_BYTES:
            raise Refused(HEADER_TOO_LARGE)
        if end < 0 and not last:
            self._gathered = self._gathered or bytearray(piece)
            self._looked_at = size
            return b""
        header, rest = headers.split(bytes(self._gathered) or piece, end)
        self._gathered.clear()
        block = self._judged(header, origin)
        self._header_size_bytes = len(block)
        return block + rest

    def _judged(self, header: Header, origin: Origin) -> bytes:
        if header.names.count(b"received") > headers.RECEIVED_MAX:
            raise Refused(LOOP)
        if header.names.count(b"from") > 1:
            raise Refused(SEVERAL_FROM)
        header, added = self._in_allowed_name(header.without(b"return-path"))
        added += headers.repairs(
            header,
            queue_id=self.incoming.queue_id,
            by=origin.hostname,
            reverse_path=self.reverse_path,
            at=origin.at,
            dated=origin.dated,
        )
        message_id = header.value(b"message-id") or Header(added).value(b"message-id")
        self.message_id = message_id.decode("utf-8", "backslashreplace")
        self._needs_utf8 = not self.reverse_path.isascii() or (
            self.asked.smtputf8 and not (header.block.isascii() and all(map(_is_ascii, self.recipients)))
        )
        return self._received(origin) + added + header.block

    def _in_allowed_name(self, header: Header) -> tuple[Header, bytes]:
        """The header with a sender that may stand, and the From that it lacked."""
        try:
            rewriting = senders.judged(header, self._rule, self.reverse_path)
        except senders.NotAllowed as refusal:
            raise refused_sender("From", refusal) from None
        if rewriting.fields:
            self.rewritten += rewriting.fields
            self.claimed = tuple(dict.fromkeys(self.claimed + rewriting.claimed))
            self.signatures = rewriting.signatures
        return rewriting.header, rewriting.added

    def _received(self, origin: Origin) -> bytes:
        only = self.recipients[0].forward_path if len(self.recipients) == 1 else ""
        return headers.received(
            helo=origin.helo,
            client=origin.client,
            by=origin.hostname,
            protocol=origin.protocol,
            queue_id=self.incoming.queue_id,
            recipient=only,
            at=origin.at,
        )


def _is_ascii(recipient: Recipient) -> bool:
    return recipient.forward_path.isascii() and (recipient.original_recipient or "").isascii()


def refused_sender(where: str, refusal: senders.NotAllowed) -> Refused:
    claimed = refusal.claimed or "what is no address"
    reason = f"{where} claims {claimed}, and there is no default_sender"
    return Refused(SENDER_NOT_ALLOWED, reason, about=refusal.claimed)
