"""An envelope as bytes, and the little of it that stays in memory.

Purpose: compact JSON with the field names of ``model.Envelope``, defaults left out, so that an admin can read
it; ``Entry``, what the queue knows of every message without touching the disk. Rules: ``decode`` raises
ValueError for anything ``encode`` cannot have written. It must not know where the bytes lie.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from sys import intern
from typing import Any

from pi_relay.model import ENVELOPE_FORMAT_VERSION, Envelope, Kind, Recipient, RecipientStatus, Reply

_OPTIONAL = tuple(
    (field.name, field.default)
    for field in fields(Envelope)
    if field.default is not MISSING and field.name != "format_version"
)
_encode_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class Entry:
    """What is kept in memory of each message: enough to schedule and list it, not its recipients."""

    __slots__ = (
        "accepted_at",
        "attempts",
        "checked",
        "delay_reported",
        "device",
        "held",
        "kind",
        "message_crc",
        "next_attempt_at",
        "queue_id",
        "size_bytes",
        "slots_used",
    )

    def __init__(
        self,
        queue_id: str,
        kind: Kind,
        device: str,
        held: str,
        size_bytes: int,
        accepted_at: float,
        attempts: int,
        slots_used: int,
        next_attempt_at: float | None,
        delay_reported: bool,
    ) -> None:
        self.queue_id = queue_id
        self.kind = kind
        self.device = device
        self.held = held
        self.size_bytes = size_bytes
        self.accepted_at = accepted_at
        self.attempts = attempts
        self.slots_used = slots_used
        self.next_attempt_at = next_attempt_at
        self.delay_reported = delay_reported
        self.message_crc = 0  # of header block and body
        self.checked = False  # this process wrote the message, or has compared its CRC

    def update(self, envelope: Envelope) -> None:
        """Take over what an attempt or the admin can change."""
        self.held = envelope.held
        self.attempts = envelope.attempts
        self.slots_used = envelope.slots_used
        self.next_attempt_at = envelope.next_attempt_at
        self.delay_reported = envelope.delay_reported


def entry_of(envelope: Envelope) -> Entry:
    return Entry(
        envelope.queue_id,
        envelope.kind,
        envelope.device,
        envelope.held,
        envelope.message_size_bytes,
        envelope.accepted_at,
        envelope.attempts,
        envelope.slots_used,
        envelope.next_attempt_at,
        envelope.delay_reported,
    )


def encode(envelope: Envelope) -> bytes:
    data: dict[str, Any] = {
        "format_version": envelope.format_version,
        "queue_id": envelope.queue_id,
        "reverse_path": envelope.reverse_path,
        "recipients": [_recipient_data(recipient) for recipient in envelope.recipients],
        "accepted_at": envelope.accepted_at,
    }
    for name, default in _OPTIONAL:
        value = getattr(envelope, name)
        if value != default:
            data[name] = value
    return _encode_json(data).encode("ascii")


def _recipient_data(recipient: Recipient) -> dict[str, Any]:
    data: dict[str, Any] = {"forward_path": recipient.forward_path}
    if recipient.original_recipient is not None:
        data["original_recipient"] = recipient.original_recipient
    if recipient.notify is not None:
        data["notify"] = recipient.notify
    if recipient.status is not RecipientStatus.PENDING:
        data["status"] = recipient.status
    reply = recipient.last_reply
    if reply is not None:
        data["last_reply"] = (reply.code, reply.enhanced_status, reply.text, reply.remote_mta)
    return data


def decode(data: bytes) -> Envelope:
    """The envelope of ``encode``. Raises ValueError for what is none of this version."""
    values = _values(data)
    try:
        values["recipients"] = tuple(_recipient(recipient) for recipient in values["recipients"])
        values["kind"] = Kind(values.get("kind", Kind.MAIL))
        return Envelope(**values)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not an envelope: {error}") from error


def _recipient(data: dict[str, Any]) -> Recipient:
    notify = data.get("notify")
    reply = data.get("last_reply")
    return Recipient(
        data["forward_path"],
        data.get("original_recipient"),
        None if notify is None else tuple(notify),
        RecipientStatus(data.get("status", RecipientStatus.PENDING)),
        None if reply is None else Reply(*reply),
    )


def decode_entry(data: bytes) -> Entry:
    """The entry of an encoded envelope, without its recipients: a start reads ten thousand of them."""
    values = _values(data)
    get = values.get
    try:
        return Entry(
            values["queue_id"],
            Kind(get("kind", Kind.MAIL)),
            intern(get("device", "")),
            intern(get("held", "")),
            get("message_size_bytes", 0),
            values["accepted_at"],
            get("attempts", 0),
            get("slots_used", 0),
            get("next_attempt_at"),
            get("delay_reported", False),
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"not an envelope: {error}") from error


def _values(data: bytes) -> dict[str, Any]:
    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError("not an envelope")
    if values.get("format_version") != ENVELOPE_FORMAT_VERSION:
        raise ValueError(f"envelope of format version {values.get('format_version')}")
    return values
