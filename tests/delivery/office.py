"""An office's relay, as far as delivery knows it: configuration, messages, and one attempt at them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from pi_relay.config import Config, Queue, SmartHost
from pi_relay.delivery import Delivery
from pi_relay.delivery.timeouts import Timeouts
from pi_relay.model import (
    DeliveryReport,
    Envelope,
    Failure,
    FileSpan,
    Recipient,
    Reply,
    StoredMessage,
    WayOut,
)
from tests.support.misbehaving_hop import MisbehavingHop

HEADER = b"From: scans@office.example\r\nDate: Tue, 24 Nov 2026 15:00:00 +0000\r\nSubject: a scan\r\n\r\n"
BODY = b"A page.\r\n..\r\nAnother.\r\n"  # as it is stored: dot-stuffed
SMALL = StoredMessage(HEADER, BODY)
IMPATIENT = Timeouts(
    resolve=5, connect=5, greeting=0.5, ehlo=0.5, tls=0.5, auth=0.5, command=0.5, block=0.5, end_of_data=0.5
)

T = TypeVar("T")


def smart_host(hop: MisbehavingHop | int, name: str = "isp", **more: Any) -> SmartHost:
    port = hop if isinstance(hop, int) else hop.port
    host = more.pop("host", "127.0.0.1" if isinstance(hop, int) else hop.host)
    return SmartHost(name, host, port, **{"tls": "off", **more})


def config(*hosts: SmartHost, delays: tuple[float, ...] = (60, 300), **more: Any) -> Config:
    queue = Queue(Path("/nonexistent"), retry_delays_seconds=delays)
    return Config(**{"hostname": "relay.office.example", "queue": queue, "smart_hosts": hosts, **more})


def envelope(*to: str, reverse_path: str = "scans@office.example", **more: Any) -> Envelope:
    recipients = tuple(Recipient(each) for each in to or ("a@elsewhere.example",))
    return Envelope(
        **{"queue_id": "Q1", "recipients": recipients, "accepted_at": 0.0, **more}, reverse_path=reverse_path
    )


class Office:
    """A Delivery in use: what it was told of its hops, and short ways to deliver."""

    def __init__(self, configuration: Config, timeouts: Timeouts | None = None) -> None:
        self.config = configuration
        self.changes: list[str] = []
        self.delivery = Delivery(configuration, on_hop_changed=self._changed, timeouts=timeouts)

    def _changed(self, name: str) -> None:
        self.changes.append(self.delivery.hop_state(name).condition)

    async def deliver(
        self, *to: str, message: StoredMessage = SMALL, via: tuple[str, ...] = (), **more: Any
    ) -> DeliveryReport:
        mail = envelope(*to, **more)
        return await self.send(mail, message, via)

    async def send(
        self, mail: Envelope, message: StoredMessage = SMALL, via: tuple[str, ...] = ()
    ) -> DeliveryReport:
        via = via or tuple(host.name for host in self.config.smart_hosts)
        return await self.delivery.deliver(mail, WayOut(tuple(range(len(mail.recipients))), via), message)


def with_office(
    configuration: Config, use: Callable[[Office], Awaitable[T]], timeouts: Timeouts | None = None
) -> T:
    async def run() -> T:
        office = Office(configuration, timeouts)
        try:
            return await use(office)
        finally:
            await office.delivery.close()

    return asyncio.run(run())


def deliver_once(
    configuration: Config,
    *to: str,
    message: StoredMessage = SMALL,
    timeouts: Timeouts | None = IMPATIENT,
    **more: Any,
) -> DeliveryReport:
    return with_office(configuration, lambda office: office.deliver(*to, message=message, **more), timeouts)


def fates(report: DeliveryReport) -> list[str]:
    """Each recipient's outcome in a word or two: "relayed", "recipient 550", "next_hop 421 transient"..."""
    return [_fate(report.results[position][1]) for position in sorted(report.results)]


def _fate(outcome: Reply | Failure) -> str:
    if isinstance(outcome, Reply):
        return "relayed"
    return f"{outcome.scope} {'permanent' if outcome.permanent else 'transient'} {outcome.reply.code}"


def failure(report: DeliveryReport, position: int = 0) -> Failure:
    outcome = report.results[position][1]
    assert isinstance(outcome, Failure), outcome
    return outcome


def hop_names(report: DeliveryReport) -> list[str]:
    return [
        hop.name if hop else ""
        for hop, _ in (report.results[position] for position in sorted(report.results))
    ]


def large_message(path: Path, size_bytes: int) -> StoredMessage:
    """A body in a file, between other bytes that must not be sent."""
    line = b"0123456789" * 7 + b"\r\n"
    body = line * (size_bytes // len(line) + 1)
    path.write_bytes(b"before" + body + b"after")
    return StoredMessage(HEADER, FileSpan(str(path), 6, len(body)))
