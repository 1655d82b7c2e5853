"""Power cuts under the whole daemon, its smart host dead: what got a 250 is there after the next start."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pi_relay.queue.store import Store
from tests.support import sdcard, sinks
from tests.support.power_cut import disks_after, read_log, spread
from tests.support.processes import free_port
from tests.support.relay import Relay
from tests.support.sdcard import SdCard
from tests.support.senders import TOKEN, Acknowledged, Senders
from tests.support.sinks import SmtpSink

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(sdcard.why_not()), reason=sdcard.why_not()),
]

CARD_BYTES = 384 << 20
LOAD_SECONDS = 8


def _load(tmp_path: Path) -> tuple[SdCard, int, int, Sequence[Acknowledged]]:
    """The card with its log, where in it the load began and ended, and what was acknowledged meanwhile."""
    dead_port = free_port()
    with SdCard(tmp_path, size_bytes=CARD_BYTES, log=True) as card:
        state_directory = card.path / "state"
        with Relay(tmp_path / "relay", smart_host_port=dead_port, state_directory=state_directory) as relay:
            start = card.log_position()
            with Senders(relay.port, position=card.log_position) as senders:
                time.sleep(LOAD_SECONDS)
            end = card.log_position()
    return card, start, end, senders.acknowledged


async def _queue_ids(directory: Path) -> set[str]:
    store = Store(directory, size_max_bytes=1 << 30, free_space_min_bytes=0)
    await store.open()
    queue_ids = set(store.entries)
    await store.close()
    return queue_ids


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    card, start, end, acknowledged = _load(tmp_path)
    assert len(acknowledged) > 100
    chance = random.Random(1)
    records = read_log(card.log)
    lost = []
    for cut, mount_point in disks_after(
        card.base, records, spread(records, 60, chance, after=start, until=end), tmp_path, chance
    ):
        kept = asyncio.run(_queue_ids(mount_point / "state" / "queue"))
        lost += [(cut, each) for each in acknowledged if each.position <= cut and each.queue_id not in kept]
    assert lost == []


@pytest.mark.skipif(bool(sinks.missing_tools()), reason=sinks.missing_tools())
def test_a_start_after_the_cut_delivers(tmp_path: Path) -> None:
    card, start, end, acknowledged = _load(tmp_path)
    chance = random.Random(2)
    records = read_log(card.log)
    for number, (cut, mount_point) in enumerate(
        disks_after(card.base, records, spread(records, 4, chance, after=start, until=end), tmp_path, chance)
    ):
        arrived = tmp_path / f"arrived-{number}"
        promised = {each.token for each in acknowledged if each.position <= cut}
        with (
            SmtpSink(tmp_path, dump=arrived) as sink,
            Relay(
                tmp_path / f"relay-{number}",
                smart_host_port=sink.port,
                state_directory=mount_point / "state",
            ),
        ):
            sink.wait_for(len(promised), 120)
            time.sleep(1)
        assert promised - set(TOKEN.findall(arrived.read_bytes())) == set()
