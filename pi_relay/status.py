"""What `pi-relay status` reports, put together from what the rooms say of themselves.

Rules: pure; the shape is the one that other programs rely on (docs/man, `status --json`). Health is
"failing" where nothing can be accepted or no smart host can be used, "degraded" where something is paused,
corrupt, over half of a limit, the clock is wrong, or something else is to be told (a certificate, a listener
that the world can reach); the reasons say it in words.
It must not know sockets, disks or the clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pi_relay.routes import domain_of

GB = 1_000_000_000
DOMAINS_NAMED_MAX = 5  # of direct delivery, in the reasons: the port may be blocked for all of them


@dataclass(frozen=True, slots=True)
class HopStatus:
    name: str
    state: str  # "ok" | "paused" | "unknown"
    last_success_at: float | None = None
    last_error: str = ""
    next_attempt_at: float | None = None
    paced_until: float | None = None  # None also where it is paced, and nobody knows until when
    pace: str = ""  # why no more goes to it now, "" while it is not paced
    is_slowed: bool = False  # by more than the pace of a minute


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    name: str  # "" for an unknown client
    address: str
    last_seen_at: float
    accepted: int
    refused: int


@dataclass(frozen=True, slots=True)
class QueueStatus:
    messages: int
    bytes: int
    oldest_seconds: int
    held: int
    corrupt: int
    size_max_bytes: int
    free_bytes: int
    free_space_min_bytes: int
    broken: str  # what the disk said, "" while it works


@dataclass(frozen=True, slots=True)
class Restart:
    """A start that nobody had asked for."""

    at: float  # seconds since the epoch: when the relay was up again
    reason: str  # how the run before had ended, in words


@dataclass(frozen=True, slots=True)
class Observation:
    """All that health is judged by, at one moment."""

    version: str
    pid: int
    uptime_seconds: int
    rss_bytes: int
    listening: bool
    clock_wrong: bool
    connections: int
    connections_max: int
    queue: QueueStatus
    totals: Mapping[str, int]  # accepted, relayed, deferred, failed, refused
    smart_hosts: Sequence[HopStatus]
    devices: Sequence[DeviceStatus]
    troubles: Sequence[str] = ()  # what else an admin should know of, in words
    last_restart: Restart | None = None


def timestamp(at: float | None) -> str | None:
    """RFC 3339 in UTC, whole seconds."""
    return None if at is None else datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def in_words(hop: HopStatus) -> str:
    """Why it is slow."""
    if not hop.pace:
        return "is given less at a time, as it asked for"
    until = timestamp(hop.paced_until)
    return f"is paced until {until}: {hop.pace}" if until else f"is paced: {hop.pace}"


def failing_reasons(seen: Observation) -> list[str]:
    """Why nothing can be accepted, or nothing can leave."""
    queue, reasons = seen.queue, []
    if not seen.listening:
        reasons.append("no listener is open")
    if queue.broken:
        reasons.append(f"the queue's disk is failing: {queue.broken}")
    if queue.free_bytes < queue.free_space_min_bytes:
        reasons.append(f"the disk is full: {queue.free_bytes / GB:.2f} GB free, less than free_space_min")
    if queue.bytes >= queue.size_max_bytes:
        reasons.append("the queue is full: size_max is reached")
    if not seen.smart_hosts:
        reasons.append("there is no smart host: mail has nowhere to go")
    elif all(hop.state == "paused" for hop in seen.smart_hosts):
        reasons.append("no smart host can be used")
    return reasons


def degraded_reasons(seen: Observation) -> list[str]:
    """What works, but not as it should."""
    queue = seen.queue
    reasons = [
        f"smart host {hop.name} is paused: {hop.last_error}"
        for hop in seen.smart_hosts
        if hop.state == "paused" and not domain_of(hop.name)
    ]
    domains = [hop for hop in seen.smart_hosts if domain_of(hop.name)]  # only those in trouble are told of
    reasons += [f"{hop.name} is paused: {hop.last_error}" for hop in domains[:DOMAINS_NAMED_MAX]]
    if len(domains) > DOMAINS_NAMED_MAX:
        reasons.append(f"{len(domains) - DOMAINS_NAMED_MAX} more domains are paused")
    reasons += [f"smart host {hop.name} {in_words(hop)}" for hop in seen.smart_hosts if hop.is_slowed]
    if queue.corrupt:
        reasons.append(f"{queue.corrupt} damaged file(s) lie in the queue's folder corrupt/")
    if seen.clock_wrong:
        reasons.append("the clock is wrong and not yet synchronised")
    if queue.bytes * 2 > queue.size_max_bytes:
        reasons.append("the queue is over half of size_max")
    if queue.free_bytes < 2 * queue.free_space_min_bytes:
        reasons.append(f"the disk is filling: {queue.free_bytes / GB:.2f} GB free")
    if seen.connections * 2 > seen.connections_max:
        reasons.append(f"{seen.connections} of {seen.connections_max} connections are in use")
    return [*reasons, *seen.troubles]


def document(seen: Observation) -> dict[str, object]:
    """The JSON document of `status --json`."""
    failing, degraded = failing_reasons(seen), degraded_reasons(seen)
    queue = seen.queue
    return {
        "health": "failing" if failing else "degraded" if degraded else "ok",
        "reasons": failing + degraded,
        "version": seen.version,
        "uptime_seconds": seen.uptime_seconds,
        "pid": seen.pid,
        "queue": {
            "messages": queue.messages,
            "bytes": queue.bytes,
            "oldest_seconds": queue.oldest_seconds,
            "held": queue.held,
            "corrupt": queue.corrupt,
        },
        "totals": dict(seen.totals),
        "smart_hosts": [
            {
                "name": hop.name,
                "state": hop.state,
                "last_success_at": timestamp(hop.last_success_at),
                "last_error": hop.last_error or None,
                "next_attempt_at": timestamp(hop.next_attempt_at),
                "pace": hop.pace or None,
                "paced_until": timestamp(hop.paced_until),
            }
            for hop in seen.smart_hosts
        ],
        "devices": [
            {
                "name": device.name,
                "address": device.address,
                "last_seen_at": timestamp(device.last_seen_at),
                "accepted": device.accepted,
                "refused": device.refused,
            }
            for device in seen.devices
        ],
        "disk": {"free_bytes": queue.free_bytes},
        "memory": {"rss_bytes": seen.rss_bytes},
        "last_restart": seen.last_restart
        and {"at": timestamp(seen.last_restart.at), "reason": seen.last_restart.reason},
    }


def sentence(seen: Observation) -> str:
    """The line of `systemctl status`."""
    waiting = f"{seen.queue.messages} message(s) in the queue"
    if failing := failing_reasons(seen):
        return f"In trouble: {'; '.join(failing)}. {waiting}."
    if degraded := degraded_reasons(seen):
        return f"Works, but: {'; '.join(degraded)}. {waiting}."
    return f"All is well, {waiting}."
