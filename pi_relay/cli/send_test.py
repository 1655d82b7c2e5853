"""`pi-relay send-test ADDRESS`: a message through the running relay, and what becomes of it, step by step."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from pi_relay.cli.output import (
    FAILED,
    NOT_FOUND,
    OK,
    CliError,
    ahead,
    coloured,
    printable,
    reply_text,
    size_text,
)
from pi_relay.cli.relay import ask
from pi_relay.cli.texts import t

# How long one question may wait in the relay; the next follows at once.
QUESTION_WAIT_SECONDS = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Send a test message through the running relay and wait for its fate, telling each step."
        " Exit code 1 when it failed, or was not relayed in time."
    )
    parser.epilog = t("example:") + "\n  pi-relay send-test ann@office.example --via isp"
    parser.add_argument("address", metavar="ADDRESS", help=t("where it goes"))
    parser.add_argument(
        "--via", metavar="SMART_HOST", default="", help=t("by this smart host, whatever the routes say")
    )
    parser.add_argument(
        "--wait", metavar="SECONDS", type=_seconds, default=60.0, help=t("how long to wait (default: 60)")
    )


def run(options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.wait
    sent = ask("send_test", address=options.address, via=options.via)
    queue_id = sent["queue_id"]
    _tell(
        t(
            "queued as {queue_id}: {size}, from {sender} to {to}",
            queue_id=queue_id,
            size=size_text(sent["size_bytes"]),
            sender=sent["from"],
            to=options.address,
        )
    )
    return _follow(queue_id, deadline)


def _seconds(text: str) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(t("{text!r} is no number of seconds", text=text))
    return seconds


def _follow(queue_id: str, deadline: float) -> int:
    seen_attempts = -1
    while True:
        fate = _fate(queue_id, seen_attempts, deadline)
        match fate["state"]:
            case "relayed":
                _tell(coloured(t("relayed: {next_hop} said: {reply}", **_words(fate)), "green"))
                return OK
            case "failed":
                _tell(coloured(t("failed: {next_hop} said: {reply}", **_words(fate)), "red"))
                return FAILED
            case "held":
                _tell(t("held: pi-relay queue show {queue_id} says why", queue_id=queue_id))
                return FAILED
        if fate["attempts"] > max(seen_attempts, 0) and fate["state"] == "deferred":
            _tell(t("attempt {attempts}: {next_hop} said: {reply}; next try {next_try}", **_words(fate)))
        seen_attempts = max(seen_attempts, fate["attempts"])
        if time.monotonic() >= deadline:
            _tell(
                t("It still waits, and will be tried on: pi-relay queue show {queue_id}", queue_id=queue_id)
            )
            return FAILED


def _fate(queue_id: str, seen_attempts: int, deadline: float) -> dict[str, Any]:
    wait_seconds = min(QUESTION_WAIT_SECONDS, max(0.0, deadline - time.monotonic()))
    try:
        fate: dict[str, Any] = ask(
            "fate",
            timeout_seconds=wait_seconds + 30,
            queue_id=queue_id,
            seen_attempts=seen_attempts,
            wait_seconds=wait_seconds,
        )
    except CliError as error:
        if error.exit_code == NOT_FOUND:
            hint = t("pi-relay trace {queue_id} tells it", queue_id=queue_id)
            raise CliError(FAILED, t("its fate is no longer known"), hint) from error
        raise
    return fate


def _words(fate: dict[str, Any]) -> dict[str, object]:
    return {
        "attempts": fate["attempts"],
        "next_hop": printable(fate["next_hop"] or "?"),
        "reply": printable(reply_text(fate["reply"]) or "?"),
        "next_try": ahead(fate["next_attempt_at"]),
    }


def _tell(step: str) -> None:
    print(step)
    sys.stdout.flush()
