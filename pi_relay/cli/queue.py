"""`pi-relay queue ...`: look at what waits, and decide over it.

Looking works also while the relay is down, then from the queue's folder; deciding needs the relay.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pi_relay.cli.output import (
    FAILED,
    NOT_FOUND,
    OK,
    USAGE,
    CliError,
    ago,
    ahead,
    coloured,
    complain,
    duration_text,
    local_time,
    print_json,
    print_json_list,
    print_table,
    printable,
    reply_text,
    seconds_of,
    size_text,
)
from pi_relay.cli.relay import ask, ask_each, configuration, is_running, log_directory
from pi_relay.cli.texts import t

STATES = ("queued", "deferred", "held", "attempting")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Look at what waits, and decide over it. list, show and export work also while the relay is down."
    )
    parser.epilog = t("example:") + "\n  pi-relay queue list --state deferred"
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title=t("actions"))
    for name, (summary, example, add_arguments, _) in ACTIONS.items():
        action = actions.add_parser(name, help=t(summary), formatter_class=parser.formatter_class)
        action.description = t(summary)
        action.epilog = f"{t('example:')}\n  pi-relay queue {name} {example}"
        action.add_argument(
            "-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help=t("the configuration file")
        )
        add_arguments(action)


def run(options: argparse.Namespace) -> int:
    act = ACTIONS[options.action][3]
    return act(options)


# ── arguments ────────────────────────────────────────────────────────────────────────────────────


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", choices=STATES, default="", help=t("only messages in this state"))
    parser.add_argument("--device", metavar="D", default="", help=t("only those of this device or address"))
    parser.add_argument(
        "--recipient",
        metavar="PATTERN",
        default="",
        help=t("only those to a matching address; * is anything"),
    )
    parser.add_argument("--json", action="store_true", help=t("one JSON document"))


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue_ids", metavar="ID", nargs="+", help=t("a queue id"))
    parser.add_argument("--message", action="store_true", help=t("the message itself, in its place"))
    parser.add_argument("--json", action="store_true", help=t("one JSON document"))


def _retry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue_ids", metavar="ID", nargs="*", help=t("a queue id"))
    parser.add_argument("--all", action="store_true", help=t("every message that waits, and lift all pauses"))


def _hold_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue_ids", metavar="ID", nargs="+", help=t("a queue id"))


def _release_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue_ids", metavar="ID", nargs="*", help=t("a queue id"))
    parser.add_argument("--device", metavar="D", default="", help=t("every held message of this device"))


def _delete_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue_ids", metavar="ID", nargs="+", help=t("a queue id"))
    parser.add_argument("--bounce", action="store_true", help=t("tell the senders by a report"))
    parser.add_argument("--yes", action="store_true", help=t("do not ask"))


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue_ids", metavar="ID", nargs="+", help=t("a queue id"))


# ── looking ──────────────────────────────────────────────────────────────────────────────────────


def _list(options: argparse.Namespace) -> int:
    wanted = {"state": options.state, "device": options.device, "recipient": options.recipient}
    messages = ask_each("queue_list", **wanted) if is_running() else _from_folder(options, wanted)
    if options.json:
        print_json_list(messages)
    else:
        _print_messages(list(messages))
    return OK


def _from_folder(options: argparse.Namespace, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
    from pi_relay.control import is_wanted, message_document, stored_state
    from pi_relay.queue.store import survey

    directory = configuration(options).queue.directory
    print(t("(the relay is not running: this is what lies in {folder})", folder=directory), file=sys.stderr)
    if not directory.exists():
        return  # the relay has never run
    for found in survey(directory):
        if found.envelope is None:
            complain(t("{name} is damaged: {reason}", name=found.queue_id, reason=found.corrupt))
            continue
        document = message_document(found.envelope, stored_state(found.envelope))
        if is_wanted(document, **wanted):
            yield document


def _print_messages(messages: list[dict[str, Any]]) -> None:
    if not messages:
        print(t("Nothing waits."))
        return
    headings = ("ID", t("STATE"), t("SIZE"), t("AGE"), t("NEXT TRY"), t("FROM"), t("TO"))
    print_table(headings, [_message_row(message) for message in messages])
    total = size_text(sum(message["size_bytes"] for message in messages))
    print(t("{count} message(s), {size}", count=len(messages), size=total))


def _message_row(message: dict[str, Any]) -> tuple[str, ...]:
    pending = [one for one in message["recipients"] if one["status"] == "pending"]
    to = ", ".join(one["forward_path"] for one in pending[:3])
    if len(pending) > 3:
        to += t(" and {count} more", count=len(pending) - 3)
    last_reply = next((one["last_reply"] for one in pending if one["last_reply"]), None)
    waits = message["state"] in ("queued", "deferred")
    return (
        message["queue_id"],
        t(message["state"]),
        size_text(message["size_bytes"]),
        duration_text(_now() - seconds_of(message["accepted_at"])),
        ahead(message["next_attempt_at"]) if waits else "-",
        f"{message['reverse_path'] or '<>'}" + (f" ({message['device']})" if message["device"] else ""),
        to + (f": {reply_text(last_reply)}" if last_reply else ""),
    )


def _show(options: argparse.Namespace) -> int:
    if options.message:
        return _export(options)
    running = is_running()
    shown = []
    for queue_id in options.queue_ids:
        document = ask("queue_show", queue_id=queue_id) if running else _stored(options, queue_id)[0]
        document["history"] = _history(queue_id)
        shown.append(document)
    if options.json:
        print_json(shown[0] if len(shown) == 1 else shown)
    else:
        for document in shown:
            _print_message(document)
    return OK


def _history(queue_id: str) -> list[dict[str, Any]]:
    from pi_relay.cli import trace

    try:
        return trace.history(log_directory(), queue_id)
    except OSError as problem:
        complain(t("the mail log cannot be read: {problem}", problem=problem))
        return []


def _print_message(message: dict[str, Any]) -> None:
    from pi_relay.cli import trace

    print(coloured(message["queue_id"], "bold"))
    sender = f"{message['device']} ({message['client']})" if message["device"] else message["client"]
    facts = [
        (t("state"), t(message["state"])),
        (t("from"), message["reverse_path"] or "<>"),
        (t("submitted by"), sender),
        (t("accepted"), f"{local_time(message['accepted_at'])} ({ago(message['accepted_at'])})"),
        (t("size"), size_text(message["size_bytes"])),
        (t("attempts"), str(message["attempts"])),
        (t("next try"), ahead(message["next_attempt_at"])),
    ]
    for one in message["recipients"]:
        words = f"  {reply_text(one['last_reply'])}" if one["last_reply"] else ""
        facts.append((t("to"), f"{one['forward_path']}  {t(one['status'])}{words}"))
    print_table((t("WHAT"), ""), facts, indent="  ")
    trace.print_events(message["history"], indent="  ")


def _export(options: argparse.Namespace) -> int:
    running = is_running()
    for queue_id in options.queue_ids:
        pieces = _from_relay(queue_id) if running else iter([_stored(options, queue_id)[1]])
        _write_unstuffed(pieces)
    return OK


def _from_relay(queue_id: str) -> Iterator[bytes]:
    for item in ask_each("queue_message", queue_id=queue_id):
        yield base64.b64decode(item["data"])


def _stored(options: argparse.Namespace, queue_id: str) -> tuple[dict[str, Any], bytes]:
    """A message from the queue's folder: its document, and its bytes in wire form."""
    from pi_relay.control import message_document, stored_state
    from pi_relay.queue.store import CorruptMessage, read_message

    try:
        envelope, data = read_message(configuration(options).queue.directory, queue_id)
    except (KeyError, FileNotFoundError) as problem:
        raise CliError(NOT_FOUND, _unknown(queue_id)) from problem
    except CorruptMessage as problem:
        raise CliError(FAILED, t("{name} is damaged: {reason}", name=queue_id, reason=problem)) from problem
    return message_document(envelope, stored_state(envelope)), data


def unstuffed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Wire form without its dot-stuffing (RFC 5321 section 4.5.2), wherever the pieces are cut."""
    held_back = b"\r\n"  # a line end before the first line, which is not given out
    skip = len(held_back)
    for piece in pieces:
        data = held_back + piece
        # What could be the beginning of CRLF "." waits for the next piece.
        end = len(data) - next((size for size in (2, 1) if data.endswith(b"\r\n"[:size])), 0)
        held_back = data[end:]
        done = data[:end].replace(b"\r\n.", b"\r\n")
        yield done[skip:]
        skip = max(0, skip - len(done))
    yield held_back[skip:]


def _write_unstuffed(pieces: Iterable[bytes]) -> None:
    write = _write_printable if sys.stdout.isatty() else sys.stdout.buffer.write
    for piece in unstuffed(pieces):
        write(piece)
    sys.stdout.flush()


def _write_printable(data: bytes) -> None:
    """A stranger's bytes must not steer the terminal."""
    for line in data.decode("utf-8", "backslashreplace").splitlines(keepends=True):
        text = line.rstrip("\r\n")
        sys.stdout.write(printable(text.replace("\t", "    ")) + ("\n" if line != text else ""))


# ── deciding ─────────────────────────────────────────────────────────────────────────────────────


def _retry(options: argparse.Namespace) -> int:
    _want_one(options.queue_ids, options.all, "ID", "--all")
    chosen = {"all": True} if options.all else {"ids": options.queue_ids}
    return _report(ask("queue_retry", **chosen), "{count} message(s) will be tried at once")


def _hold(options: argparse.Namespace) -> int:
    return _report(ask("queue_hold", ids=options.queue_ids), "{count} message(s) held")


def _release(options: argparse.Namespace) -> int:
    _want_one(options.queue_ids, options.device, "ID", "--device")
    chosen = {"device": options.device} if options.device else {"ids": options.queue_ids}
    return _report(ask("queue_release", **chosen), "{count} message(s) released")


def _delete(options: argparse.Namespace) -> int:
    if not options.yes and sys.stdin.isatty():
        ask("version")  # no question to somebody whose answer nobody can follow
        question = t("Delete {count} message(s) for ever? [y/N] ", count=len(options.queue_ids))
        if input(question).strip().lower() not in ("y", "yes"):
            print(t("Nothing was deleted."))
            return FAILED
    answer = ask("queue_delete", ids=options.queue_ids, bounce=options.bounce)
    return _report(answer, "{count} message(s) deleted")


def _want_one(queue_ids: list[str], alternative: object, *names: str) -> None:
    if bool(queue_ids) == bool(alternative):
        raise CliError(USAGE, t("either {one} or {other} is needed", one=names[0], other=names[1]))


def _report(answer: dict[str, list[str]], sentence: str) -> int:
    print(t(sentence, count=len(answer["done"])))
    for queue_id in answer["unknown"]:
        complain(_unknown(queue_id))
    return NOT_FOUND if answer["unknown"] else OK


def _unknown(queue_id: str) -> str:
    return t("there is no message {queue_id} in the queue", queue_id=queue_id)


def _now() -> float:
    import time

    return time.time()


# Action -> summary, example, its arguments, what it does.
ACTIONS: dict[
    str,
    tuple[str, str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]],
] = {
    "list": ("what waits", "--state deferred --recipient '*@office.example'", _list_arguments, _list),
    "show": ("envelope and history of a message, or the message itself", "ID", _show_arguments, _show),
    "retry": ("try messages at once", "--all", _retry_arguments, _retry),
    "hold": ("keep messages until they are released", "ID", _hold_arguments, _hold),
    "release": ("let held messages go", "--device copier-2f", _release_arguments, _release),
    "delete": ("delete messages for ever", "--bounce ID", _delete_arguments, _delete),
    "export": ("the message as it would be sent, on stdout", "ID > file.eml", _export_arguments, _export),
}
