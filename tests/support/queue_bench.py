"""The manager with the real store, scripted next hops and a clock that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from pi_relay.config import Config, Queue, Route, Submission
from pi_relay.model import Envelope, Kind, Recipient
from pi_relay.queue.manager import Manager
from pi_relay.queue.store import Store
from tests.support.clock import ManualClock
from tests.support.next_hops import NextHops

HEADER = b"From: ann@office.example\r\nSubject: scan\r\nMessage-ID: <1@copier>\r\n\r\n"
BODY = b"a page\r\n"
MIB = 1024 * 1024


def office(directory: Path, **changes: object) -> Config:
    """One smart host; slots at 0, 60, 360, 1260 seconds, and every 900 up to an hour."""
    config = Config(
        hostname="relay.office.example",
        queue=Queue(
            directory,
            retry_delays_seconds=(60, 300, 900),
            lifetime_seconds=3600,
            delay_warning_after_seconds=0,
        ),
        postmaster="admin@office.example",
        submission=Submission(sender_domains=("office.example",)),
        routes=(Route(via=("isp",)),),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


class QueueBench:
    def __init__(self, config: Config, clock: ManualClock, next_hops: NextHops) -> None:
        self.config = config
        self.clock = clock
        self.next_hops = next_hops
        self.store = Store(
            config.queue.directory,
            size_max_bytes=1000 * MIB,
            free_space_min_bytes=MIB,
            journal_size_bytes=8 * MIB,
        )
        self.manager = Manager(
            self.store,
            config,
            deliver=next_hops.deliver,
            hop_state=next_hops.hop_state,
            capacity=next_hops.capacity,
            resume=next_hops.resume,
            clock=clock,
        )
        next_hops.listener = self.manager

    async def submit(
        self,
        *to: str | Recipient,
        sender: str = "ann@office.example",
        device: str = "",
        header: bytes = HEADER,
        body: bytes = BODY,
        held: str = "",
        settle: bool = True,
        **changes: object,
    ) -> str:
        """Accept a message; its queue id."""
        size_bytes = len(header) + len(body)
        incoming = self.store.begin(size_bytes)
        await incoming.write(header + body)
        recipients = tuple(each if isinstance(each, Recipient) else Recipient(each) for each in to)
        envelope = Envelope(
            queue_id=incoming.queue_id,
            reverse_path=sender,
            recipients=recipients or (Recipient("bob@far.example"),),
            accepted_at=self.clock.wall(),
            held=held,
            device=device,
            header_size_bytes=len(header),
            message_size_bytes=size_bytes,
        )
        await incoming.commit(replace(envelope, **changes))  # type: ignore[arg-type]
        if settle:
            await self.quiet()
        return incoming.queue_id

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds, self.quiet)

    async def quiet(self) -> None:
        """Nothing of the manager is under way but what a next hop holds up."""
        await self.until(lambda: len(self.manager._tasks) <= self.next_hops.blocked)

    async def until(self, condition: Callable[[], bool]) -> None:
        calm = 0
        async with asyncio.timeout(20):
            while calm < 3:
                await asyncio.sleep(0 if calm else 0.001)
                calm = calm + 1 if condition() else 0

    def of_kind(self, kind: Kind) -> list[str]:
        return [queue_id for queue_id, entry in self.store.entries.items() if entry.kind is kind]

    def taken(self, kind: Kind = Kind.MAIL) -> list[Envelope]:
        return [envelope for envelope, _, _ in self.next_hops.messages if envelope.kind is kind]


@asynccontextmanager
async def opened(
    config: Config, *, clock: ManualClock | None = None, next_hops: NextHops | None = None
) -> AsyncIterator[QueueBench]:
    bench = QueueBench(config, clock or ManualClock(), next_hops or NextHops())
    await bench.store.open()
    bench.manager.start()
    await bench.quiet()
    try:
        yield bench
    finally:
        await bench.manager.stop(0)
        await bench.store.close()
