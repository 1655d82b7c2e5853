"""Which networks count as local, given what the kernel says of the machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from ipaddress import ip_address, ip_network

import pytest

from pi_relay.submission.interfaces import (
    LOOPBACK,
    Link,
    LocalNetworks,
    Network,
    Route,
    judge,
    read_local_networks,
)

ETHERNET, LOOPBACK_HARDWARE, NONE = 1, 772, 65534


def link(index: int, kind: str = "", *, up: bool = True, hardware: int = ETHERNET, bridge: int = 0) -> Link:
    return Link(index=index, up=up, hardware=hardware, kind=kind, bridge=bridge)


def at(index: int, network: str) -> tuple[int, Network]:
    return index, ip_network(network)


def route(interface: int, destination: str, *gateways: str) -> Route:
    return Route(interface, ip_network(destination), tuple(map(ip_address, gateways)))


def networks(local: LocalNetworks) -> set[str]:
    return {str(network) for network in local.networks if network not in LOOPBACK}


def test_an_office_link_brings_its_prefixes_of_both_families() -> None:
    local = judge(
        [link(2)],
        [at(2, "192.168.1.0/24"), at(2, "2001:db8:1::/64")],
        [route(2, "2001:db8:1::/64"), route(2, "fe80::/64"), route(2, "0.0.0.0/0", "192.168.1.1")],
    )
    assert networks(local) == {"192.168.1.0/24", "2001:db8:1::/64"}
    assert local.contains(ip_address("192.168.1.77"), 0)
    assert local.contains(ip_address("2001:db8:1::5"), 0)
    assert local.contains(ip_address("fe80::5"), 2)
    assert not local.contains(ip_address("fe80::5"), 3)
    assert not local.contains(ip_address("192.168.2.1"), 0)
    assert local.gateways == {ip_address("192.168.1.1")}


def test_public_shared_and_absent_ipv4_bring_nothing() -> None:
    for prefix in ("203.0.113.0/24", "100.64.0.0/10", "169.254.0.0/16"):
        local = judge([link(2)], [at(2, prefix)], [route(2, "2001:db8::/64")])
        assert networks(local) == set()
        assert not local.contains(ip_address("fe80::1"), 2)
    assert networks(judge([link(2)], [], [route(2, "2001:db8::/64")])) == set()


def test_what_is_down_or_a_tunnel_brings_nothing() -> None:
    for odd in (
        link(2, up=False),
        link(2, "wireguard", hardware=NONE),
        link(2, "tun", hardware=NONE),
        link(2, "tun"),  # a tap
        link(2, "gretap"),
        link(2, hardware=512),  # ppp
    ):
        assert networks(judge([odd], [at(2, "10.8.0.0/24")], [])) == set()


def test_a_bridge_counts_where_a_cable_is_a_port_of_it() -> None:
    address = [at(5, "172.17.0.0/16")]
    assert networks(judge([link(5, "bridge")], address, [])) == set()
    assert networks(judge([link(5, "bridge"), link(6, "veth", bridge=5)], address, [])) == set()
    office = [link(5, "bridge"), link(6, "veth", bridge=5), link(2, bridge=5)]
    assert networks(judge(office, address, [])) == {"172.17.0.0/16"}


def test_a_container_own_end_of_a_pair_counts_and_its_gateway_is_known() -> None:
    local = judge([link(2, "veth")], [at(2, "172.17.0.0/16")], [route(2, "0.0.0.0/0", "172.17.0.1")])
    assert networks(local) == {"172.17.0.0/16"}
    assert ip_address("172.17.0.1") in local.gateways


def test_a_wide_route_without_a_gateway_is_no_link() -> None:
    local = judge([link(2)], [at(2, "10.0.0.0/24")], [route(2, "2000::/3"), route(2, "::/0")])
    assert networks(local) == {"10.0.0.0/24"}


def test_the_kernel_says_what_ip_says() -> None:
    local = read_local_networks()
    assert local.contains(ip_address("127.0.0.1"), 0)
    said = subprocess.run(
        ["ip", "route", "show", "default"], capture_output=True, text=True, check=True
    ).stdout
    gateways = {line.split()[2] for line in said.splitlines() if line.startswith("default via")}
    assert gateways <= {str(gateway) for gateway in local.gateways}


_OTHER_MACHINE = """
set -e
ip link set lo up
ip link add office type veth peer name cable
ip link set office up; ip link set cable up
ip address add 192.168.7.2/24 dev office
ip address add 2001:db8:7::2/64 dev office nodad
ip route add default via 192.168.7.1
ip link add docker0 type bridge; ip link set docker0 up
ip address add 172.17.0.1/16 dev docker0
ip link add spare type veth peer name unused
ip address add 10.9.9.1/24 dev spare
ip link add public type veth peer name uplink
ip link set public up; ip link set uplink up
ip address add 203.0.113.2/24 dev public
ip address add 2001:db8:8::2/64 dev public nodad
"""
_TELL = """
import json
from pi_relay.submission.interfaces import read_local_networks
local = read_local_networks()
networks, gateways = (list(map(str, found)) for found in (local.networks, local.gateways))
print(json.dumps([networks, sorted(local.link_local_interfaces), gateways]))
"""


def test_a_machine_with_a_bit_of_everything() -> None:
    """In a network namespace of its own."""
    script = f'{_OTHER_MACHINE}\ncat /sys/class/net/office/ifindex\n"$0" -c "$1"'
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    namespace = ["unshare", "--map-root-user", "--net", "--mount"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    mounted = f"mount -t sysfs sysfs /sys\n{script}"
    ended = subprocess.run(
        [*namespace, "sh", "-c", mounted, sys.executable, _TELL], capture_output=True, text=True, timeout=60
    )
    if "Unknown device type" in ended.stderr or "not supported" in ended.stderr:
        pytest.skip(ended.stderr)
    assert ended.returncode == 0, ended.stderr
    office, told = ended.stdout.splitlines()
    networks, link_local, gateways = json.loads(told)
    assert set(networks) == {"127.0.0.0/8", "::1/128", "192.168.7.0/24", "2001:db8:7::/64"}
    assert link_local == [int(office)]
    assert gateways == ["192.168.7.1"]


_NEIGHBOURS = """
set -e
ip link add office type veth peer name cable
ip link set office up; ip link set cable up
ip address add 192.168.7.2/24 dev office
ip neighbour add 192.168.7.9 lladdr 00:1b:a9:12:34:56 dev office
ip neighbour add fe80::9 lladdr 00:1b:a9:12:34:57 dev office
ip neighbour add 192.168.7.10 lladdr 00:1b:a9:12:34:58 dev office nud failed
"$0" -c "
from pi_relay.submission.neighbours import read_neighbours
for known in read_neighbours():
    print(known.address, known.mac)
"
"""


def test_neighbours_are_those_of_ip() -> None:
    """In a network namespace of its own."""
    namespace = ["unshare", "--map-root-user", "--net"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*namespace, "true"], capture_output=True).returncode
    ):
        pytest.skip("no namespaces here")
    ended = subprocess.run(
        [*namespace, "sh", "-c", _NEIGHBOURS, sys.executable], capture_output=True, text=True, timeout=60
    )
    if "Unknown device type" in ended.stderr or "not supported" in ended.stderr:
        pytest.skip(ended.stderr)
    assert ended.returncode == 0, ended.stderr
    found = dict(line.split() for line in ended.stdout.splitlines())
    assert found == {"192.168.7.9": "00:1b:a9:12:34:56", "fe80::9": "00:1b:a9:12:34:57"}
