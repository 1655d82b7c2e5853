"""`pi-relay check`: every error and warning of the file at once; the relay need not run."""

from __future__ import annotations

import argparse
from pathlib import Path

from pi_relay.cli.output import BAD_CONFIGURATION, OK, print_json
from pi_relay.cli.relay import finding_text
from pi_relay.cli.texts import t
from pi_relay.control import finding_document


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Name every error and warning of the configuration file at once, each with file, line, key, and"
        " what to do. Exit code 3 where there is an error, 0 otherwise."
    )
    parser.epilog = t("example:") + "\n  pi-relay -c ./pi-relay.toml check"
    parser.add_argument(
        "--json", action="store_true", help=t("a list of {line, key, severity, message, hint}")
    )


def run(options: argparse.Namespace) -> int:
    from pi_relay.config import check

    _, found = check(Path(options.config))
    findings = [finding_document(finding) for finding in found]
    if options.json:
        print_json(findings)
    else:
        _print(findings, options.config)
    return BAD_CONFIGURATION if _count(findings, "error") else OK


def _print(findings: list[dict[str, object]], file: str) -> None:
    for finding in findings:
        print(finding_text(finding, file))
    print(
        t(
            "{file}: {errors} error(s), {warnings} warning(s)",
            file=file,
            errors=_count(findings, "error"),
            warnings=_count(findings, "warning"),
        )
    )


def _count(findings: list[dict[str, object]], severity: str) -> int:
    return sum(finding["severity"] == severity for finding in findings)
