"""Runs in the machine in the place of `pi-relay serve`: the relay with a defect that SIGUSR1 brings about.

$FAULT names it. Nothing of this is in the relay: its parts are changed from outside.
"""

import asyncio
import errno
import gc
import os
import signal
import sys
import threading
import time

sys.path.insert(0, "/usr/lib/pi-relay")
os.environ["PYTHONPATH"] = "/usr/lib/pi-relay"

from pi_relay.cli import main
from pi_relay.delivery import delivery, hop
from pi_relay.delivery.timeouts import Timeouts
from pi_relay.queue import manager, store
from pi_relay.queue.disk import Disk
from pi_relay.queue.journal import Journal
from pi_relay.queue.manager import Manager
from pi_relay.submission.server import Server

provoked = False
leak = []


def wedged_loop():
    while True:
        time.sleep(1)


def dead_committer():
    gather = Journal._gather

    def die(*arguments, **options):
        if provoked:
            raise SystemExit
        return gather(*arguments, **options)

    Journal._gather = die


def stuck_committer():
    gather = Journal._gather

    def stay(*arguments, **options):
        while provoked:
            time.sleep(1)
        return gather(*arguments, **options)

    Journal._gather = stay
    store.COMMIT_PATIENCE_SECONDS = 0.5


def stuck_delivery():
    transact = hop.transact

    async def stay(*arguments, **options):
        if provoked:
            await asyncio.Event().wait()
        return await transact(*arguments, **options)

    hop.transact = stay
    delivery.Timeouts = lambda: Timeouts(transaction=0.5)


def idle_scheduler():
    fill = Manager._fill

    def stay(self, line):
        if not provoked:
            fill(self, line)

    Manager._fill = stay


def late_timer():
    manager.LATE_SECONDS_MAX = 0.5
    on_time = Manager._on_time
    Manager._on_time = lambda self: None if provoked else on_time(self)


def closed_listener():
    for each in gc.get_objects():
        if isinstance(each, Server):
            for bound in each._bound.values():
                bound.servers[0].close()


def memory_leak():
    threading.Thread(target=leak_in_small_pieces, daemon=True).start()


def leak_in_small_pieces():
    """A big one would keep the loop from its turn on a busy host: another fault."""
    for _ in range(200):
        leak.append(b"x" * 2_000_000)
        time.sleep(0.002)


def slow_disk():
    fdatasync = Disk.fdatasync

    def slowly(self, fd):
        with self._waiting():
            time.sleep(8 if provoked else 0)
        fdatasync(self, fd)

    Disk.fdatasync = slowly
    store.DISK_PATIENCE_SECONDS = 0.5


def read_only_disk():
    pwrite = Disk.pwrite

    def refuse(self, *arguments):
        if provoked:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        pwrite(self, *arguments)

    Disk.pwrite = refuse


BEFORE = (
    dead_committer,
    stuck_committer,
    stuck_delivery,
    idle_scheduler,
    late_timer,
    slow_disk,
    read_only_disk,
)


def provoke(*_):
    global provoked
    provoked = True
    if fault not in BEFORE:
        fault()


fault = globals()[os.environ["FAULT"]]
if fault in BEFORE:
    fault()
signal.signal(signal.SIGUSR1, provoke)
sys.exit(main(["serve"]))
