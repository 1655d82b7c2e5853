"""`pi-relay devices`: who has submitted, and what would help those who were refused; and `devices add`."""

from __future__ import annotations

import argparse
from typing import Any

from pi_relay.cli.output import OK, ago, coloured, print_json_list, print_table, printable
from pi_relay.cli.relay import ask_each
from pi_relay.cli.texts import t


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Who has submitted since the start of the relay, known or not: address, mac, last message, and where"
        " it was refused the reason and the lines of the file that would mend it. Exit code 4 when the relay"
        " does not run."
    )
    parser.epilog = t("example:") + "\n  pi-relay devices --json"
    parser.add_argument("--json", action="store_true", help=t("one JSON document"))
    actions = parser.add_subparsers(dest="action", metavar="[add]", title=t("actions"))
    add = actions.add_parser("add", help=t(ADD), formatter_class=parser.formatter_class)
    _configure_add(add)


ADD = "add a device to the file, and print what to type into its menu"


def _configure_add(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Add a device to the configuration file, whose comments and order stay, and print the sheet to type"
        " into its menu. It is known by an address or a mac, or by a password that is made for it, or by both"
        " together."
    )
    parser.epilog = t("example:") + "\n  pi-relay devices add copier-2f --address 192.168.1.23"
    parser.add_argument(
        "-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help=t("the configuration file")
    )
    parser.add_argument("name", metavar="NAME", help=t("its name in the log and in status"))
    parser.add_argument("--address", metavar="A", default="", help=t("its address, or a network"))
    parser.add_argument("--mac", metavar="M", default="", help=t("its mac address, for a device on DHCP"))
    parser.add_argument("--login", action="store_true", help=t("make a user name and a password for it"))
    # Given before "add" or behind it.
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=t("one JSON document"))


def run(options: argparse.Namespace) -> int:
    if options.action == "add":
        from pi_relay.cli import add_device

        return add_device.run(options)
    devices = ask_each("devices")
    if options.json:
        print_json_list(devices)
    else:
        _print(list(devices), options.config)
    return OK


def _print(devices: list[dict[str, Any]], file: str) -> None:
    if not devices:
        print(t("Nobody has submitted yet, and the file has no devices."))
        return
    rows = [
        (
            device["name"] or t("(unknown)"),
            device["address"] or "-",
            device["mac"] or "-",
            ago(device["last_seen_at"]),
            str(device["accepted"]),
            str(device["refused"]),
        )
        for device in devices
    ]
    print_table(
        (t("DEVICE"), t("ADDRESS"), t("MAC"), t("LAST SEEN"), t("ACCEPTED"), t("REFUSED")),
        rows,
    )
    for device in devices:
        if device["last_reply"]:
            _print_refusal(device)
    if any(device["mend"] for device in devices):
        print()
        print(t("The lines go into {file}; then: pi-relay check && pi-relay reload", file=file))


def _print_refusal(device: dict[str, Any]) -> None:
    who = " ".join(part for part in (device["name"], device["address"]) if part) or t("(unknown)")
    print()
    print(coloured(printable(t("{who}: {reply}", who=who, reply=device["last_reply"])), "bold"))
    if device["last_reason"] and device["last_reason"] not in device["last_reply"]:
        print(f"  {printable(device['last_reason'])}")
    for line in device["mend"].split("\n") if device["mend"] else ():
        comment = line.removeprefix("# ")
        print(f"    {printable(line if comment == line else f'# {t(comment)}')}")
