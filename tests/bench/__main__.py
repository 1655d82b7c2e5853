"""Runs the bench: every contestant in turn (A B A B), medians, a table, and docs/benchmarks.md."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from pi_relay import __version__
from tests.bench.figures import ROWS, Outcome, Row, as_markdown, as_text, outcomes, table
from tests.bench.systems import PI_RELAY, POSTFIX, POSTFIX_AGAIN, Contestant
from tests.bench.work import QUICK, Scale
from tests.support import postfix, sdcard, sinks

REPORT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
REMARKS = "## Remarks"


def main() -> int:
    arguments = _arguments()
    problem = postfix.why_not() or sinks.missing_tools()
    if problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 1
    scale = QUICK if arguments.quick else Scale()
    contestants = (POSTFIX_AGAIN if arguments.calibrate else PI_RELAY, POSTFIX)
    rows = [row for row in ROWS if not arguments.only or row.name in arguments.only]
    results: list[Outcome] = []
    not_measured: list[str] = []
    for row in rows:
        if row.alone and arguments.calibrate:
            continue
        reason = sdcard.why_not() if row.needs_card else ""
        if reason:
            not_measured.append(f"{row.title}: not measured: {reason}")
        else:
            results += _measure(row, contestants, arguments.rounds or row.rounds(scale), scale)
    lines = table(results, (contestants[0].name, contestants[1].name))
    print("\n".join([as_text(lines), *not_measured]))
    if arguments.write:
        _write_report(as_markdown(lines), not_measured)
    missed = any(outcome.verdict == "MISSED" for outcome in results)
    return 1 if missed and not (arguments.quick or arguments.calibrate) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="pi-relay side by side with stock Postfix, on the work of docs/benchmarks.md."
        " Exits 1 where a must is missed.",
    )
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS], help="these rows only")
    parser.add_argument("--rounds", type=int, help="rounds of each row (5, of the outage 3)")
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: little work, one round, no judgement"
    )
    parser.add_argument("--calibrate", action="store_true", help="Postfix against itself: shows the noise")
    parser.add_argument(
        "--no-write", dest="write", action="store_false", help="leave docs/benchmarks.md alone"
    )
    arguments = parser.parse_args()
    if arguments.quick or arguments.calibrate or arguments.only:
        arguments.write = False  # the page shows full runs only
    return arguments


def _measure(
    row: Row, contestants: tuple[Contestant, Contestant], rounds: int, scale: Scale
) -> list[Outcome]:
    measured: dict[str, list[dict[str, float]]] = {contestant.name: [] for contestant in contestants}
    for number in range(1, rounds + 1):
        for contestant in contestants[:1] if row.alone else contestants:
            started_at = time.monotonic()
            measurements = dict(row.run(contestant, scale))
            measured[contestant.name].append(measurements)
            print(
                f"{row.name} {number}/{rounds} {contestant.name}: "
                + ", ".join(f"{name} {value:.4g}" for name, value in measurements.items())
                + f" ({time.monotonic() - started_at:.0f} s)",
                file=sys.stderr,
                flush=True,
            )
    ours, theirs = (measured[contestant.name] for contestant in contestants)
    return outcomes(row, ours, theirs)


def _write_report(markdown_table: str, not_measured: list[str]) -> None:
    """The page is written anew but for the remarks at its end, which people write."""
    remarks = REPORT.read_text().partition(REMARKS)[2] if REPORT.exists() else "\n"
    notes = "".join(f"\n- {note}" for note in not_measured)
    REPORT.write_text(
        _PAGE.format(table=markdown_table, notes=notes, machine=_machine(), remarks=REMARKS + remarks)
    )
    print(f"written: {REPORT.relative_to(Path.cwd())}", file=sys.stderr)


def _machine() -> str:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith(("model name", "Model"))
        ),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    facts = (
        f"{datetime.now(UTC):%Y-%m-%d}",
        f"{cpu}, {os.cpu_count()} cores shared with the load generator, {memory_gib:.0f} GiB",
        f"{release}, Linux {platform.release()}, new file + fsync {_fsync_ms():.2f} ms",
        f"pi-relay {__version__} ({_output('git', 'describe', '--always')})",
        f"Python {platform.python_version()}",
        f"Postfix {_output('postconf', '-d', '-h', 'mail_version')}",
    )
    return "\n".join(f"- {fact}" for fact in facts)


def _fsync_ms() -> float:
    with tempfile.TemporaryDirectory() as folder:
        started_at = time.monotonic()
        for number in range(50):
            descriptor = os.open(Path(folder) / str(number), os.O_CREAT | os.O_WRONLY)
            os.write(descriptor, bytes(2048))
            os.fsync(descriptor)
            os.close(descriptor)
        return (time.monotonic() - started_at) / 50 * 1000


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


_PAGE = """\
# Benchmarks

Written by `scripts/bench`: pi-relay side by side with stock Postfix, in the same run, in turn (A B A B),
medians. Rates depend on the machine: use the ratios.

{table}
{notes}
"met" says which target is reached. Targets with an x are for the ratio, ours to Postfix's; the others are for
our own number.

## Machine
{machine}

## How it is measured
- Each contestant is a whole system in processes of its own, on a fresh queue; the smart host is Postfix's
  smtp-sink, the senders are smtp-source, and for one message at a time a plain socket. All of it on loopback.
- A rate counts from the first connection until the sink has the last message. A hundred messages warm up.
- CPU is that of the whole family of processes: of each living one by its own clock, of each that has ended
  by what its parent was told when waiting for it. PSS and RSS are sums over the family, from `smaps_rollup`;
  the largest RSS is sampled every 50 ms, and is at least the main process's own high-water mark.
- An office's rules: pi-relay alone, the load with connections kept without any and then with domains that may
  be claimed, a default sender, hourly limits and 20 devices.
- Straight to 200 domains: in a network of its own, with NSD as the DNS server; each domain has an MX host of
  its own, all of them one smtp-sink with 200 addresses. Ten messages to each, twice. DNS queries are half
  of the UDP datagrams there; pi-relay asks for MTA-STS policies, too. Connections are the sink's count.
- Signed (DKIM): pi-relay alone, the same load without a key and then with an RSA key of 2048 bits.
- Crowd, attacks: pi-relay alone; the clients are those of `tests/support/attacks.py`, in a process of their
  own on the same machine. For the crowd `connections_max` is raised to 1,200; in the attacks it is 100, the
  smart host is dead, and of 30 messages of a known device the slowest counts.
- Outage: nobody listens on the smart host's port while the mail comes in; after 15 s the CPU of the next 60 s
  is noted, then the relay is restarted (until READY and 220), the sink started, and everything tried at once
  (`pi-relay queue retry --all`, `postqueue -f`); the drain counts from the first arrival.
- SD card: a FUSE disk below a loop device with ext4, where a random write takes 1.5 ms, a sequential one
  0.2 ms, a read 0.6 ms, a flush 2.5 ms, one at a time, at 18 MiB/s. Queue and state of pi-relay with its log,
  and the queue of Postfix, lie on it. Bytes and flushes are the disk's own count, until 6 s after the last
  arrival.
- Limits lifted for the loads: message size (both); connections in all and from one client (pi-relay).
  Postfix is otherwise as its authors ship it, without TLS; pi-relay offers STARTTLS, which no sender uses.
- Postfix logs to the system's log socket, whose reader is charged to nobody. pi-relay's own log is charged to
  it.

{remarks}"""


if __name__ == "__main__":
    sys.exit(main())
