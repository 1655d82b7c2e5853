"""How verbs reach the relay and its folders: the control socket, the configuration, the state folder.

Rules: trouble comes out as CliError with the exit code of its kind.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi_relay import control
from pi_relay.cli.output import (
    BAD_CONFIGURATION,
    FAILED,
    NOT_FOUND,
    NOT_RUNNING,
    USAGE,
    CliError,
    printable,
)
from pi_relay.cli.texts import t
from pi_relay.folders import runtime_directory, state_directory

if TYPE_CHECKING:
    from pi_relay.config import Config

_EXIT_CODES = {"usage": USAGE, "bad_configuration": BAD_CONFIGURATION, "not_found": NOT_FOUND}


def ask(verb: str, *, timeout_seconds: float = control.ANSWER_TIMEOUT_SECONDS, **arguments: object) -> Any:
    """One answer of the running relay."""
    try:
        return control.ask(socket_path(), verb, arguments, timeout_seconds=timeout_seconds)
    except (control.ControlError, control.NotRunning, OSError) as problem:
        raise _in_words(problem) from problem


def ask_each(verb: str, **arguments: str) -> Iterator[Any]:
    """A streamed answer of the running relay."""
    try:
        yield from control.ask_each(socket_path(), verb, arguments)
    except (control.ControlError, control.NotRunning, OSError) as problem:
        raise _in_words(problem) from problem


def is_running() -> bool:
    """Whether anybody answers at the socket."""
    try:
        ask("version")
    except CliError as error:
        if error.exit_code == NOT_RUNNING:
            return False
        raise
    return True


def _in_words(problem: Exception) -> CliError:
    match problem:
        case control.ControlError(code=code, message=message, hint=hint, details=details):
            findings = details if isinstance(details, list) else []
            lines = [message, *map(finding_text, findings)]
            return CliError(_EXIT_CODES.get(code, FAILED), "\n".join(lines), hint)
        case control.NotRunning():
            return CliError(
                NOT_RUNNING,
                t("the relay is not running (nobody answers at {path})", path=socket_path()),
                t("start it: systemctl start pi-relay, or pi-relay serve"),
            )
        case PermissionError():
            return CliError(
                FAILED,
                t("no permission to speak to the relay at {path}", path=socket_path()),
                t("use sudo, or let an administrator add you to the group pi-relay"),
            )
        case TimeoutError():
            return CliError(
                FAILED, t("the relay does not answer"), t("pi-relay status; its log may say more")
            )
        case _:
            return CliError(FAILED, f"{socket_path()}: {problem}")


def socket_path() -> Path:
    return runtime_directory() / control.SOCKET_NAME


def log_directory() -> Path:
    """The folder of the daily files of the mail log."""
    return state_directory() / "log"


def configuration(options: argparse.Namespace) -> Config:
    """The configuration of the file; one with errors ends the command."""
    from pi_relay.config import check

    config, findings = check(Path(options.config))
    if config is None:
        errors = [control.finding_document(finding) for finding in findings if finding.severity == "error"]
        text = "\n".join(finding_text(error, options.config) for error in errors)
        raise CliError(BAD_CONFIGURATION, text, t("pi-relay check names every error and warning"))
    return config


def finding_text(finding: dict[str, Any], file: str = "") -> str:
    """``FILE:LINE: key: what is wrong``, and on the next line the hint."""
    where = ":".join(str(part) for part in (file, finding["line"]) if part)
    mark = t("warning") if finding["severity"] == "warning" else ""
    words = printable(": ".join(part for part in (where, finding["key"], mark, finding["message"]) if part))
    return f"{words}\n{t('hint: {hint}', hint=printable(finding['hint']))}" if finding["hint"] else words
