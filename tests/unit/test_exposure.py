"""Which listeners the world can reach, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pi_relay.config import Config, Listener, Queue, Submission, machine
from pi_relay.config.exposure import exposures

WORLD = ("local", "0.0.0.0/0")
PUBLIC = ["8.8.4.2", "2a00:1450::2"]


@pytest.mark.parametrize(
    ("listener", "sending", "public", "words"),
    [
        (Listener("", 25), ("local",), [], ""),
        (Listener("", 25), ("local",), PUBLIC, "at 8.8.4.2; it turns strangers away"),
        (Listener("8.8.4.2", 25), ("local",), PUBLIC, "listener 8.8.4.2:25 at 8.8.4.2; it turns"),
        (Listener("192.168.1.2", 25), ("local",), PUBLIC, ""),
        (Listener("127.0.0.1", 25), ("local",), PUBLIC, ""),
        (Listener("::", 25), ("local",), PUBLIC, ""),  # IPv6 alone, and nobody of the world comes in
        (Listener("", 25, networks=WORLD), ("local",), [], ""),  # a firewall's business: check warns anyway
        (Listener("", 25, networks=WORLD), ("local",), PUBLIC, "at 8.8.4.2, and it lets in 0.0.0.0/0"),
        (Listener("", 25, networks=("::/0",)), ("local",), PUBLIC, "at 2a00:1450::2, and it lets in ::/0"),
        (Listener("", 587, auth="required", networks=WORLD), ("local",), PUBLIC, ""),  # meant so
        (Listener("", 25, networks=WORLD), WORLD, [], ":25 lets in 0.0.0.0/0, to send without a password"),
        (Listener("", 25, networks=WORLD), WORLD, PUBLIC, "lets in 0.0.0.0/0, to send without a password"),
        (Listener("", 25), WORLD, [], ""),  # nobody from there may connect
        (Listener("", 25, networks=("8.8.4.0/24",)), ("8.8.4.0/24",), [], ""),  # an office
    ],
)
def test_exposures(listener: Listener, sending: tuple[str, ...], public: list[str], words: str) -> None:
    config = Config(
        hostname="x", queue=Queue(Path("/x")), listeners=(listener,), submission=Submission(networks=sending)
    )
    found = [exposure.in_words(config) for exposure in exposures(config, public)]
    assert bool(found) == bool(words), found
    assert not words or words in found[0]


def test_public_addresses(tmp_path: Path) -> None:
    (tmp_path / "fib_trie").write_text(
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 8.8.4.0\n        /24 link UNICAST\n     |-- 8.8.4.2\n"
        "        /32 host LOCAL\n     |-- 192.168.1.2\n        /32 host LOCAL\n     |-- 8.8.4.255\n"
        "        /32 link BROADCAST\n     |-- 100.64.0.1\n        /32 host LOCAL\n"
    )
    (tmp_path / "if_inet6").write_text(
        "2a001450000000000000000000000002 04 40 00 82     eth0\n"
        "fd000000000000000000000000000002 04 40 00 82     eth0\n"
        "00000000000000000000000000000001 01 80 10 80       lo\n"
    )
    assert machine.public_addresses(tmp_path) == ["8.8.4.2", "2a00:1450::2"]
    assert machine.public_addresses(tmp_path / "nowhere") == []
