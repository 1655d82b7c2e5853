"""What an admin may ask of the running relay: the verbs of the control socket.

Rules: a verb reads its arguments, asks the room that knows, and words the answer as control.py lays it down;
it decides nothing. It must not know how the rooms are built.
"""

from __future__ import annotations

import asyncio
import os
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from email.utils import formatdate
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pi_relay import __version__, memory, patterns, routes
from pi_relay.config import ConfigInvalid, machine
from pi_relay.config.exposure import exposures
from pi_relay.control import ControlError, Handler, message_document, reply_document
from pi_relay.model import Envelope, FileSpan, QueueRefusal, Recipient, StoredMessage
from pi_relay.queue.store import CorruptMessage
from pi_relay.status import Observation, QueueStatus, Restart, document, timestamp
from pi_relay.submission.certificates import CertificateError
from pi_relay.submission.server import ListenerError

if TYPE_CHECKING:
    from pi_relay.config import Config, Finding
    from pi_relay.delivery import Delivery
    from pi_relay.model import IncomingMessage
    from pi_relay.queue.manager import Manager
    from pi_relay.queue.store import Store
    from pi_relay.submission.certificates import Certificates
    from pi_relay.submission.server import Server

CHUNK_SIZE_BYTES = 256 * 1024
FATE_WAIT_MAX_SECONDS = 30.0
TEST_MESSAGE_SIZE_BYTES = 4096  # more than it takes


class Relay(Protocol):
    """The parts that the verbs speak to."""

    config: Config
    store: Store
    manager: Manager
    delivery: Delivery
    server: Server
    certificates: Certificates

    def begin(self, declared_size_bytes: int | None) -> IncomingMessage: ...

    def clock_is_wrong(self) -> bool: ...

    def troubles(self) -> list[str]: ...

    def last_restart(self) -> Restart | None: ...


class Operations:
    """The verbs of one relay. ``reload`` returns the file's warnings, or raises ConfigInvalid."""

    def __init__(self, relay: Relay, *, reload: Callable[[], Awaitable[list[Finding]]]) -> None:
        self._relay = relay
        self._reload = reload
        self._started_at = time.monotonic()

    def handlers(self) -> Mapping[str, Handler]:
        return {
            "version": self.version,
            "status": self.status,
            "reload": self.reload,
            "queue_list": self.queue_list,
            "queue_show": self.queue_show,
            "queue_message": self.queue_message,
            "queue_retry": self.queue_retry,
            "queue_hold": self.queue_hold,
            "queue_release": self.queue_release,
            "queue_delete": self.queue_delete,
            "devices": self.devices,
            "tls": self.tls,
            "tls_renew": self.tls_renew,
            "send_test": self.send_test,
            "fate": self.fate,
        }

    # ── the relay as a whole ─────────────────────────────────────────────────────────────────────

    async def version(self, _: dict[str, Any]) -> object:
        return {"version": __version__, "pid": os.getpid()}

    async def status(self, _: dict[str, Any]) -> object:
        return document(self.observe())

    async def reload(self, _: dict[str, Any]) -> object:
        try:
            findings = await self._reload()
        except ConfigInvalid as invalid:
            raise ControlError(
                "bad_configuration",
                "the file has errors; the last good configuration stays in force",
                hint="pi-relay check names every error and warning",
                details=[asdict(finding) for finding in invalid.findings],
            ) from invalid
        except CertificateError as problem:
            raise _not_in_force(problem.message, problem.hint) from problem
        except ListenerError as problem:
            raise _not_in_force(
                f"cannot listen on {problem.address}: {problem.reason}", problem.hint
            ) from problem
        return {"warnings": [asdict(finding) for finding in findings]}

    def observe(self) -> Observation:
        relay, now = self._relay, time.time()
        usage, seen = relay.store.usage(), relay.server.stats()
        config = relay.config
        return Observation(
            version=__version__,
            pid=os.getpid(),
            uptime_seconds=int(time.monotonic() - self._started_at),
            rss_bytes=memory.rss_bytes(),
            listening=seen.listening,
            clock_wrong=relay.clock_is_wrong(),
            connections=seen.connections,
            connections_max=config.submission.connections_max,
            queue=QueueStatus(
                messages=usage.messages,
                bytes=usage.bytes,
                oldest_seconds=_age_seconds(usage.oldest_accepted_at, now),
                held=usage.held,
                corrupt=usage.corrupt,
                size_max_bytes=config.queue.size_max_bytes,
                free_bytes=usage.free_bytes,
                free_space_min_bytes=config.queue.free_space_min_bytes,
                broken=usage.broken or relay.store.slow_disk(),
            ),
            totals={"accepted": seen.accepted, **relay.manager.totals(), "refused": seen.refused},
            smart_hosts=relay.delivery.hops(),
            devices=seen.devices,
            troubles=[
                *relay.troubles(),
                *relay.certificates.troubles(),
                *relay.server.troubles(),
                *_exposed(config),
            ],
            last_restart=relay.last_restart(),
        )

    # ── the queue ────────────────────────────────────────────────────────────────────────────────

    async def queue_list(self, question: dict[str, Any]) -> AsyncIterator[object]:
        state, device = _text(question, "state"), _text(question, "device")
        pattern = _text(question, "recipient")
        for queue_id in list(self._relay.store.entries):
            if state and self._relay.manager.state_of(queue_id) != state:
                continue
            if device and not await self._is_of(queue_id, device):
                continue
            envelope = await self._envelope(queue_id)
            if envelope is None or (pattern and not _has_recipient(envelope, pattern)):
                continue
            yield self._document(envelope)

    async def _is_of(self, queue_id: str, device: str) -> bool:
        """``device``: its name, or the address or network of a client."""
        entry = self._relay.store.entries.get(queue_id)
        if entry is None or entry.device == device:
            return entry is not None
        if not _is_network(device):
            return False
        envelope = await self._envelope(queue_id)
        return envelope is not None and _lies_in(device, envelope.client)

    async def queue_show(self, question: dict[str, Any]) -> object:
        queue_id = _text(question, "queue_id")
        envelope = await self._envelope(queue_id)
        if envelope is None:
            raise _unknown(queue_id)
        return self._document(envelope)

    def _document(self, envelope: Envelope) -> dict[str, Any]:
        manager, queue_id = self._relay.manager, envelope.queue_id
        next_attempt_at = timestamp(manager.next_attempt_at(queue_id))
        return message_document(envelope, manager.state_of(queue_id)) | {"next_attempt_at": next_attempt_at}

    async def queue_message(self, question: dict[str, Any]) -> AsyncIterator[object]:
        queue_id = _text(question, "queue_id")
        try:
            _, message = await self._relay.store.load(queue_id)
        except (KeyError, CorruptMessage) as problem:
            raise _unknown(queue_id) from problem
        async for chunk in _chunks(message):
            yield {"data": b64encode(chunk).decode("ascii")}

    async def _envelope(self, queue_id: str) -> Envelope | None:
        """None where it is gone by now, or cannot be read."""
        try:
            return await self._relay.store.load_envelope(queue_id)
        except (KeyError, CorruptMessage):
            return None

    async def queue_retry(self, question: dict[str, Any]) -> object:
        if question.get("all") is True:
            return {"done": await self._relay.manager.retry(), "unknown": []}
        return await self._each(question, self._relay.manager.retry)

    async def queue_hold(self, question: dict[str, Any]) -> object:
        return await self._each(question, self._relay.manager.hold)

    async def queue_release(self, question: dict[str, Any]) -> object:
        return await self._each(question, self._relay.manager.release)

    async def queue_delete(self, question: dict[str, Any]) -> object:
        bounce = question.get("bounce") is True
        return await self._each(question, lambda ids: self._relay.manager.delete(ids, bounce=bounce))

    async def _each(
        self, question: dict[str, Any], act: Callable[[list[str]], Awaitable[list[str]]]
    ) -> dict[str, list[str]]:
        ids = await self._asked_for(question)
        done = await act(ids)
        missing = set(ids).difference(done)
        return {"done": done, "unknown": [queue_id for queue_id in ids if queue_id in missing]}

    async def _asked_for(self, question: dict[str, Any]) -> list[str]:
        entries = self._relay.store.entries
        if question.get("all") is True:
            return list(entries)
        if device := _text(question, "device"):
            held = [queue_id for queue_id, entry in entries.items() if entry.held]
            return [queue_id for queue_id in held if await self._is_of(queue_id, device)]
        ids = question.get("ids")
        if not isinstance(ids, list) or not all(isinstance(queue_id, str) for queue_id in ids):
            raise ControlError("usage", "ids must be a list of queue ids")
        return list(dict.fromkeys(ids))

    # ── devices, and what they see ───────────────────────────────────────────────────────────────

    async def devices(self, _: dict[str, Any]) -> AsyncIterator[object]:
        for client in self._relay.server.clients():
            yield asdict(client) | {
                "mac": client.mac or None,
                "last_seen_at": timestamp(client.last_seen_at),
                "last_reply": client.last_reply or None,
                "last_reason": client.last_reason or None,
                "mend": client.mend or None,
            }

    async def tls(self, _: dict[str, Any]) -> object:
        try:
            served = self._relay.certificates.served()
        except CertificateError as problem:
            raise ControlError("failed", problem.message, hint=problem.hint) from problem
        return asdict(served) | {"clock_wrong": self._relay.clock_is_wrong()}

    async def tls_renew(self, question: dict[str, Any]) -> object:
        try:
            await self._relay.certificates.renew()
        except CertificateError as problem:
            raise ControlError("failed", problem.message, hint=problem.hint) from problem
        return await self.tls(question)

    # ── a test message ───────────────────────────────────────────────────────────────────────────

    async def send_test(self, question: dict[str, Any]) -> object:
        relay, address, via = self._relay, _text(question, "address"), _text(question, "via")
        config = relay.config
        if via and via not in _ways_out(config):
            raise ControlError(
                "not_found", f"there is no smart host {via!r}", hint="see [smart_hosts.*] in the file"
            )
        sender = config.submission.default_sender or config.postmaster or f"postmaster@{config.hostname}"
        if not via and not routes.via_for(config, sender, address, ""):
            raise ControlError(
                "failed", f"no route takes mail for {address}", hint="see [[routes]] in the file"
            )
        incoming = relay.begin(TEST_MESSAGE_SIZE_BYTES)
        header, body = _test_message(incoming.queue_id, config.hostname, sender, address)
        envelope = Envelope(
            queue_id=incoming.queue_id,
            reverse_path=sender,
            recipients=(Recipient(address),),
            accepted_at=time.time(),
            client="send-test",
            header_size_bytes=len(header),
            message_size_bytes=len(header) + len(body),
        )
        relay.manager.send_by(envelope.queue_id, (via,) if via else ())
        try:
            await incoming.write(header + body)
            await incoming.commit(envelope)
        except QueueRefusal as refusal:
            raise ControlError("failed", f"the queue does not take it: {refusal.reply}") from refusal
        return {
            "queue_id": envelope.queue_id,
            "from": sender,
            "size_bytes": envelope.message_size_bytes,
        }

    async def fate(self, question: dict[str, Any]) -> object:
        queue_id, seen = _text(question, "queue_id"), question.get("seen_attempts", -1)
        wait_seconds = question.get("wait_seconds", 0)
        if not isinstance(seen, int) or not isinstance(wait_seconds, int | float):
            raise ControlError("usage", "seen_attempts and wait_seconds must be numbers")
        wait_seconds = min(max(wait_seconds, 0), FATE_WAIT_MAX_SECONDS)
        fate = await self._relay.manager.wait_for_fate(queue_id, seen, wait_seconds)
        if fate is None:
            raise _unknown(queue_id)
        return {
            "state": fate.state,
            "attempts": fate.attempts,
            "next_hop": fate.next_hop,
            "reply": reply_document(fate.reply),
            "next_attempt_at": timestamp(fate.next_attempt_at),
        }


def _exposed(config: Config) -> list[str]:
    """What the world can reach of this box, as its addresses are now."""
    found = exposures(config, machine.public_addresses())
    return [exposure.in_words(config) for exposure in found]


def _test_message(queue_id: str, hostname: str, sender: str, address: str) -> tuple[bytes, bytes]:
    header = (
        f"Date: {formatdate(localtime=True)}\r\n"
        f"From: pi-relay <{sender}>\r\n"
        f"To: <{address}>\r\n"
        f"Subject: Test message from pi-relay\r\n"
        f"Message-ID: <{queue_id}.test@{hostname}>\r\n"
        "Auto-Submitted: auto-generated\r\n"
        "MIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n\r\n"
    )
    body = (
        f"This message was sent by `pi-relay send-test` on {hostname}.\r\n"
        "That you read it shows that the relay and its smart host work.\r\n"
    )
    return header.encode(), body.encode()


async def _chunks(message: StoredMessage) -> AsyncIterator[bytes]:
    yield message.header
    if isinstance(message.body, bytes):
        yield message.body
        return
    for start in range(0, message.body.length_bytes, CHUNK_SIZE_BYTES):
        yield await asyncio.to_thread(_read, message.body, start)


def _read(span: FileSpan, start: int) -> bytes:
    with Path(span.path).open("rb") as file:
        file.seek(span.offset_bytes + start)
        return file.read(min(CHUNK_SIZE_BYTES, span.length_bytes - start))


def _text(question: dict[str, Any], key: str) -> str:
    value = question.get(key, "")
    if not isinstance(value, str):
        raise ControlError("usage", f"{key} must be a text")
    return value


def _not_in_force(why: str, hint: str) -> ControlError:
    return ControlError("failed", f"the last good configuration stays in force: {why}", hint=hint)


def _is_network(text: str) -> bool:
    with suppress(ValueError):
        return ip_network(text, strict=False) is not None
    return False


def _lies_in(network: str, client: str) -> bool:
    with suppress(ValueError):
        return ip_address(client) in ip_network(network, strict=False)
    return False


def _unknown(queue_id: str) -> ControlError:
    return ControlError("not_found", f"there is no message {queue_id} in the queue")


def _has_recipient(envelope: Envelope, pattern: str) -> bool:
    return any(patterns.matches((pattern,), recipient.forward_path) for recipient in envelope.recipients)


def _age_seconds(since: float | None, now: float) -> int:
    return 0 if since is None else max(0, int(now - since))


def _ways_out(config: Config) -> set[str]:
    """What --via may name: every smart host, and "direct" where a route leads there."""
    names = {name for route in config.routes for name in route.via}
    return names | {host.name for host in config.smart_hosts}
