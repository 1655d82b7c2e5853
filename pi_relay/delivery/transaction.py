"""One mail transaction over an open session: MAIL, RCPT, DATA, the content, and what was said to each.

Rules: with PIPELINING all commands up to DATA leave in one write (RFC 2920), and a small message in one
more; a large one is copied from its file in chunks, no faster than it is taken. The content is never looked
into: it lies in wire form. What a reply means is lifecycle's to say; here is only told which reply answers
what, and what never was answered.
It must not know next hops, pauses, or other sessions.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from pi_relay.delivery.timeouts import Timeouts
from pi_relay.delivery.wire import RawReply, Wire
from pi_relay.lifecycle import Stage, connection_failure, what_it_means
from pi_relay.model import Envelope, Failure, FileSpan, Recipient, Reply, StoredMessage

CHUNK_SIZE_BYTES = 128 * 1024

_EXPECTED_CLASS = {Stage.MAIL: 2, Stage.RCPT: 2, Stage.DATA: 3, Stage.END_OF_DATA: 2}


@dataclass(frozen=True, slots=True)
class Extensions:
    """What the other side offered in its last EHLO reply."""

    pipelining: bool = False
    size_max_bytes: int | None = None  # RFC 1870: None not offered, 0 no limit told
    eight_bit_mime: bool = False
    smtputf8: bool = False
    dsn: bool = False
    requiretls: bool = False


@dataclass(slots=True)
class Transaction:
    """The commands and content of one transaction; ``commands`` makes them."""

    mail: bytes
    rcpts: Sequence[bytes]
    message: StoredMessage
    size_bytes: int


@dataclass(slots=True)
class Outcome:
    """What became of each recipient, by its place in the transaction."""

    results: list[Reply | Failure]
    accepted: list[int] = field(default_factory=list)  # places whose RCPT was taken
    put_off: list[int] = field(default_factory=list)  # no more in one transaction: they may go in another
    unanswered: bool = False  # the session ended before MAIL had any answer but a 421
    in_doubt: bool = False  # the end of data went unanswered: the accepted ones may have the message
    left_open: bool = False  # the next transaction has to begin with RSET


_TAKEN = Reply(250, "", "")  # stands for a positive reply that nobody will read


def commands(
    envelope: Envelope,
    recipients: Sequence[Recipient],
    reverse_path: str,
    message: StoredMessage,
    extensions: Extensions,
    *,
    smtputf8: bool,
) -> Transaction:
    """MAIL with SIZE (RFC 1870), BODY (RFC 6152), SMTPUTF8 (RFC 6531), RET and ENVID (RFC 3461), if offered.

    Raises ValueError for a path that would be more than one line.
    """
    body = message.body
    size_bytes = len(message.header) + (body.length_bytes if isinstance(body, FileSpan) else len(body))
    mail = f"MAIL FROM:<{reverse_path}>"
    if extensions.size_max_bytes is not None:
        mail += f" SIZE={size_bytes}"
    if envelope.body_type == "8BITMIME" and extensions.eight_bit_mime:
        mail += " BODY=8BITMIME"
    if smtputf8:
        mail += " SMTPUTF8"
    if envelope.requiretls:  # only ever said to who offers it (RFC 8689)
        mail += " REQUIRETLS"
    if extensions.dsn:
        mail += "".join(
            f" {key}={value}" for key, value in (("RET", envelope.ret), ("ENVID", envelope.envid)) if value
        )
    rcpts = [_line(f"RCPT TO:<{each.forward_path}>{_dsn(each, extensions, smtputf8)}") for each in recipients]
    return Transaction(_line(mail), rcpts, message, size_bytes)


def _dsn(recipient: Recipient, extensions: Extensions, smtputf8: bool) -> str:
    if not extensions.dsn:
        return ""
    notify = f" NOTIFY={','.join(recipient.notify)}" if recipient.notify else ""
    original = recipient.original_recipient or ""
    if not (smtputf8 or original.isascii()):  # RFC 6533 3: then letters beyond ASCII are spelt out
        original = "".join(each if each.isascii() else f"\\x{{{ord(each):X}}}" for each in original)
    return notify + (f" ORCPT={original}" if original else "")


def _line(command: str) -> bytes:
    if not command.isprintable():
        raise ValueError(f"a path with control characters: {command!r}")
    return command.encode() + b"\r\n"


async def transact(
    wire: Wire, transaction: Transaction, extensions: Extensions, timeouts: Timeouts, *, reset: bool
) -> Outcome:
    """Carry the transaction out. ``reset``: the one before was left open, forget it first.

    Raises OSError where the message's file cannot be read; the session is then broken off.
    """
    wire.begin(timeouts.command, timeouts.transaction_for(transaction.size_bytes))
    try:
        if extensions.pipelining:
            replies = await _say_at_once(wire, transaction, reset)
        else:
            replies = await _say_step_by_step(wire, transaction, reset, timeouts)
        outcome = _judge_envelope(wire, replies, len(transaction.rcpts))
        data = replies[-1] if len(replies) == len(transaction.rcpts) + 2 else None
        if outcome.accepted:
            said = await _say_content(wire, data, transaction.message, outcome, timeouts)
            for place in outcome.accepted:
                outcome.results[place] = said
        elif data is not None and data[0] == 354:
            await _say_nothing(wire, outcome, timeouts)
        return outcome
    except BaseException:
        wire.abort("given up in the middle")
        raise
    finally:
        wire.end()


# ── the envelope ─────────────────────────────────────────────────────────────────────────────────


async def _say_at_once(wire: Wire, transaction: Transaction, reset: bool) -> list[RawReply]:
    ahead = (b"RSET\r\n",) if reset else ()
    block = b"".join((*ahead, transaction.mail, *transaction.rcpts, b"DATA\r\n"))
    wire.ask(block, len(ahead) + 2 + len(transaction.rcpts))
    replies = await wire.answers()
    return replies[1:] if reset else replies


async def _say_step_by_step(
    wire: Wire, transaction: Transaction, reset: bool, timeouts: Timeouts
) -> list[RawReply]:
    async def say(command: bytes) -> bool:
        """Whether it was taken; the reply is kept."""
        wire.allow(timeouts.command)
        wire.ask(command, 1)
        replies.extend(await wire.answers())
        return not wire.broken and replies[-1][0] < 300

    replies: list[RawReply] = []
    if reset:
        await say(b"RSET\r\n")
        replies.clear()
    if await say(transaction.mail):
        taken = [await say(rcpt) for rcpt in transaction.rcpts]
        if any(taken):
            await say(b"DATA\r\n")
    return replies


def _judge_envelope(wire: Wire, replies: Sequence[RawReply], count: int) -> Outcome:
    if not replies:
        lost = _lost(wire, Stage.MAIL)
        return Outcome([lost] * count, unanswered=True)
    mail = _judge(wire, Stage.MAIL, replies[0])
    if isinstance(mail, Failure):
        return Outcome([mail] * count, unanswered=replies[0][0] == 421)
    results = [_judge(wire, Stage.RCPT, raw) for raw in replies[1 : count + 1]]
    accepted = [place for place, said in enumerate(results) if said is _TAKEN]
    if wire.broken and len(replies) < count + 2:  # before the content: nobody gets anything
        last = results[-1] if results and replies[-1][0] == 421 else None
        lost = last if isinstance(last, Failure) else _lost(wire, Stage.RCPT)
        for place in accepted:
            results[place] = lost
        return Outcome(results + [lost] * (count - len(results)))
    put_off = [place for place, said in enumerate(results) if isinstance(said, Failure) and _no_more(said)]
    return Outcome(results, accepted, put_off if accepted else [], left_open=True)


def _judge(wire: Wire, stage: Stage, raw: RawReply) -> Reply | Failure:
    kind = raw[0] // 100
    if kind == _EXPECTED_CLASS[stage] and stage is not Stage.END_OF_DATA:
        return _TAKEN
    reply = wire.reply(raw)
    if kind == _EXPECTED_CLASS[stage]:
        return reply
    if kind not in (4, 5):
        wire.abort(f"an answer out of place: {reply}")
    return what_it_means(stage, reply) or reply


def _lost(wire: Wire, stage: Stage) -> Failure:
    return connection_failure(stage, wire.broken, wire.remote_mta)


def _no_more(failure: Failure) -> bool:
    """It takes no more recipients in this transaction (RFC 5321 4.5.3.1.10; OpenSMTPD says 451 4.5.3)."""
    said_so = failure.reply.code in (452, 552) or failure.reply.enhanced_status == "4.5.3"
    return said_so and not failure.permanent


# ── the content ──────────────────────────────────────────────────────────────────────────────────


async def _say_content(
    wire: Wire, data: RawReply | None, message: StoredMessage, outcome: Outcome, timeouts: Timeouts
) -> Reply | Failure:
    """What the accepted recipients get as their answer."""
    if data is None or (wire.broken and data[0] == 354):
        return _lost(wire, Stage.DATA)
    go_ahead = _judge(wire, Stage.DATA, data)
    if isinstance(go_ahead, Failure):
        return go_ahead
    outcome.left_open = False
    body = message.body
    if isinstance(body, FileSpan):
        wire.ask(message.header, 1)
        whole = await _copy(wire, body, timeouts)
    else:
        wire.ask(b"".join((message.header, body, _end_after(body or message.header))), 1)
        whole = True
    wire.allow(timeouts.end_of_data)
    replies = await wire.answers()
    if replies and (whole or replies[0][0] >= 400):
        return _judge(wire, Stage.END_OF_DATA, replies[0])
    outcome.in_doubt = whole
    return _lost(wire, Stage.END_OF_DATA if whole else Stage.DATA)


async def _say_nothing(wire: Wire, outcome: Outcome, timeouts: Timeouts) -> None:
    """It wants content though it took no recipient: give it none, and believe no answer (RFC 2920 3.1)."""
    wire.allow(timeouts.command)
    wire.ask(b".\r\n", 1)
    await wire.answers()
    outcome.left_open = False


def _end_after(content: bytes | bytearray) -> bytes:
    return b".\r\n" if content.endswith(b"\r\n") else b"\r\n.\r\n"


async def _copy(wire: Wire, span: FileSpan, timeouts: Timeouts) -> bool:
    """Write the span and the end of data; False where the other side answered, or left, before the end."""
    if not span.length_bytes:  # the header block was what made the message large
        wire.write(b".\r\n")
        return not wire.broken
    file = await ChunkedFile.open(span)
    try:
        while chunk := await file.read():
            if wire.replies or wire.broken:
                wire.abort("answered before the content had ended")
                return False
            wire.allow(timeouts.block)
            wire.write(chunk if file.remaining_bytes else chunk + _end_after(chunk))
            await wire.room()
    finally:
        file.close()
    return not wire.broken


class ChunkedFile:
    """Reads a span piece by piece: at once where the pages are in memory, else in another thread."""

    def __init__(self, descriptor: int, span: FileSpan) -> None:
        self.remaining_bytes = span.length_bytes
        self._descriptor = descriptor
        self._offset_bytes = span.offset_bytes
        self._read_at_once = hasattr(os, "RWF_NOWAIT")

    @classmethod
    async def open(cls, span: FileSpan) -> ChunkedFile:
        loop = asyncio.get_running_loop()
        return cls(await loop.run_in_executor(None, os.open, span.path, os.O_RDONLY | os.O_CLOEXEC), span)

    async def read(self) -> bytes | bytearray:
        """Up to CHUNK_SIZE_BYTES, nothing at the end. Raises OSError, also where the file is too short."""
        wanted_bytes = min(CHUNK_SIZE_BYTES, self.remaining_bytes)
        if not wanted_bytes:
            return b""
        chunk: bytes | bytearray = self._read_from_memory(wanted_bytes)
        if not chunk:
            loop = asyncio.get_running_loop()
            chunk = await loop.run_in_executor(
                None, os.pread, self._descriptor, wanted_bytes, self._offset_bytes
            )
        if not chunk:
            raise OSError(f"the message's file ends {self.remaining_bytes} bytes too early")
        self._offset_bytes += len(chunk)
        self.remaining_bytes -= len(chunk)
        return chunk

    def _read_from_memory(self, wanted_bytes: int) -> bytearray:
        """What the page cache holds; nothing where the disk would have to be asked."""
        if not self._read_at_once:
            return bytearray()
        chunk = bytearray(wanted_bytes)
        try:
            del chunk[os.preadv(self._descriptor, [chunk], self._offset_bytes, os.RWF_NOWAIT) :]
        except BlockingIOError:
            return bytearray()
        except OSError:  # not every file system knows how
            self._read_at_once = False
            return bytearray()
        return chunk

    def close(self) -> None:
        os.close(self._descriptor)
