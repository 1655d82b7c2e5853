"""``kill -9`` under load: whatever was acknowledged arrives at the next hop, at least once."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.support import sinks
from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.senders import TOKEN, Senders
from tests.support.sinks import SmtpSink

pytestmark = pytest.mark.skipif(bool(sinks.missing_tools()), reason=sinks.missing_tools())


def _kill_again_and_again(tmp_path: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    arrived = tmp_path / "arrived"
    with (
        SmtpSink(tmp_path, dump=arrived) as sink,
        Relay(tmp_path / "relay", smart_host_port=sink.port) as relay,
    ):
        with Senders(relay.port) as senders:
            for _ in range(kills):
                time.sleep(0.2 + chance.random())
                relay.kill()
                relay.start()
            time.sleep(0.5)
        wait_until(lambda: relay.ask("status")["queue"]["messages"] == 0, 60, "an empty queue")
        assert relay.stop() == 0
    promised = {acknowledged.token for acknowledged in senders.acknowledged}
    assert len(promised) > kills
    assert promised - set(TOKEN.findall(arrived.read_bytes())) == set()


def test_what_was_acknowledged_arrives(tmp_path: Path) -> None:
    _kill_again_and_again(tmp_path, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2, 5))
def test_what_was_acknowledged_arrives_after_many_kills(tmp_path: Path, seed: int) -> None:
    _kill_again_and_again(tmp_path, kills=15, seed=seed)
