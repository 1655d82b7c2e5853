"""The kernel's answer, read by us and by ip(8)."""

from __future__ import annotations

import json
import subprocess
from ipaddress import ip_address

from pi_relay.submission.addresses import private_addresses


def test_private_addresses_are_those_of_ip() -> None:
    listed = json.loads(subprocess.run(["ip", "-j", "addr"], capture_output=True, check=True).stdout)
    passing = ("temporary", "deprecated", "tentative")
    infos = [info for link in listed for info in link["addr_info"] if not any(map(info.get, passing))]
    known = [ip_address(info["local"]) for info in infos]
    private = [a for a in known if a.is_private and not a.is_loopback and not a.is_link_local]
    assert sorted(private_addresses()) == sorted(str(address) for address in private)
