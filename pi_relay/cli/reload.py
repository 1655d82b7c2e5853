"""`pi-relay reload`: the running relay reads its file again; a bad one changes nothing."""

from __future__ import annotations

import argparse

from pi_relay.cli.output import OK
from pi_relay.cli.relay import ask, finding_text
from pi_relay.cli.texts import t


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Let the running relay read its configuration file again. A bad file is refused, and the last good"
        " one stays in force."
    )
    parser.epilog = t("example:") + "\n  pi-relay check && pi-relay reload"


def run(options: argparse.Namespace) -> int:
    answer = ask("reload")
    for warning in answer["warnings"]:
        print(finding_text(warning))
    print(t("The relay has read its file again."))
    return OK
