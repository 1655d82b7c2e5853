"""Messages for a real queue folder: made, submitted, and compared with what comes back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pi_relay.model import Envelope, FileSpan, Recipient, RecipientStatus, Reply, StoredMessage
from pi_relay.queue.disk import Disk
from pi_relay.queue.store import Store

JOURNAL_SIZE_BYTES = 256 * 1024
RELAYED = Reply(250, "2.0.0", "ok", "mx.example")


def new_store(directory: Path, disk: Disk | None = None, **options: int) -> Store:
    settings = {
        "size_max_bytes": 1_000_000_000,
        "free_space_min_bytes": 0,
        "journal_size_bytes": JOURNAL_SIZE_BYTES,
    } | options
    return Store(directory, disk=disk, **settings)


def content(size_bytes: int, word: str = "scan") -> tuple[bytes, bytes]:
    """A header block and a body in wire form; ``word`` makes it one of its kind."""
    header = f"From: <printer@office.example>\r\nSubject: {word}\r\n\r\n".encode()
    line = f"{word} ".encode().ljust(76, b"=") + b"\r\n"
    missing = max(size_bytes - len(header), 0)
    return header, (line * (missing // len(line) + 1))[:missing]


def envelope_for(queue_id: str, header: bytes, body: bytes, recipients: Iterable[str] = ()) -> Envelope:
    return Envelope(
        queue_id,
        "printer@office.example",
        tuple(Recipient(path) for path in recipients or ("clerk@office.example",)),
        accepted_at=1_700_000_000.0,
        client="192.0.2.7",
        device="printer",
        header_size_bytes=len(header),
        message_size_bytes=len(header) + len(body),
    )


async def submit(
    store: Store, size_bytes: int = 2000, word: str = "scan", recipients: Iterable[str] = (), held: str = ""
) -> Envelope:
    """As a session does: begin, write in pieces, commit."""
    header, body = content(size_bytes, word)
    message = header + body
    incoming = store.begin(len(message))
    for start in range(0, len(message), 65536):
        await incoming.write(message[start : start + 65536])
    envelope = replace(envelope_for(incoming.queue_id, header, body, recipients), held=held)
    await incoming.commit(envelope)
    return envelope


def bytes_of(message: StoredMessage) -> bytes:
    body = message.body
    if isinstance(body, FileSpan):
        with Path(body.path).open("rb") as file:
            file.seek(body.offset_bytes)
            body = file.read(body.length_bytes)
    return message.header + body


def with_relayed(envelope: Envelope, position: int) -> Envelope:
    recipients = list(envelope.recipients)
    recipients[position] = replace(recipients[position], status=RecipientStatus.RELAYED, last_reply=RELAYED)
    return replace(envelope, recipients=tuple(recipients), attempts=envelope.attempts + 1)
