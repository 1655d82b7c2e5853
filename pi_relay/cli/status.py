"""`pi-relay status`: one screen that says whether all is well, and why not."""

from __future__ import annotations

import argparse
import time
from typing import Any

from pi_relay.cli.output import (
    OK,
    ago,
    ahead,
    coloured,
    duration_text,
    print_facts,
    print_json,
    print_table,
    printable,
    size_text,
)
from pi_relay.cli.relay import ask
from pi_relay.cli.texts import t

_HEALTH = {
    "ok": ("green", "The relay is well."),
    "degraded": ("yellow", "The relay works, but:"),
    "failing": ("red", "The relay is in trouble:"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Healthy or not, and why: the queue, each smart host's state and last error, each device's last"
        " message, disk, memory and clock. Exit code 0 while the relay runs, 4 when it does not."
    )
    parser.epilog = t("example:") + "\n  pi-relay status --json | jq .health"
    parser.add_argument("--json", action="store_true", help=t("one JSON document"))


def run(options: argparse.Namespace) -> int:
    document = ask("status")
    if options.json:
        print_json(document)
    else:
        _print(document)
    return OK


def _print(seen: dict[str, Any]) -> None:
    colour, sentence = _HEALTH[seen["health"]]
    print(coloured(t(sentence), colour))
    for reason in seen["reasons"]:
        print(f"  - {printable(reason)}")
    print()
    print_facts(_facts(seen))
    _print_smart_hosts(seen["smart_hosts"])
    _print_devices(seen["devices"])


def _facts(seen: dict[str, Any]) -> list[tuple[str, str]]:
    queue, totals = seen["queue"], seen["totals"]
    waiting = t(
        "{messages} message(s), {size}, the oldest {age} old; {held} held, {corrupt} damaged",
        messages=queue["messages"],
        size=size_text(queue["bytes"]),
        age=duration_text(queue["oldest_seconds"] or 0),
        held=queue["held"],
        corrupt=queue["corrupt"],
    )
    counted = t(
        "{accepted} accepted, {relayed} relayed, {deferred} deferred, {failed} failed, {refused} refused",
        **totals,
    )
    process = t(
        "{version}, process {pid}, up {uptime}",
        version=seen["version"],
        pid=seen["pid"],
        uptime=duration_text(seen["uptime_seconds"]),
    )
    restarted = []
    if last := seen.get("last_restart"):
        words = t("{ago}, unasked: {reason}", ago=ago(last["at"]), reason=printable(last["reason"]))
        restarted = [(t("Restart"), words)]
    return [
        (t("Relay"), process),
        *restarted,
        (t("Queue"), waiting),
        (t("Totals"), counted),
        (t("Disk"), t("{size} free", size=size_text(seen["disk"]["free_bytes"]))),
        (t("Memory"), size_text(seen["memory"]["rss_bytes"])),
        (t("Clock"), time.strftime("%Y-%m-%d %H:%M:%S %z")),
    ]


def _print_smart_hosts(smart_hosts: list[dict[str, Any]]) -> None:
    if not smart_hosts:
        return
    rows = [
        (
            hop["name"],
            t("paced" if _is_only_paced(hop) else hop["state"]),
            ago(hop["last_success_at"]),
            ahead(hop["next_attempt_at"] or hop.get("paced_until")),
            hop["last_error"] or "",
        )
        for hop in smart_hosts
    ]
    print()
    print_table((t("SMART HOST"), t("STATE"), t("LAST SUCCESS"), t("NEXT TRY"), t("LAST ERROR")), rows)
    for hop in filter(_is_only_paced, smart_hosts):
        print(t("{name} is paced: {reason}", name=hop["name"], reason=printable(hop["pace"])))


def _is_only_paced(hop: dict[str, Any]) -> bool:
    return bool(hop.get("pace")) and hop["state"] != "paused"


def _print_devices(devices: list[dict[str, Any]]) -> None:
    if not devices:
        return
    rows = [
        (
            device["name"] or t("(unknown)"),
            device["address"],
            ago(device["last_seen_at"]),
            str(device["accepted"]),
            str(device["refused"]),
        )
        for device in devices
    ]
    print()
    print_table((t("DEVICE"), t("ADDRESS"), t("LAST SEEN"), t("ACCEPTED"), t("REFUSED")), rows)
