"""Carries out in groups, in one thread of its own, what is to become of messages' files.

Purpose: a new file for a message that leaves the journal, a state appended, a file unlinked. Rules: the loop
decides and keeps all the books; the thread only carries out one group at a time (``files.apply``), and a
message is in one group at most, so that two changes of it can neither race nor change places. What comes in
while a group is under way forms the next. It must not know why a message moves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from pi_relay.model import Envelope
from pi_relay.queue import files
from pi_relay.queue.disk import Disk
from pi_relay.queue.envelopes import encode
from pi_relay.queue.files import Change, Damaged
from pi_relay.queue.journal import Journal, Record

GROUP_MAX = 128
GROUP_MAX_BYTES = 4 * 1024 * 1024
LINGER_SECONDS = 0.02  # for what nobody waits for, so that groups form
PAUSE_SECONDS = 1.0  # after a group of which nothing could be done


class Task:
    """What is wanted of one message's file; the last word counts."""

    __slots__ = (
        "durable",
        "envelope",
        "gone",
        "message",
        "message_crc",
        "put",
        "queue_id",
        "record",
        "waiters",
    )

    def __init__(self, queue_id: str, record: Record | None) -> None:
        self.queue_id = queue_id
        self.record = record  # the message is still in the journal: the file is new
        self.envelope: bytes | None = None  # encoded, where it changed
        self.message: tuple[bytes, ...] | None = None  # put anew
        self.put: Envelope | None = None  # of the message put anew
        self.message_crc = 0
        self.gone = False
        self.durable = False
        self.waiters: list[asyncio.Future[None]] = []


class _Job(NamedTuple):
    """A task with what of its message is in memory as it is handed over."""

    task: Task
    envelope: Envelope | None
    message: tuple[bytes, ...] | None


class Mover:
    """``on_done(task, error)`` is called in the loop for every task of a group that came back."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        executor: Executor,
        journal: Journal,
        on_done: Callable[[Task, Exception | None], None],
        on_group: Callable[[], None],
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._directory_fd = -1
        self._executor = executor
        self._journal = journal
        self._on_done = on_done
        self._on_group = on_group
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.Handle | None = None
        self._timer_is_urgent = False
        self._paused_until = 0.0
        self.waiting: dict[str, Task] = {}
        self.under_way: dict[str, Task] = {}
        self.stopped = False

    def start(self, directory_fd: int) -> None:
        self._directory_fd = directory_fd
        self._loop = asyncio.get_running_loop()

    def task(self, queue_id: str, record: Record | None) -> Task:
        """The task that waits for a message, made where there is none."""
        task = self.waiting.get(queue_id)
        if task is None:
            task = self.waiting[queue_id] = Task(queue_id, record)
        return task

    def drop(self, queue_id: str) -> None:
        """Nothing is wanted any more; whoever waits is let go."""
        task = self.waiting.pop(queue_id, None)
        for future in () if task is None else task.waiters:
            if not future.done():
                future.set_exception(KeyError(queue_id))

    def again(self, task: Task) -> None:
        """Try a task of a failed group once more, unless a later word has come."""
        later = self.waiting.setdefault(task.queue_id, task)
        if later is not task:
            later.waiters += task.waiters

    def knows(self, queue_id: str) -> bool:
        return queue_id in self.waiting or queue_id in self.under_way

    def state(self, queue_id: str) -> bytes | None:
        """The newest envelope that is not in the message's file yet."""
        for tasks in (self.waiting, self.under_way):
            task = tasks.get(queue_id)
            if task is not None and task.envelope is not None:
                return task.envelope
        return None

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.under_way

    def wake(self, *, urgent: bool) -> None:
        """See to what waits: at the end of this turn of the loop, or a little later."""
        if self.under_way or self.stopped or not self.waiting or self._loop is None:
            return
        if self._timer is not None:
            if not urgent or self._timer_is_urgent:
                return
            self._timer.cancel()
        self._timer_is_urgent = urgent
        delay_seconds = max(0.0 if urgent else LINGER_SECONDS, self._paused_until - self._loop.time())
        self._timer = self._loop.call_later(delay_seconds, self._hand_over)

    def stop(self) -> None:
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hand_over(self) -> None:
        self._timer = None
        if self._loop is None or self.stopped or self.under_way:
            return
        size_bytes = 0
        jobs: list[_Job] = []
        for task in self.waiting.values():
            record = task.record
            if task.message is None and record is not None and record.envelope is not None:
                jobs.append(_Job(task, record.envelope, (record.header, record.body)))
            else:
                jobs.append(_Job(task, None, task.message))
            size_bytes += record.message_size_bytes if record is not None else 0
            if len(jobs) == GROUP_MAX or size_bytes > GROUP_MAX_BYTES:
                break
        for job in jobs:
            del self.waiting[job.task.queue_id]
            self.under_way[job.task.queue_id] = job.task
        if jobs:
            self._loop.run_in_executor(self._executor, self._apply, jobs).add_done_callback(self._applied)

    def _apply(self, jobs: list[_Job]) -> dict[str, Exception]:
        """In the thread. Raises SyncError."""
        failed: dict[str, Exception] = {}
        changes: list[Change] = []
        for job in jobs:
            try:
                changes.append(self._change(job))
            except (Damaged, OSError) as error:
                failed[job.task.queue_id] = error
        failed.update(files.apply(self._disk, self._directory, self._directory_fd, changes))
        return failed

    def _change(self, job: _Job) -> Change:
        task, message = job.task, job.message
        if task.gone:
            return Change(task.queue_id, None)
        envelope = task.envelope
        if envelope is None and job.envelope is not None:
            envelope = encode(job.envelope)
        if task.record is not None and message is None:
            stored_envelope, content = self._journal.read(task.record)
            envelope, message = envelope or stored_envelope, (content,)
        assert envelope is not None, "a task without a purpose"
        return Change(task.queue_id, envelope, task.message_crc, message, task.durable)

    def _applied(self, future: asyncio.Future[dict[str, Exception]]) -> None:
        tasks, self.under_way = self.under_way, {}
        error = future.exception()
        if error is not None and not isinstance(error, OSError):
            raise error
        failed = {} if error is not None else future.result()
        if failed and len(failed) == len(tasks) and self._loop is not None:
            self._paused_until = self._loop.time() + PAUSE_SECONDS
        for task in tasks.values():
            self._on_done(task, error or failed.get(task.queue_id))
        self._on_group()
        self.wake(urgent=any(task.waiters for task in self.waiting.values()))
