"""The store over real folders: what it promises while all is well."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pi_relay.model import Envelope, FileSpan, Kind, QueueRefusal, RecipientStatus
from pi_relay.queue import store as store_module
from pi_relay.queue.disk import Disk
from pi_relay.queue.envelopes import Entry, decode, decode_entry, encode
from pi_relay.queue.store import Store, StoreLocked, read_message, survey
from tests.support.stored_messages import (
    bytes_of,
    content,
    envelope_for,
    new_store,
    submit,
    with_relayed,
)

Result = TypeVar("Result")


class SlowDisk(Disk):
    """Syncs take a while, so that things happen meanwhile."""

    def fdatasync(self, fd: int) -> None:
        time.sleep(0.05)
        super().fdatasync(fd)


def with_store(
    directory: Path, what: Callable[[Store], Awaitable[Result]], disk: Disk | None = None, **options: int
) -> Result:
    async def run() -> Result:
        store = new_store(directory, disk, **options)
        await store.open()
        try:
            return await what(store)
        finally:
            await store.close()

    return asyncio.run(run())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MOVE_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(store_module, "TICK_SECONDS", 0.02)


def crashed_copy(folder: Path) -> Path:
    """The folder as a process that is killed now would leave it."""
    copy = folder.with_name(f"{folder.name}-{len(list(folder.parent.iterdir()))}")
    shutil.copytree(folder, copy)
    return copy


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


async def moved(store: Store, queue_id: str) -> None:
    await until(lambda: (store.directory / queue_id).exists() and queue_id not in store._journalled)


def loaded_at_once(load: Coroutine[Any, Any, Result]) -> Result:
    with pytest.raises(StopIteration) as done:
        load.send(None)
    return done.value.value  # type: ignore[no-any-return]


# -- accept


def test_a_small_message_is_durable_and_loads_without_suspension(folder: Path) -> None:
    async def check(store: Store) -> None:
        envelope = await submit(store, 5000)
        found, message = loaded_at_once(store.load(envelope.queue_id))
        assert (found, bytes_of(message)) == (envelope, b"".join(content(5000)))
        assert read_message(crashed_copy(folder), envelope.queue_id) == (envelope, bytes_of(message))

    with_store(folder, check)


@pytest.mark.parametrize("size_bytes", [131_072, 131_073, 300_000, 3_000_000])
def test_sizes_around_the_bounds_come_back_whole(folder: Path, size_bytes: int) -> None:
    async def check(store: Store) -> None:
        envelope = await submit(store, size_bytes)
        found, message = await store.load(envelope.queue_id)
        assert (found, bytes_of(message)) == (envelope, b"".join(content(size_bytes)))
        large = size_bytes > 131_072
        assert isinstance(message.body, FileSpan) == large
        assert (folder / envelope.queue_id).exists() == large
        assert read_message(crashed_copy(folder), envelope.queue_id)[1] == bytes_of(message)

    with_store(folder, check)


def test_the_250_goes_out_before_the_delivery_begins(folder: Path) -> None:
    async def check(store: Store) -> None:
        order: list[str] = []
        store.on_committed = lambda envelope: order.append(f"deliver {envelope.queue_id}")
        envelope = await submit(store)
        order.append("250")
        await asyncio.sleep(0)
        assert order == ["250", f"deliver {envelope.queue_id}"]

    with_store(folder, check)


def test_many_at_once_share_their_syncs(folder: Path) -> None:
    class CountingDisk(Disk):
        syncs = 0

        def fdatasync(self, fd: int) -> None:
            self.syncs += 1
            super().fdatasync(fd)

    disk = CountingDisk()

    async def check(store: Store) -> None:
        disk.syncs = 0
        await asyncio.gather(*(submit(store, 500) for _ in range(100)))
        assert disk.syncs <= 20

    with_store(folder, check, disk)


def test_content_with_a_nul_never_enters_the_journal(folder: Path) -> None:
    async def check(store: Store) -> None:
        header, body = b"Subject: x\r\n\r\n", b"a\x00pi-jrnl\r\n"
        incoming = store.begin(None)
        await incoming.write(header + body)
        await incoming.commit(envelope_for(incoming.queue_id, header, body))
        assert (folder / incoming.queue_id).read_bytes().startswith(header + body)

    with_store(folder, check)


def test_a_client_that_leaves_during_its_commit_changes_nothing(folder: Path) -> None:
    async def check(store: Store) -> None:
        committed: list[str] = []
        store.on_committed = lambda envelope: committed.append(envelope.queue_id)
        for size_bytes in (2000, 400_000):
            task = asyncio.create_task(submit(store, size_bytes))
            await until(lambda: store._commits)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await until(lambda: not store._commits)
        await until(lambda: len(committed) == 2)
        assert set(committed) == set(store.entries)
        assert store.usage().reserved_bytes == 0

    with_store(folder, check, SlowDisk())


def test_an_envelope_of_another_message_is_a_defect(folder: Path) -> None:
    async def check(store: Store) -> None:
        header, body = content(2000)
        incoming = store.begin(None)
        await incoming.write(header)
        with pytest.raises(ValueError, match="not of this message"):
            await incoming.commit(envelope_for(incoming.queue_id, header, body))
        incoming.abort()

    with_store(folder, check)


# -- space and memory


def test_a_queue_that_is_full_says_452_and_loses_nothing(folder: Path) -> None:
    async def check(store: Store) -> None:
        kept = await submit(store, 40_000)
        with pytest.raises(QueueRefusal) as refused:
            store.begin(70_000)
        assert (refused.value.reply.code, refused.value.reply.enhanced_status) == (452, "4.3.1")
        incoming = store.begin(10_000)
        with pytest.raises(QueueRefusal) as refused:
            await incoming.write(bytes(70_000))
        assert refused.value.reply.code == 452
        assert (store.usage().reserved_bytes, store.usage().bytes) == (0, 40_000)
        assert list(store.entries) == [kept.queue_id]
        store.remove(kept.queue_id)
        await submit(store, 70_000)

    with_store(folder, check, size_max_bytes=100_000)


def test_the_last_fifth_is_for_known_devices(folder: Path) -> None:
    async def check(store: Store) -> None:
        large = store.begin(90_000, known_device=False)  # alone it may fill the queue
        large.abort()
        await submit(store, 79_000)
        growing = store.begin(2_000, known_device=False)
        with pytest.raises(QueueRefusal) as refused:
            store.begin(100, known_device=False)
        assert (refused.value.reply.code, refused.value.reply.enhanced_status) == (452, "4.3.1")
        known = store.begin(2_000, known_device=True)
        with pytest.raises(QueueRefusal):
            await growing.write(bytes(3_000))
        known.abort()
        store.begin(100, known_device=False).abort()
        assert store.usage().reserved_bytes == 0

    with_store(folder, check, size_max_bytes=100_000)


def test_free_space_is_kept_and_half_of_it_is_for_ourselves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(store: Store) -> None:
        original = await submit(store, recipients=("a@x.example", "b@x.example"))
        store.reconfigure(size_max_bytes=10**9, free_space_min_bytes=1_000_000)
        monkeypatch.setattr(store.space, "free_bytes", lambda: 600_000)
        with pytest.raises(QueueRefusal) as refused:
            store.begin(100)
        assert refused.value.reply.code == 452
        header, body = content(2000, "report")
        report = envelope_for(f"{original.queue_id}-f1-0", header, body)
        await store.put(report, header, body)
        await store.settle(with_relayed(original, 0), durable=True)
        monkeypatch.setattr(store.space, "free_bytes", lambda: 400_000)
        with pytest.raises(QueueRefusal):
            await store.put(replace(report, queue_id=f"{original.queue_id}-f1-1"), header, body)
        with pytest.raises(QueueRefusal):
            await store.settle(with_relayed(original, 1), durable=True)
        assert (await store.load_envelope(original.queue_id)).recipients[1].status is RecipientStatus.RELAYED

    with_store(folder, check)


@pytest.mark.parametrize("size_bytes", [1000, 500_000])
def test_an_aborted_message_leaves_nothing(folder: Path, size_bytes: int) -> None:
    async def check(store: Store) -> None:
        incoming = store.begin(None)
        await incoming.write(bytes(size_bytes))
        incoming.abort()
        incoming.abort()
        await until(lambda: not list(folder.glob("*.part")))
        usage = store.usage()
        assert (usage.messages, usage.bytes, usage.reserved_bytes) == (0, 0, 0)
        assert store.memory.held_bytes == 0

    with_store(folder, check)


def test_what_is_let_go_is_read_back_from_the_journal(folder: Path) -> None:
    async def what(store: Store) -> None:
        envelope = await submit(store, word="parked")
        (_, before) = await store.load(envelope.queue_id)
        store.let_go(envelope.queue_id)
        assert not (folder / envelope.queue_id).exists(), "still in the journal"
        loaded, after = await store.load(envelope.queue_id)
        assert (loaded, bytes_of(after)) == (envelope, bytes_of(before))
        store.let_go("0000000000")  # unknown, or moved to a file meanwhile: nothing to let go

    with_store(folder, what)


def test_uploads_wait_for_memory_and_all_arrive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "INCOMING_MEMORY_MAX_BYTES", 200_000)
    most = 0

    async def check(store: Store) -> None:
        async def watched(n: int) -> Envelope:
            nonlocal most
            header, body = content(100_000, f"scan-{n}")
            incoming = store.begin(None)
            for start in range(0, 100_000, 10_000):
                await incoming.write((header + body)[start : start + 10_000])
                most = max(most, store.memory.held_bytes)
            envelope = envelope_for(incoming.queue_id, header, body)
            await incoming.commit(envelope)
            return envelope

        for n, envelope in enumerate(await asyncio.gather(*(watched(n) for n in range(30)))):
            message = (await store.load(envelope.queue_id))[1]
            assert bytes_of(message) == b"".join(content(100_000, f"scan-{n}"))
        assert store.memory.held_bytes == 0

    with_store(folder, check, journal_size_bytes=8 * 1024 * 1024)
    assert most <= 200_000 + 30 * 10_000


def test_large_uploads_cost_little_memory(folder: Path) -> None:
    async def check(store: Store) -> None:
        async def upload(n: int) -> None:
            incoming = store.begin(12_000_000)
            header = b"Subject: large\r\n\r\n"
            await incoming.write(header)
            for _ in range(100):
                await incoming.write(bytes(120_000))
            envelope = envelope_for(incoming.queue_id, header, b"")
            await incoming.commit(replace(envelope, message_size_bytes=len(header) + 12_000_000))

        tracemalloc.start()
        await asyncio.gather(*(upload(n) for n in range(20)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(store.entries) == 20
        assert peak < 20 * 700_000, f"{peak} bytes for 20 uploads"

    with_store(folder, check)


def test_ten_thousand_entries_are_small() -> None:
    header, body = content(2000)
    encoded = [
        encode(replace(envelope_for(f"{n:010}", header, body), next_attempt_at=1.5 * n))
        for n in range(10_000)
    ]
    tracemalloc.start()
    entries: dict[str, Entry] = {}
    for data in encoded:
        entry = decode_entry(data)
        entry.message_crc = hash(entry.queue_id) & 0xFFFFFFFF
        entries[entry.queue_id] = entry
    size_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size_bytes < 6_000_000


# -- load, settle, remove


def test_what_memory_does_not_keep_is_read_from_the_journal(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "KEPT_MEMORY_MAX_BYTES", 5000)

    async def check(store: Store) -> None:
        first, second = await submit(store, 3000, "one"), await submit(store, 3000, "two")
        loaded_at_once(store.load(first.queue_id))
        envelope, message = await store.load(second.queue_id)
        assert (envelope, bytes_of(message)) == (second, b"".join(content(3000, "two")))
        assert await store.load_envelope(second.queue_id) == second
        tried = replace(second, attempts=1)
        await store.settle(tried, durable=False)
        assert (await store.load(second.queue_id))[0] == tried
        await moved(store, second.queue_id)
        assert (await store.load(second.queue_id))[0] == tried

    with_store(folder, check)


def test_what_waits_moves_to_a_file_of_its_own(folder: Path, impatient: None) -> None:
    async def check(store: Store) -> None:
        sent = [await submit(store, 3000, f"word-{n}", held="runaway" if n == 1 else "") for n in range(5)]
        for envelope in sent:
            await moved(store, envelope.queue_id)
        for n, envelope in enumerate(sent):
            raw = (folder / envelope.queue_id).read_bytes()
            assert raw.startswith(b"".join(content(3000, f"word-{n}")))
            assert await store.load_envelope(envelope.queue_id) == envelope
        await until(lambda: store._tick_timer is None)
        assert {e.queue_id for e in sent} == {m.queue_id for m in survey(crashed_copy(folder))}

    with_store(folder, check)


def test_a_durable_state_survives_a_crash_wherever_the_message_lies(folder: Path, impatient: None) -> None:
    async def check(store: Store) -> None:
        envelope = await submit(store, recipients=("a@x.example", "b@x.example", "c@x.example"))
        for position in range(3):
            envelope = with_relayed(envelope, position)
            await store.settle(envelope, durable=True)
            assert read_message(crashed_copy(folder), envelope.queue_id)[0] == envelope
            assert await store.load_envelope(envelope.queue_id) == envelope
        assert store.entries[envelope.queue_id].attempts == 3

    with_store(folder, check)


def test_an_unsynced_state_is_believed_at_once_and_written_soon(folder: Path, impatient: None) -> None:
    async def check(store: Store) -> None:
        envelope = await submit(store)
        await moved(store, envelope.queue_id)
        for attempts in range(1, 4):
            envelope = replace(envelope, attempts=attempts, next_attempt_at=1.8e9, held="admin")
            await store.settle(envelope, durable=False)
            assert await store.load_envelope(envelope.queue_id) == envelope
            assert (await store.load(envelope.queue_id))[0] == envelope
        await until(lambda: read_message(folder, envelope.queue_id)[0] == envelope)
        entry = store.entries[envelope.queue_id]
        assert (entry.attempts, entry.next_attempt_at, entry.held) == (3, 1.8e9, "admin")
        assert store.usage().held == 1

    with_store(folder, check)


def test_a_removed_message_is_gone_from_the_disk_soon(folder: Path, impatient: None) -> None:
    async def check(store: Store) -> None:
        in_file = await submit(store)
        await moved(store, in_file.queue_id)
        in_journal, large = await submit(store), await submit(store, 200_000)
        for envelope in (in_file, in_journal, large):
            store.remove(envelope.queue_id)
            assert envelope.queue_id not in store.entries
            with pytest.raises(KeyError):
                await store.load(envelope.queue_id)
            with pytest.raises(KeyError):
                await store.settle(envelope, durable=False)
            with pytest.raises(KeyError):
                store.remove(envelope.queue_id)
        await until(lambda: store._tick_timer is None and store._mover.idle)
        await until(lambda: not survey(folder))
        assert (store.usage().messages, store.usage().bytes, store._kept_bytes) == (0, 0, 0)

    with_store(folder, check)


def test_what_happens_to_a_message_while_it_moves(folder: Path, impatient: None) -> None:
    async def check(store: Store) -> None:
        gone, changed = await asyncio.gather(submit(store), submit(store))
        await until(lambda: {gone.queue_id, changed.queue_id} <= set(store._mover.under_way))
        store.remove(gone.queue_id)
        tried = replace(changed, attempts=1)
        settled = asyncio.ensure_future(store.settle(tried, durable=True))
        assert (await store.load(changed.queue_id))[0].queue_id == changed.queue_id
        await settled
        await until(lambda: store._mover.idle)
        assert not (folder / gone.queue_id).exists()
        assert read_message(crashed_copy(folder), changed.queue_id)[0] == tried
        await until(lambda: [m.queue_id for m in survey(folder)] == [changed.queue_id])

    with_store(folder, check, SlowDisk())


def test_messages_that_never_leave_cannot_block_the_journal(folder: Path) -> None:
    async def check(store: Store) -> None:
        for _ in range(20):
            await asyncio.gather(*(submit(store, 10_000) for _ in range(10)))
        assert len(store.entries) == 200
        assert len(survey(folder)) == 200

    with_store(folder, check)


def test_a_shortage_of_descriptors_passes(folder: Path, impatient: None) -> None:
    class ShortDisk(Disk):
        short = False

        def open(self, path: Path | str, flags: int) -> int:
            if self.short:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().open(path, flags)

    disk = ShortDisk()

    async def check(store: Store) -> None:
        envelope = await submit(store)
        disk.short = True
        settled = asyncio.ensure_future(store.settle(with_relayed(envelope, 0), durable=True))
        await asyncio.sleep(0.1)
        assert not settled.done()
        disk.short = False
        await settled
        assert store.usage().broken == ""
        await moved(store, envelope.queue_id)

    with_store(folder, check, disk)


# -- our own messages


def test_a_report_is_durable_and_the_same_id_overwrites_it(folder: Path, impatient: None) -> None:
    async def check(store: Store) -> None:
        original = await submit(store)
        report_id = f"{original.queue_id}-f1-0"
        heard: list[str] = []
        store.on_committed = lambda envelope: heard.append(envelope.queue_id)
        for word in ("first", "second", "third", "last"):
            header, body = content(2500, word)
            report = replace(envelope_for(report_id, header, body), kind=Kind.DSN, reverse_path="")
            await store.put(report, header, body)
            assert read_message(crashed_copy(folder), report_id) == (report, header + body)
            assert bytes_of((await store.load(report_id))[1]) == header + body
            assert store.entries[report_id].kind is Kind.DSN
            if word == "third":
                await moved(store, report_id)
        assert heard == [report_id] * 4
        assert store.usage().bytes == 4500
        copy = crashed_copy(folder)
        with_store_in_thread = await asyncio.to_thread(_load_after_restart, copy, report_id)
        assert with_store_in_thread == header + body
        store.remove(report_id)
        await store.put(report, header, body)
        assert report_id in store.entries

    with_store(folder, check)


def _load_after_restart(folder: Path, queue_id: str) -> bytes:
    async def load(store: Store) -> bytes:
        return bytes_of((await store.load(queue_id))[1])

    return with_store(folder, load)


def test_a_large_report_goes_to_a_file(folder: Path) -> None:
    async def check(store: Store) -> None:
        header, body = content(300_000, "full")
        await store.put(envelope_for("0000000001-f1-0", header, body), header, body)
        assert read_message(crashed_copy(folder), "0000000001-f1-0")[1] == header + body

    with_store(folder, check)


# -- start and end


def test_everything_is_there_after_a_crash_and_after_a_clean_end(folder: Path, impatient: None) -> None:
    sent: list[Envelope] = []

    async def fill(store: Store) -> Path:
        sent.append(await submit(store, 2000, "in a file", recipients=("a@x.example", "b@x.example")))
        await moved(store, sent[0].queue_id)
        sent[0] = with_relayed(sent[0], 1)
        await store.settle(sent[0], durable=True)
        sent.append(await submit(store, 400_000, "large"))
        sent.append(await submit(store, 2000, "in the journal"))
        return crashed_copy(folder)

    async def check(store: Store) -> None:
        assert sorted(store.entries) == sorted(envelope.queue_id for envelope in sent)
        assert store.usage().bytes == sum(envelope.message_size_bytes for envelope in sent)
        for envelope, word in zip(sent, ("in a file", "large", "in the journal"), strict=True):
            found, message = await store.load(envelope.queue_id)
            assert found == envelope
            assert bytes_of(message) == b"".join(content(envelope.message_size_bytes, word))

    crashed = with_store(folder, fill)
    with_store(crashed, check)
    names = {path.name for path in folder.iterdir()}
    assert names == {"journal", "lock", "corrupt", *(envelope.queue_id for envelope in sent)}
    with_store(folder, check)
    with_store(folder, check)


def test_ids_rise_and_never_come_back_though_the_queue_is_empty(folder: Path) -> None:
    seen: list[str] = []

    async def a_few(store: Store) -> Path:
        for size_bytes in (100, 200_000):
            envelope = await submit(store, size_bytes)
            seen.append(envelope.queue_id)
            store.remove(envelope.queue_id)
        incoming = store.begin(None)
        seen.append(incoming.queue_id)
        incoming.abort()
        await until(lambda: store._mover.idle)
        return crashed_copy(folder)

    crashed = with_store(folder, a_few)
    with_store(folder, a_few)
    with_store(folder, a_few)
    assert seen == sorted(set(seen))
    assert {len(queue_id) for queue_id in seen} == {10}
    before = list(seen[:3])
    with_store(crashed, a_few)
    assert seen[-3] > before[-1]


def test_one_owner_and_nobody_else_looks_in(folder: Path) -> None:
    async def check(store: Store) -> None:
        await submit(store, 200_000)
        with pytest.raises(StoreLocked):
            await new_store(folder).open()
        assert_private(folder)

    folder.mkdir(mode=0o755)
    os.umask(0o022)
    with_store(folder, check)
    with_store(folder, check)  # the lock is let go of


def assert_private(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_unfinished_files_are_swept_and_strange_ones_left_alone(folder: Path) -> None:
    async def nothing(store: Store) -> None:
        assert not store.entries

    with_store(folder, nothing)
    (folder / "0000000123.part").write_bytes(b"Subject: half")
    (folder / "notes.txt").write_text("mine")
    with_store(folder, nothing)
    assert not (folder / "0000000123.part").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_idle_store_does_nothing(folder: Path, impatient: None) -> None:
    class WatchedDisk(Disk):
        calls = 0

        def pwrite(self, fd: int, data: bytes, offset_bytes: int) -> None:
            self.calls += 1
            super().pwrite(fd, data, offset_bytes)

    disk = WatchedDisk()

    async def check(store: Store) -> None:
        envelope = await submit(store)
        store.remove(envelope.queue_id)
        await until(lambda: store._tick_timer is None)
        calls = disk.calls
        await asyncio.sleep(0.2)
        assert disk.calls == calls
        assert not survey(crashed_copy(folder)), "the id done was written when things fell quiet"

    with_store(folder, check, disk)


def test_envelopes_survive_their_encoding() -> None:
    header, body = content(100)
    plain = envelope_for("0000000001", header, body, ("a@x.example", "ü@x.example", "bad\udcff@x.example"))
    rich = replace(
        with_relayed(plain, 1),
        kind=Kind.REPORT,
        held="undeliverable",
        delay_reported=True,
        smtputf8=True,
        envid="QQ\x00",
        ret="HDRS",
        original_reverse_path="old@x.example",
        recipients=(
            replace(plain.recipients[0], notify=("FAILURE", "DELAY"), original_recipient="rfc822;a"),
        ),
    )
    for envelope in (plain, rich):
        assert decode(encode(envelope)) == envelope
        assert b"\x00" not in encode(envelope)
    for data in (b"", b"[]", b"{}", b'{"format_version":2}', b'{"format_version":1}', b"\xff"):
        with pytest.raises(ValueError):
            decode(data)


# ── what the watchdog asks ───────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_committer_that_has_ended_is_told_from_a_disk_that_is_slow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HangingDisk(Disk):
        hangs = False

        def fdatasync(self, fd: int) -> None:
            with self._waiting():
                while self.hangs:
                    time.sleep(0.01)
            super().fdatasync(fd)

    monkeypatch.setattr("pi_relay.queue.store.DISK_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr("pi_relay.queue.store.COMMIT_PATIENCE_SECONDS", 0.1)
    disk = HangingDisk()

    async def run(store: Store) -> None:
        await submit(store, 300)
        assert (store.stuck(), store.slow_disk()) == ("", "")
        disk.hangs = True
        committing = asyncio.create_task(submit(store, 300))
        await asyncio.sleep(0.3)
        assert store.stuck() == "", "the disk keeps it waiting"
        assert store.slow_disk().startswith("it has not answered for")
        with pytest.raises(QueueRefusal, match="451"):
            store.begin(None)
        disk.hangs = False
        await committing
        assert store.slow_disk() == ""

        def end(*_: object, **__: object) -> None:
            raise SystemExit

        monkeypatch.setattr(store._journal, "_gather", end)
        await submit(store, 300)  # the last that it sees to
        thread = store._journal._thread
        assert thread is not None
        thread.join(10)
        assert store.stuck() == "the thread that commits messages has ended"
        monkeypatch.undo()
        store._journal._thread = None

    with_store(folder, run, disk)
