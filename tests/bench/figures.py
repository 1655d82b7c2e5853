"""What is measured, what must be reached, and the table that says whether it was."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from tests.bench import work
from tests.bench.systems import Contestant
from tests.bench.work import Measurements, Scale
from tests.support.attacks import ATTACKS


class Against(Enum):
    """What a target is compared with."""

    TIMES = "{:g} x"  # ours / theirs, at least
    SHARE = "{:.2g} x"  # ours / theirs, at most
    ITSELF = "{:g}"  # ours, at most
    NOTHING = ""  # told, not judged


@dataclass(frozen=True, slots=True)
class Figure:
    measurement: str
    label: str
    against: Against = Against.NOTHING
    must: float = 0
    aim: float = 0


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    title: str
    run: Callable[[Contestant, Scale], Measurements]
    figures: tuple[Figure, ...]
    rounds: Callable[[Scale], int] = lambda scale: scale.rounds
    needs_card: bool = False
    alone: bool = False  # of pi-relay only


ROWS = (
    Row(
        "relay",
        "2 KB, 20 sessions, one message a connection",
        work.relay,
        (
            Figure("rate", "relayed /s", Against.TIMES, 1.5, 3),
            Figure("cpu_ms", "CPU ms a message", Against.SHARE, 1 / 2, 1 / 4),
            Figure("connections", "connections to the smart host, per 1,000", Against.ITSELF, 20, 12),
        ),
    ),
    Row(
        "relay-kept",
        "2 KB, 20 sessions, connections kept",
        work.relay_kept,
        (
            Figure("rate", "relayed /s", Against.TIMES, 2, 4),
            Figure("cpu_ms", "CPU ms a message", Against.SHARE, 1 / 3, 1 / 6),
            Figure("connections", "connections to the smart host, per 1,000", Against.ITSELF, 20, 12),
        ),
    ),
    Row(
        "policy",
        "2 KB, 20 sessions, kept, an office's rules",
        work.policy,
        (
            Figure("times_more", "CPU a message, with rules to without", Against.ITSELF, 1.1, 1.02),
            Figure("cpu_ms", "CPU ms a message"),
        ),
        alone=True,
    ),
    Row(
        "accept",
        "2 KB, one at a time",
        work.accept,
        (Figure("accept_ms", "connect to 250, ms", Against.SHARE, 1, 1 / 2),),
    ),
    Row(
        "large",
        "25 MB, 4 sessions",
        work.large,
        (
            Figure("mb_per_second", "relayed MB/s", Against.TIMES, 1.5, 3),
            Figure("cpu_ms", "CPU ms a message"),
        ),
    ),
    Row(
        "dkim",
        "25 MB, 4 sessions, signed (DKIM)",
        work.signed,
        (
            Figure("mb_per_second", "relayed MB/s"),
            Figure("times_slower", "unsigned MB/s to signed", Against.ITSELF, 2, 1.25),
            Figure("cpu_ms", "CPU ms a message"),
        ),
        alone=True,
    ),
    Row(
        "direct",
        "2 KB to 200 domains, straight to their MX hosts",
        work.direct,
        (
            Figure("rate", "relayed /s", Against.TIMES, 1, 2),
            Figure("cpu_ms", "CPU ms a message"),
            Figure("pss_mb", "PSS, MB", Against.ITSELF, 40, 30),
            Figure("queries", "DNS queries a domain (3 questions)", Against.ITSELF, 3, 3),
            Figure("connections", "connections to MX hosts, per 1,000", Against.SHARE, 1, 1 / 2),
        ),
    ),
    Row(
        "memory",
        "idle, then 20 uploads of 25 MB at once",
        work.memory,
        (
            Figure("idle_pss_mb", "idle PSS, MB", Against.ITSELF, 30, 24),
            Figure("peak_rss_mb", "largest RSS, MB", Against.ITSELF, 64, 40),
        ),
    ),
    Row(
        "crowd",
        "1,000 idle connections, in clear",
        work.crowd,
        (Figure("pss_mb", "PSS, MB", Against.ITSELF, 60, 40),),
        alone=True,
    ),
    Row(
        "attacks",
        "a device's message during an attack",
        work.attacks,
        tuple(Figure(f"{name}_ms", f"{name}: slowest, ms", Against.ITSELF, 1000, 100) for name in ATTACKS),
        rounds=lambda scale: scale.outage_rounds,
        alone=True,
    ),
    Row(
        "outage",
        "10,000 queued, smart host down",
        work.outage,
        (
            Figure("enqueue_rate", "accepted /s"),
            Figure("idle_cpu_percent", "idle CPU, % of a core", Against.ITSELF, 0.1, 0),
            Figure("restart_seconds", "restart to READY and 220, s", Against.ITSELF, 1, 0.4),
            Figure("pss_mb", "PSS, MB", Against.ITSELF, 40, 30),
            Figure("drain_rate", "drain /s", Against.TIMES, 1.5, 3),
        ),
        rounds=lambda scale: scale.outage_rounds,
    ),
    Row(
        "sdcard",
        "2 KB, 20 sessions, on an SD card",
        work.sdcard,
        (
            Figure("rate", "relayed /s", Against.TIMES, 1.5, 2.5),
            Figure("device_kb", "KB written a message", Against.SHARE, 1 / 2, 1 / 3),
            Figure("device_flushes", "flushes a message", Against.SHARE, 1 / 2, 1 / 3),
            Figure("accept_ms", "one at a time: connect to 250, ms", Against.SHARE, 1 / 2, 1 / 3),
        ),
        needs_card=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Medians of one figure, and what they come to."""

    row: Row
    figure: Figure
    ours: float
    theirs: float  # not a number where there is no other

    @property
    def judged(self) -> float:
        return self.ours if self.figure.against is Against.ITSELF else self.ours / self.theirs

    def reaches(self, target: float) -> bool:
        # Two digits behind the point are what a table shows, and as much as such a measurement is worth.
        judged = round(self.judged, 2)
        return judged >= target if self.figure.against is Against.TIMES else judged <= round(target, 2)

    @property
    def verdict(self) -> str:
        if self.figure.against is Against.NOTHING:
            return "-"
        if self.reaches(self.figure.aim):
            return "aim"
        return "must" if self.reaches(self.figure.must) else "MISSED"


def outcomes(row: Row, ours: Sequence[Measurements], theirs: Sequence[Measurements]) -> list[Outcome]:
    return [
        Outcome(row, figure, _median(ours, figure.measurement), _median(theirs, figure.measurement))
        for figure in row.figures
    ]


def table(results: Sequence[Outcome], names: tuple[str, str]) -> list[list[str]]:
    """Rows of cells, the heading first."""
    lines = [["work", "measured", *names, "ratio", "must", "aim", "met"]]
    previous = None
    for outcome in results:
        figure = outcome.figure
        lines.append(
            [
                outcome.row.title if outcome.row is not previous else "",
                figure.label,
                _number(outcome.ours),
                _number(outcome.theirs),
                _number(outcome.ours / outcome.theirs if outcome.theirs else math.nan),
                _target(figure, figure.must),
                _target(figure, figure.aim),
                outcome.verdict,
            ]
        )
        previous = outcome.row
    return lines


def as_text(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def as_markdown(lines: Sequence[Sequence[str]]) -> str:
    heading, *rest = lines
    rule = ["---"] * len(heading)
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, rule, *rest))


def _median(rounds: Sequence[Mapping[str, float]], measurement: str) -> float:
    return statistics.median(measurements[measurement] for measurements in rounds) if rounds else math.nan


def _target(figure: Figure, target: float) -> str:
    return figure.against.value.format(target)


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
