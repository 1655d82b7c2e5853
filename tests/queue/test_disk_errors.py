"""A disk that is full, read-only, failing or slow: a refusal in time, and nothing lost."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pi_relay.model import QueueRefusal
from pi_relay.queue import journal as journal_module
from pi_relay.queue import store as store_module
from pi_relay.queue.disk import Disk, SyncError
from pi_relay.queue.store import Store, survey
from tests.support.stored_messages import bytes_of, content, envelope_for, new_store, submit, with_relayed

TINY_BYTES = 2 * 1024 * 1024


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    mount_point = tmp_path / "tiny"
    mount_point.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a tiny disk")
    options = f"size={TINY_BYTES},mode=0700"
    if subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", str(mount_point)]).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


def refused_with(error: QueueRefusal) -> tuple[int, str]:
    return error.reply.code, error.reply.enhanced_status


@pytest.mark.parametrize("size_bytes", [20_000, 200_000])
def test_a_disk_that_runs_full_refuses_and_keeps_every_message(
    tiny_disk: Path, size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CLOSE_SECONDS", 2.0)
    monkeypatch.setattr(journal_module, "ROOM_WAIT_SECONDS", 0.5)

    async def check() -> None:
        store = new_store(tiny_disk / "queue")
        await store.open()
        store.space.free_bytes = lambda: 10**9  # type: ignore[method-assign] - blind: the disk itself says no
        accepted: list[str] = []
        with pytest.raises(QueueRefusal) as refused:
            for _ in range(200):
                accepted.append((await submit(store, size_bytes)).queue_id)
                store._move_old(everything=True)
        assert refused_with(refused.value) == (452, "4.3.1")
        assert store.usage().broken == ""
        assert store.memory.held_bytes == store.usage().reserved_bytes == 0
        for queue_id in accepted:
            assert bytes_of((await store.load(queue_id))[1]) == b"".join(content(size_bytes))
        for queue_id in accepted[: len(accepted) // 2]:
            store.remove(queue_id)
        async with asyncio.timeout(10):
            while not store._mover.idle:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        accepted.append((await submit(store, size_bytes)).queue_id)
        left = sorted(accepted[(len(accepted) - 1) // 2 :])
        await store.close()
        assert sorted(message.queue_id for message in survey(tiny_disk / "queue")) == left
        assert not list((tiny_disk / "queue").glob("*.part"))

    asyncio.run(check())


def test_no_room_for_the_journal_is_said_at_start(tiny_disk: Path) -> None:
    async def check() -> None:
        with pytest.raises(OSError, match="No space left"):
            await new_store(tiny_disk / "queue", journal_size_bytes=4 * TINY_BYTES).open()
        assert not list((tiny_disk / "queue").glob("journal*"))
        store = new_store(tiny_disk / "queue")
        await store.open()
        await submit(store)
        await store.close()

    asyncio.run(check())


class FailingDisk(Disk):
    """The named call fails once, when told to; afterwards the disk says again that all is well."""

    def __init__(self, call: str, error: OSError) -> None:
        super().__init__()
        self._error = error
        self.armed = False
        self.calls_after = 0
        real = getattr(self, call)

        def fail(*arguments: object) -> object:
            if self.armed:
                self.armed = False
                raise self._error
            return real(*arguments)

        setattr(self, call, fail)


EIO = OSError(errno.EIO, "Input/output error")
SYNC_EIO = SyncError(errno.EIO, "Input/output error")


async def disarmed(disk: FailingDisk) -> None:
    async with asyncio.timeout(10):
        while disk.armed:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("call", "error", "size_bytes"),
    [
        ("pwrite", EIO, 2000),
        ("pwrite", OSError(errno.EROFS, "Read-only file system"), 2000),
        ("fdatasync", SYNC_EIO, 2000),
        ("fdatasync", SYNC_EIO, 300_000),
        ("write", EIO, 300_000),
        ("rename", EIO, 300_000),
        ("sync_directory", SYNC_EIO, 300_000),
        ("fdatasync", SyncError(errno.ENOSPC, "No space left on device"), 300_000),
    ],
)
def test_an_error_of_the_device_ends_accepting_for_good(
    tmp_path: Path, call: str, error: OSError, size_bytes: int
) -> None:
    async def check() -> None:
        disk = FailingDisk(call, error)
        store = new_store(tmp_path / "queue", disk)
        await store.open()
        before = [await submit(store, 2000, "before"), await submit(store, 300_000, "before")]
        started = store.begin(None)
        disk.armed = True
        with pytest.raises(QueueRefusal) as refused:
            await submit(store, size_bytes)
        assert refused_with(refused.value) == (451, "4.3.0")
        assert error.strerror in store.usage().broken
        for _ in range(2):
            with pytest.raises(QueueRefusal) as refused:
                await submit(store, size_bytes)
            assert refused_with(refused.value) == (451, "4.3.0")
        header, body = content(900)
        await started.write(header + body)
        with pytest.raises(QueueRefusal):
            await started.commit(envelope_for(started.queue_id, header, body))
        with pytest.raises(QueueRefusal):
            await store.put(envelope_for("0000000001-f1-0", header, body), header, body)
        with pytest.raises(QueueRefusal):
            await store.settle(with_relayed(before[0], 0), durable=True)
        for envelope in before:
            await store.load(envelope.queue_id)
        store.remove(before[1].queue_id)
        assert store.usage().reserved_bytes == 0
        await store.close()
        after = new_store(tmp_path / "queue")
        await after.open()
        assert {envelope.queue_id for envelope in before} <= set(after.entries)
        await submit(after)
        await after.close()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("call", "error"),
    [("fdatasync", SYNC_EIO), ("sync_directory", SYNC_EIO), ("write", EIO), ("rename", EIO), ("unlink", EIO)],
)
def test_an_error_while_messages_move_loses_none(
    tmp_path: Path, call: str, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        disk = FailingDisk(call, error)
        store = new_store(tmp_path / "queue", disk)
        await store.open()
        sent = [await submit(store, 2000, f"word-{n}") for n in range(5)]
        large = await submit(store, 200_000)
        if call == "unlink":
            store.remove(large.queue_id)
        else:
            monkeypatch.setattr(store_module, "MOVE_AFTER_SECONDS", 0.0)
            store._move_old()
        disk.armed = True
        await disarmed(disk)
        assert store.usage().broken
        for n, envelope in enumerate(sent):
            assert bytes_of((await store.load(envelope.queue_id))[1]) == b"".join(content(2000, f"word-{n}"))
        with pytest.raises(QueueRefusal):
            store.begin(None)
        await store.close()
        after = new_store(tmp_path / "queue")
        await after.open()
        assert {envelope.queue_id for envelope in sent} <= set(after.entries)
        assert after.usage().corrupt == 0
        await after.close()

    asyncio.run(check())


CHILD = """
import asyncio, json, sys
from pathlib import Path
from pi_relay.model import QueueRefusal
from tests.support.stored_messages import new_store, submit

async def main():
    store = new_store(Path(sys.argv[1]))
    await store.open()
    accepted, refused = [], []
    for n in range(6):
        try:
            accepted.append((await submit(store, 2000)).queue_id)
        except QueueRefusal as refusal:
            refused.append(str(refusal))
    print(json.dumps([accepted, refused, store.usage().broken]))
    await store.close()

asyncio.run(main())
"""


def test_a_kernel_that_fails_one_fdatasync(tmp_path: Path) -> None:
    """The real system call, failing once: strace injects EIO into the committer's fourth."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    command = [strace, "-f", "-qq", "-o", str(tmp_path / "trace"), "-e", "trace=fdatasync"]
    command += ["-e", "inject=fdatasync:error=EIO:when=4", sys.executable, "-c", CHILD, str(tmp_path / "q")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    accepted, refused, broken = json.loads(done.stdout.splitlines()[-1])
    assert (len(accepted), len(refused)) == (3, 3)
    assert all(text.startswith("451 4.3.0") for text in refused)
    assert "Input/output error" in broken

    async def reopened() -> set[str]:
        store: Store = new_store(tmp_path / "q")
        await store.open()
        found = set(store.entries)
        await store.close()
        return found

    assert set(accepted) <= asyncio.run(reopened())


def test_short_writes_are_carried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, pwrite = os.write, os.pwrite
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1000]))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:50_000], at))

    async def check() -> None:
        store = new_store(tmp_path / "queue")
        await store.open()
        for size_bytes in (120_000, 400_000):
            envelope = await submit(store, size_bytes)
            assert bytes_of((await store.load(envelope.queue_id))[1]) == b"".join(content(size_bytes))
        await store.close()
        assert all(message.envelope is not None for message in survey(tmp_path / "queue"))

    asyncio.run(check())


def test_without_sync_file_range_it_works_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pi_relay.queue.disk._sync_file_range", lambda: None)

    async def check() -> None:
        store = new_store(tmp_path / "queue")
        await store.open()
        await submit(store)
        await submit(store, 400_000)
        await store.close()
        assert len(survey(tmp_path / "queue")) == 2

    asyncio.run(check())
