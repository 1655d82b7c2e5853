"""Too many, too much, too slow: refused in good order, while known devices are served and promises kept."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attack.conftest import DEVICE, STRANGER, Office, connect
from tests.support import sdcard, small_disk
from tests.support.attacks import ATTACKS, Attack
from tests.support.processes import wait_until
from tests.support.sdcard import Costs, SdCard
from tests.support.small_disk import SmallDisk

OpenOffice = Callable[..., Office]

GROWTH_MAX_BYTES = 64_000_000
# What a client that only asks for too much may hear, and no other refusal.
GOOD_ORDER = {
    "crowd": {"421 4.3.2"},
    "drip": {"421 4.4.2"},
    "uploads": {"452 4.3.1", "503 5.5.1"},  # 503: RCPT and DATA that came in one with a MAIL that was refused
    "submissions": {"452 4.3.1", "503 5.5.1"},
    "chatter": {"421 4.7.0", "452 4.5.3", "500 5.5.1"},
    "long-lines": {"421 4.7.0", "500 5.5.1", "500 5.5.2", "552 5.3.4"},
    "knots": {"421 4.7.0", "552 5.3.4", "554 5.4.6"},
    "guesses": {"421 4.7.0", "535 5.7.8"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_a_device_is_served_during_an_attack(name: str, open_office: OpenOffice) -> None:
    office = open_office()
    before_bytes = office.rss_bytes()
    with Attack(name, office.port) as attack:
        office.serves_the_device(times=20)
        grown_bytes = office.rss_bytes() - before_bytes
    office.serves_everybody_again()
    office.keeps_its_promises(attack.promised)
    office.has_no_tracebacks()
    assert attack.refusals() <= GOOD_ORDER[name]
    assert grown_bytes < GROWTH_MAX_BYTES


@pytest.mark.slow
def test_a_device_signs_in_while_others_guess_its_password(open_office: OpenOffice) -> None:
    office = open_office()
    with Attack("guesses", office.port, clients=60) as attack:
        for last in range(1, 6):
            office.sign_in(f"127.0.9.{last}")
    assert attack.heard["535 5.7.8"] >= 60
    assert attack.refusals() <= GOOD_ORDER["guesses"]
    assert attack.heard["235 2.7.0"] == 0


@pytest.mark.slow
def test_a_thousand_connections_that_are_allowed(open_office: OpenOffice) -> None:
    office = open_office(submission="connections_max = 1200")
    with Attack("crowd", office.port) as attack:
        wait_until(lambda: office.connections() >= 1000, 30, "a thousand connections")
        office.serves_the_device()
        assert office.submit(STRANGER) == "250 2.0.0"
    assert attack.refusals() == set()
    office.serves_everybody_again()
    office.has_no_tracebacks()


@pytest.mark.slow
def test_fewer_files_than_connections(open_office: OpenOffice) -> None:
    """The system does not allow what the file asks for: fewer get in, the others are told so."""
    office = open_office(submission="connections_max = 1200")
    resource.prlimit(office.relay.pid, resource.RLIMIT_NOFILE, (200, 200))
    office.relay.command("reload")
    assert "the system allows 200 files" in office.relay.log.read_text()
    with Attack("crowd", office.port) as attack:
        office.serves_the_device()
    assert attack.refusals() == GOOD_ORDER["crowd"]
    office.serves_everybody_again()
    office.keeps_its_promises()


def test_a_dead_smart_host_and_a_queue_that_fills(open_office: OpenOffice) -> None:
    office = open_office(
        submission='message_size_max = "1 MB"', queue='size_max = "16 MB"\nfree_space_min = "16 MB"'
    )
    with Attack("submissions", office.port, clients=8) as attack:
        wait_until(lambda: office.submit(STRANGER).startswith("452 4.3.1 "), 30, "the queue to be full")
        office.serves_the_device(times=3)  # the last fifth is for it
    assert attack.refusals() <= GOOD_ORDER["submissions"]
    wait_until(
        lambda: office.submit(DEVICE, 100_000).startswith("452 4.3.1 "), 30, "its part to be full, too"
    )
    office.keeps_its_promises(attack.promised)
    office.serves_everybody_again()
    office.has_no_tracebacks()


@pytest.mark.skipif(bool(small_disk.why_not()), reason=small_disk.why_not())
@pytest.mark.parametrize("left_bytes", [18_000_000, 0], ids=["to-the-reserve", "to-the-brim"])
def test_a_full_disk(left_bytes: int, tmp_path: Path, open_office: OpenOffice) -> None:
    with SmallDisk(tmp_path, size_bytes=96 << 20) as disk:
        office = open_office(state_directory=disk.path / "state")
        assert office.submit() == "250 2.0.0"
        disk.fill(left_bytes)
        with Attack("submissions", office.port, clients=8) as attack:
            wait_until(lambda: office.submit(STRANGER)[:9] == "452 4.3.1", 30, "the disk to be full")
            assert office.relay.ask("status")["queue"]["messages"] >= 1
        assert attack.refusals() <= GOOD_ORDER["submissions"]
        disk.clear()
        office.serves_everybody_again()
        office.serves_the_device(times=2)
        office.keeps_its_promises(attack.promised)
        office.has_no_tracebacks()
        office.relay.stop()


@pytest.mark.slow
@pytest.mark.skipif(bool(sdcard.why_not()), reason=sdcard.why_not())
def test_a_disk_that_is_very_slow(tmp_path: Path, open_office: OpenOffice) -> None:
    worn_out = Costs(random_write=20e-3, sequential_write=5e-3, read=5e-3, flush=0.3, per_byte=1 / (1 << 20))
    with SdCard(tmp_path, size_bytes=256 << 20, costs=worn_out) as card:
        office = open_office(state_directory=card.path / "state")
        with Attack("submissions", office.port) as attack:
            office.serves_the_device(times=5)
            with connect(office.port, STRANGER) as idle:  # the dialogue does not wait for the disk
                assert idle.recv(200).startswith(b"220 ")
        assert attack.refusals() <= GOOD_ORDER["submissions"]
        office.keeps_its_promises(attack.promised, timeout_seconds=240)
        office.has_no_tracebacks()
        office.relay.stop()
