"""kill -9 under load: whatever was acknowledged is there."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.stored_messages import bytes_of, content, new_store

CHILD = """
import asyncio, sys
from pathlib import Path
from pi_relay.queue import store as store_module
from tests.support.stored_messages import new_store, submit, with_relayed

store_module.MOVE_AFTER_SECONDS = 0.05
store_module.TICK_SECONDS = 0.02

def tell(what, queue_id):
    sys.stdout.write(f"{what} {queue_id}\\n")
    sys.stdout.flush()

async def client(store, n):
    sizes = (700, 3000, 20_000, 150_000)
    for turn in range(10_000):
        envelope = await submit(store, sizes[(n + turn) % 4], f"client-{n}")
        tell("accepted", envelope.queue_id)
        if turn % 3 == 0:
            await asyncio.sleep(0.01)
            await store.settle(with_relayed(envelope, 0), durable=turn % 2 == 0)
        if turn % 3 != 2:
            await asyncio.sleep(0.1 if turn % 5 == 0 else 0)
            tell("removed", envelope.queue_id)
            store.remove(envelope.queue_id)

async def main():
    store = new_store(Path(sys.argv[1]))
    await store.open()
    tell("ready", "-")
    await asyncio.gather(*(client(store, n) for n in range(8)))

asyncio.run(main())
"""


def run_and_kill(folder: Path, seconds: float) -> tuple[set[str], set[str]]:
    """Run the load for a while, kill it, return the ids it said it had accepted and was about to remove."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert child.stdout is not None
    with child:
        assert child.stdout.readline() == b"ready -\n"
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        lines = [line.split() for line in child.stdout.read().decode().split("\n")[:-1]]
    assert child.returncode == -signal.SIGKILL
    told: dict[str, set[str]] = {"accepted": set(), "removed": set()}
    for what, queue_id in lines:
        told[what].add(queue_id)
    return told["accepted"], told["removed"]


async def check(folder: Path, expected: set[str]) -> set[str]:
    store = new_store(folder)
    await store.open()
    assert expected <= set(store.entries), "lost"
    assert store.usage().corrupt == 0
    found = set(store.entries)
    for queue_id in found:
        envelope, message = await store.load(queue_id)
        word = bytes_of(message).split(b"Subject: ")[1].split(b"\r\n")[0].decode()
        assert bytes_of(message) == b"".join(content(envelope.message_size_bytes, word))
    await store.close()
    return found


def killed(tmp_path: Path, times: int) -> None:
    """Over one folder, again and again: also what an earlier life left must stay."""
    must: set[str] = set()
    choices = random.Random(5)
    seen: set[str] = set()
    for _ in range(times):
        accepted, removed = run_and_kill(tmp_path / "queue", 0.3 + choices.random() * 0.5)
        assert len(accepted) > 20
        assert not accepted & seen, "an id given twice"
        seen |= accepted
        must = (must | accepted) - removed
        found = asyncio.run(check(tmp_path / "queue", must))
        repeated = found & removed
        assert len(repeated) < 100, "more repeats than one tick of ids done explains"
        must = found


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    killed(tmp_path, times=3)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_by_many_kills(tmp_path: Path) -> None:
    killed(tmp_path, times=40)
