"""What the configuration has to know of the machine: its name, own addresses, the queue's partition.

Rules: quick answers only; never a question to the network, for DNS may hang while a box starts. It must
not know the keys of the file.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

# Where a power cut may undo what was synced, or where nothing is ever synced.
_FORGETFUL = {
    "vfat": "a FAT partition",
    "msdos": "a FAT partition",
    "exfat": "an exFAT partition",
    "tmpfs": "a partition in memory",
    "ramfs": "a partition in memory",
    "nfs": "a network share",
    "nfs4": "a network share",
    "cifs": "a network share",
    "smb3": "a network share",
    "9p": "a share of the host",
    "fuse.sshfs": "a network share",
    "overlay": "an overlay",
    "aufs": "an overlay",
}

_FIB_TRIE_LOCAL = re.compile(r"\|-- ([0-9.]+)\n +/32 host LOCAL")


def full_name(hosts: Path = Path("/etc/hosts")) -> str:
    """The machine's FQDN as the machine itself has it: its own name, or what /etc/hosts makes of it."""
    own = os.uname().nodename.strip(".").lower()
    if not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)*", own):
        return "localhost"
    if "." in own:
        return own
    try:
        lines = hosts.read_text(errors="replace").splitlines()
    except OSError:
        return own
    for line in lines:
        names = line.partition("#")[0].lower().split()[1:]
        if own in names:
            return next((name for name in names if name.startswith(f"{own}.")), own)
    return own


def is_own_address(address: str) -> bool:
    """Whether this machine has the IP address: only then may a socket be bound to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except (OSError, ValueError):
        return False
    return True


def public_addresses(net: Path = Path("/proc/self/net")) -> list[str]:
    """The addresses of its interfaces that the whole Internet could use; none where they cannot be read."""
    try:
        ipv4 = _FIB_TRIE_LOCAL.findall((net / "fib_trie").read_text("ascii", "replace"))
    except OSError:
        ipv4 = []
    try:
        ipv6 = [line[:32] for line in (net / "if_inet6").read_text("ascii", "replace").splitlines()]
    except OSError:
        ipv6 = []
    addresses = {ip_address(text) for text in ipv4} | {IPv6Address(int(digits, 16)) for digits in ipv6}
    return [str(a) for a in sorted(addresses, key=lambda a: (a.version, int(a))) if a.is_global]


@dataclass(frozen=True, slots=True)
class Partition:
    size_bytes: int
    free_bytes: int
    forgetful: str  # in words, why a power cut may lose mail here; "" where it cannot


def partition_of(directory: Path, mounts: Path = Path("/proc/mounts")) -> Partition | None:
    """The partition that holds the directory, or will when it is made. None where nothing can be seen."""
    place = directory.absolute()
    try:
        while not place.exists():
            place = place.parent
        place = place.resolve()
        usage = os.statvfs(place)
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except (OSError, RuntimeError, ValueError):
        return None
    kind, depth = "", -1
    for fields in (line.split(" ") for line in lines):
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1]))
        # Of two mounts on one point the later one is seen, hence >=.
        if place.is_relative_to(point) and len(point.parts) >= depth:
            kind, depth = fields[2], len(point.parts)
    return Partition(
        usage.f_frsize * usage.f_blocks, usage.f_frsize * usage.f_bavail, _FORGETFUL.get(kind, "")
    )
