"""What one next hop gets of a message: its reverse-path and its header block, derived from the stored ones.

Rules: derived anew for each transaction, never written back; the body stays as it is stored. Where a next hop
asks for nothing of its own, the stored message goes out as it lies there, but for a Date that could not be
given while the clock was wrong. What is signed (DKIM) is what leaves, so signing comes last.
It must not know sessions, nor what the other side answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pi_relay import maillog, senders
from pi_relay.config import Config, SmartHost, looks_like_address
from pi_relay.delivery.signing import Signer
from pi_relay.headers import Header, with_date
from pi_relay.model import Envelope, Kind, StoredMessage


@dataclass(frozen=True, slots=True)
class Guise:
    """In whose name a message goes. ``sender``: the address in From and Sender, "" for whoever wrote it."""

    reverse_path: str
    sender: str = ""


@dataclass(frozen=True, slots=True)
class Outgoing:
    reverse_path: str
    message: StoredMessage
    rewritten: tuple[str, ...] = ()
    claimed: tuple[str, ...] = ()
    signatures: tuple[str, ...] = ()

    def note(self, queue_id: str, next_hop: str) -> None:
        """Say in the log what was changed, if anything."""
        if self.rewritten:
            maillog.rewritten(
                queue_id=queue_id,
                next_hop=next_hop,
                sender=self.reverse_path,
                rewritten=self.rewritten,
                claimed=self.claimed,
                signatures=self.signatures,
            )


def guises(host: SmartHost, envelope: Envelope) -> Iterator[Guise]:
    """How to show the message to this host; then, where our account there may not send so, how to once more.

    The host's ``sender`` stands for whoever sent it. The null reverse-path stays, unless the host refuses it.
    The second time it is an address of the account, another one if there is: where that is refused as well,
    the account has to rest for it.
    """
    own = [address for address in (host.sender, host.username) if address and looks_like_address(address)]
    sender = host.sender
    reverse_path = sender or envelope.reverse_path
    if not envelope.reverse_path:
        sender = sender or ("" if host.null_sender else next(iter(own), ""))
        reverse_path = "" if host.null_sender else sender
    yield Guise(reverse_path, sender)
    others = [address for address in own if address != reverse_path]
    yield from [Guise(address, address) for address in others or own][:1]


async def derive(
    config: Config, envelope: Envelope, message: StoredMessage, *, guise: Guise, signer: Signer
) -> Outgoing:
    """Raises SigningFailed where it would have to be signed and cannot be."""
    header = with_date(message.header, time.time())
    if header is not message.header:
        message = replace(message, header=header)
    outgoing = Outgoing(guise.reverse_path, message)
    if guise.sender:
        outgoing = _in_the_name_of(guise, envelope, message)
    if config.dkim:
        signed = await signer.sign(config.dkim, envelope.queue_id, outgoing.message)
        outgoing = replace(outgoing, message=signed)
    return outgoing


def _in_the_name_of(guise: Guise, envelope: Envelope, message: StoredMessage) -> Outgoing:
    """The message with ``guise.sender`` in From and Sender; answers to a report go nowhere."""
    done = senders.sent_as(
        Header(message.header), senders.Name(guise.sender), reply_to=envelope.kind is Kind.MAIL
    )
    rewritten, claimed = done.fields, done.claimed
    if guise.reverse_path != envelope.reverse_path:
        rewritten = ("reverse_path", *rewritten)
        claimed = tuple(dict.fromkeys((envelope.reverse_path or "<>", *claimed)))
    if done.fields:
        message = replace(message, header=done.added + done.header.block)
    return Outgoing(guise.reverse_path, message, rewritten, claimed, done.signatures)
