"""What one next hop gets of a message: its reverse-path and its header block, derived from the stored ones.

Rules: derived anew for each transaction, never written back; the body stays as it is stored. Where a next hop
asks for nothing of its own, the stored message goes out as it lies there. What is signed (DKIM) is what
leaves, so signing comes last.
It must not know sessions, nor what the other side answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from pi_relay.config import Config
from pi_relay.delivery.signing import Signer
from pi_relay.model import Envelope, StoredMessage


@dataclass(frozen=True, slots=True)
class Outgoing:
    reverse_path: str
    message: StoredMessage


async def derive(
    config: Config, envelope: Envelope, message: StoredMessage, *, sender: str, signer: Signer
) -> Outgoing:
    """``sender``: in whose name this next hop wants the mail, "" for whoever sent it.

    Raises SigningFailed where it would have to be signed and cannot be.
    """
    if config.dkim:
        message = await signer.sign(config.dkim, envelope.queue_id, message)
    return Outgoing(sender or envelope.reverse_path, message)
