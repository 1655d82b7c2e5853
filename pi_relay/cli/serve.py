"""`pi-relay serve`: the relay itself, in the foreground."""

from __future__ import annotations

import argparse
from pathlib import Path

from pi_relay.cli.texts import t


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Run the relay in the foreground. SIGTERM: finish what is under way (10 s at most), keep the rest."
        " SIGHUP, or pi-relay reload: read the file again; a bad one is refused and the last good one kept."
    )
    parser.epilog = t("example:") + "\n  pi-relay -c ./pi-relay.toml serve"


def run(options: argparse.Namespace) -> int:
    from pi_relay import daemon

    return daemon.run(Path(options.config))
