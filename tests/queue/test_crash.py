"""The power goes at any call of the queue's disk; the four laws hold for whatever is found afterwards."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pi_relay.model import Envelope, RecipientStatus
from pi_relay.queue import store as store_module
from pi_relay.queue.disk import Disk
from pi_relay.queue.store import Store
from tests.support.simulated_disk import CuttingDisk, LoggedDisk, PowerCut, Unsynced, rebuild
from tests.support.stored_messages import bytes_of, content, envelope_for, new_store, submit, with_relayed

SMALL_JOURNAL_BYTES = 128 * 1024
Note = Callable[..., None]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages leave the journal almost at once, so that every path is walked in a second."""
    monkeypatch.setattr(store_module, "MOVE_AFTER_SECONDS", 0.02)
    monkeypatch.setattr(store_module, "TICK_SECONDS", 0.02)


async def life(store: Store, note: Note) -> None:
    """One of everything that a queue sees: what has been promised by when goes to ``note``."""

    async def accept(size_bytes: int, word: str, recipients: tuple[str, ...] = ()) -> Envelope:
        header, body = content(size_bytes, word)
        incoming = store.begin(size_bytes)
        note("given", incoming.queue_id)
        await incoming.write(header + body)
        envelope = envelope_for(incoming.queue_id, header, body, recipients)
        note("offered", envelope.queue_id, header + body)
        await incoming.commit(envelope)
        note("accepted", envelope.queue_id)
        return envelope

    def remove(envelope: Envelope) -> None:
        note("removed", envelope.queue_id)
        store.remove(envelope.queue_id)

    async def settle(envelope: Envelope, *, durable: bool) -> None:
        await store.settle(envelope, durable=durable)
        if durable:
            note("settled", envelope.queue_id, statuses(envelope))

    quick = await asyncio.gather(*(accept(1500, f"quick-{n}") for n in range(5)))
    for envelope in quick[:3]:
        remove(envelope)
    large = await accept(600_000, "large")
    mixed = await accept(9000, "mixed", ("a@office.example", "b@office.example"))
    await settle(with_relayed(mixed, 0), durable=True)
    report_id = f"{mixed.queue_id}-f1-1"
    header, body = content(3000, "report")
    note("offered", report_id, header + body)
    await store.put(envelope_for(report_id, header, body), header, body)
    note("accepted", report_id)
    await settle(with_relayed(with_relayed(mixed, 0), 1), durable=True)
    await asyncio.sleep(0.1)
    await settle(with_relayed(quick[4], 0), durable=False)
    await store.put(envelope_for(report_id, header, body), header, body)
    remove(mixed)
    remove(large)
    await accept(20_000, "late")
    remove(quick[3])
    await asyncio.sleep(0.06)
    for n in range(6):
        await accept(25_000, f"round-{n}")
    await store.close()


def statuses(envelope: Envelope) -> tuple[RecipientStatus, ...]:
    return tuple(recipient.status for recipient in envelope.recipients)


@dataclass
class Promises:
    """What the notes up to a moment bind the queue to."""

    given: set[str] = field(default_factory=set)
    offered: dict[str, bytes] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    settled: dict[str, tuple[RecipientStatus, ...]] = field(default_factory=dict)

    def note(self, what: str, queue_id: str, value: Any = None) -> None:
        match what:
            case "offered":
                self.offered[queue_id] = value
            case "settled":
                self.settled[queue_id] = value
            case "given" | "accepted" | "removed":
                getattr(self, what).add(queue_id)


async def assert_kept(directory: Path, promises: Promises, *, all_clean: bool) -> None:
    store = new_store(directory, journal_size_bytes=SMALL_JOURNAL_BYTES)
    await store.open()
    try:
        lost = promises.accepted - promises.removed - set(store.entries)
        assert not lost, "law 1: accepted, and gone"
        for queue_id in store.entries:
            envelope, message = await store.load(queue_id)
            assert bytes_of(message) == promises.offered[queue_id]
            for promised, found in zip(promises.settled.get(queue_id, ()), statuses(envelope), strict=False):
                assert promised is RecipientStatus.PENDING or found is promised, "law 2: a state forgotten"
        fresh = await submit(store)
        assert all(fresh.queue_id > given for given in promises.given), "an id given twice"
    finally:
        await store.close()
    assert_law_4(directory, all_clean=all_clean)  # now that no file of the new store's own is under way


def assert_law_4(directory: Path, *, all_clean: bool) -> None:
    corrupt = sorted(path.name for path in (directory / "corrupt").iterdir())
    assert not [name for name in corrupt if not name.startswith("journal-")], "law 4"
    assert not (all_clean and corrupt), "law 4: what was only unfinished is called damaged"
    assert not list(directory.glob("*.part")), "law 4: unfinished, and not swept"


def logged_life(directory: Path) -> list[tuple[Any, ...]]:
    disk = LoggedDisk(directory.parent)

    async def run() -> None:
        store = new_store(directory, disk, journal_size_bytes=SMALL_JOURNAL_BYTES)
        await store.open()
        await life(store, disk.note)

    asyncio.run(run())
    return disk.log


def cuts_of(log: list[tuple[Any, ...]], how_many: int | None) -> list[int]:
    """Moments to cut at: behind every entry that is a call, or so many of them spread evenly."""
    calls = [at + 1 for at, entry in enumerate(log) if entry[0] != "note"]
    return calls if how_many is None else calls[:: max(len(calls) // how_many, 1)]


def check_cuts(tmp_path: Path, how_many: int | None, seeds: int) -> None:
    log = logged_life(tmp_path / "queue")
    assert any(entry[0] == "rename" for entry in log)
    assert any(entry[0] == "unlink" for entry in log)
    promises, at = Promises(), 0

    async def check(cut: int, unsynced: Unsynced, seed: int) -> None:
        found = tmp_path / "found"
        rebuild(log[:cut], found, unsynced, seed)
        await assert_kept(found / "queue", promises, all_clean=unsynced is not Unsynced.TORN)
        shutil.rmtree(found)

    for cut in cuts_of(log, how_many):
        for entry in log[at:cut]:
            if entry[0] == "note":
                promises.note(*entry[1:])
        at = cut
        for unsynced in (Unsynced.DROPPED, Unsynced.KEPT):
            asyncio.run(check(cut, unsynced, 0))
        for seed in range(seeds):
            asyncio.run(check(cut, Unsynced.TORN, cut * 100 + seed))


def test_the_laws_hold_wherever_the_power_goes(tmp_path: Path) -> None:
    check_cuts(tmp_path, how_many=40, seeds=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_laws_hold_at_every_single_call(tmp_path: Path) -> None:
    check_cuts(tmp_path, how_many=None, seeds=4)


@pytest.mark.parametrize("lost", [("sync",), ("sync names", "queue"), ("sync names", ".")])
def test_a_lost_sync_would_be_noticed(tmp_path: Path, lost: tuple[str, ...]) -> None:
    """The proof that the check above can fail: the same life on a disk where some syncs do nothing."""
    log = [entry for entry in logged_life(tmp_path / "queue") if entry[: len(lost)] != lost]
    promises = Promises()
    for entry in log:
        if entry[0] == "note":
            promises.note(*entry[1:])
    rebuild(log, tmp_path / "found", Unsynced.DROPPED)
    with pytest.raises(AssertionError, match="law 1"):
        asyncio.run(assert_kept(tmp_path / "found" / "queue", promises, all_clean=False))


async def _until_cut(directory: Path, calls: int, promises: Promises) -> bool:
    """Live until the power goes at a call; False: the whole life took fewer calls."""
    cut = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: None)  # the power cut in callbacks
    disk: Disk = CuttingDisk(calls, lambda: loop.call_soon_threadsafe(cut.set))
    store = new_store(directory, disk, journal_size_bytes=SMALL_JOURNAL_BYTES)

    def note(*words: Any) -> None:
        if not cut.is_set():
            promises.note(*words)

    async def run() -> None:
        await store.open()
        await life(store, note)

    living: Awaitable[None] = asyncio.ensure_future(run())
    waiting = asyncio.ensure_future(cut.wait())
    await asyncio.wait({living, waiting}, return_when=asyncio.FIRST_COMPLETED)
    shutil.copytree(directory, directory.with_name("found"))
    happened = cut.is_set()
    for task in (living, waiting):
        task.cancel()
    await asyncio.gather(living, waiting, return_exceptions=True)
    await asyncio.to_thread(store._journal.close, 5)  # its thread may still wait for room
    return happened


@pytest.mark.parametrize("calls", [*range(0, 16), *range(16, 160, 6)])
def test_a_process_that_stops_at_a_call_leaves_a_whole_queue(
    tmp_path: Path, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_hook = threading.excepthook
    monkeypatch.setattr(
        threading,
        "excepthook",
        lambda problem: None if problem.exc_type is PowerCut else real_hook(problem),
    )
    (tmp_path / "queue").mkdir(mode=0o700)
    promises = Promises()
    asyncio.run(_until_cut(tmp_path / "queue", calls, promises))
    asyncio.run(assert_kept(tmp_path / "found", promises, all_clean=True))
