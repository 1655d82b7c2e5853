"""What a family of processes costs, and the small waits that real processes need.

A family is a process with all its descendants: a relay is measured as a whole system, however it is built.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A loopback port that nobody listens on just now, outside the range from which clients get theirs."""
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def wait_until(condition: Callable[[], object], timeout_seconds: float, what: str) -> None:
    """Wait until the condition holds; TimeoutError says for what we waited."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_seconds:g} s for {what}")
        time.sleep(0.005)


def greeting(port: int, timeout_seconds: float = 5.0, *, host: str = "127.0.0.1") -> bytes:
    """The first line that a server says; b"" where nobody answers yet."""
    try:
        with socket.create_connection((host, port), timeout_seconds) as connection:
            return connection.makefile("rb").readline()
    except OSError:
        return b""


def family(root_pid: int) -> Iterator[int]:
    """The ids of a process and of all its living descendants."""
    yield root_pid
    for children in Path(f"/proc/{root_pid}/task").glob("*/children"):
        try:
            pids = children.read_text().split()
        except OSError:  # that thread has just ended
            continue
        for pid in pids:
            yield from family(int(pid))


def cpu_seconds(root_pid: int) -> float:
    """CPU time that a family has used so far, its dead included.

    For each living process: its own clock (to the nanosecond, all its threads), and what the kernel noted of
    the children it has waited for. A difference of two such sums is right as long as every child that ended
    in between was waited for by its parent, as master(8) and we do.
    """
    return sum(_own_cpu_seconds(pid) + _waited_for_cpu_seconds(pid) for pid in family(root_pid))


def _own_cpu_seconds(pid: int) -> float:
    try:
        return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3), which Python has for threads only
    except OSError:
        return 0.0


def _waited_for_cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[13]) + int(fields[14])) / _TICKS_PER_SECOND  # cutime, cstime: proc(5)


def memory_bytes(root_pid: int, kind: str) -> int:
    """Memory of a family: kind "Pss" shares out what is shared, "Rss" counts it for each process."""
    total = 0
    for pid in family(root_pid):
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(
            int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith(f"{kind}:")
        )
    return total
