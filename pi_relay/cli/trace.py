"""`pi-relay trace WORD`: the life of messages, from the daily files of the mail log.

First the lines that hold the word are found, then those of the messages they name. Both are searches for
bytes in the whole file: only lines that hold what is wanted are ever parsed.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pi_relay import maillog
from pi_relay.cli.output import (
    NOT_FOUND,
    OK,
    USAGE,
    CliError,
    coloured,
    complain,
    duration_text,
    local_time,
    print_json,
    printable,
    seconds_of,
    size_text,
)
from pi_relay.cli.relay import log_directory
from pi_relay.cli.texts import t

Event = dict[str, Any]

# An event as a sentence; the keys are those of its line.
SENTENCES = {
    "accepted": "accepted {size} from {sender}: {from} to {to}",
    "refused": "refused {sender}: {reply} ({reason})",
    "rewritten": "goes to {next_hop} as {from}, not as {claimed} (changed: {rewritten})",
    "relayed": "{to}: {next_hop} took it after {delay} (attempt {attempt}): {reply}",
    "deferred": "{to}: not yet, {next_hop} said: {reply}; next try {next_attempt}",
    "failed": "{to}: failed, {next_hop} said: {reply}",
    "paused": "{next_hop} is paused until {until}: {reason}",
    "resumed": "{next_hop} is used again",
    "held": "held: {reason}",
    "released": "released",
    "deleted": "deleted: {reason}",
    "corrupt": "damaged and moved aside: {reason}",
    "alert": "alert: {reason}",
    "legacy": "{device} used {what}",
}
IDS_SEARCHED_BY_NAME_MAX = 16
_UNITS_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "The life of the messages that match a queue id, a Message-ID, an address (* is anything) or a"
        " device: who sent it, each attempt with the other side's words, its end."
        " Exit code 5 without a match."
    )
    parser.epilog = t("example:") + "\n  pi-relay trace ann@office.example --since 2d"
    parser.add_argument("word", metavar="WORD", help=t("queue id, Message-ID, address or device"))
    parser.add_argument(
        "--since",
        metavar="TIME",
        type=_duration,
        help=t("only what the log says of the last 90s, 5m, 4h, 2d"),
    )
    parser.add_argument("--json", action="store_true", help=t("a list of {time, event, ...}"))


def run(options: argparse.Namespace) -> int:
    if not options.word.strip("*"):
        raise CliError(USAGE, t("WORD is empty"))
    since = time.time() - options.since if options.since else 0.0
    events = find(log_directory(), options.word, since)
    if options.json:
        print_json(events)
    elif events:
        _print_by_message(events)
    if not events:
        complain(t("the mail log knows nothing of {word}", word=options.word))
        return NOT_FOUND
    return OK


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not found:
        raise argparse.ArgumentTypeError(t("{text!r} is no duration like 90s, 5m, 4h or 2d", text=text))
    return float(found[1]) * _UNITS_SECONDS[found[2]]


# ── finding ──────────────────────────────────────────────────────────────────────────────────────


def find(directory: Path, word: str, since: float = 0.0) -> list[Event]:
    """The events of all messages that the word matches, and what else it matches, in the order of the log."""
    words = _spellings(directory, word)
    is_address = "@" in word  # then it is the same in either case
    first_day = maillog.rfc3339(since)[:10]
    files = [path for path in maillog.log_files(directory) if maillog.file_day(path) >= first_day]
    oldest = maillog.rfc3339(since)
    wanted = _holds(words, lowered=is_address)
    lines: list[tuple[int, int, Event]] = []  # file, place in it, event
    queue_ids: set[str] = set()
    for number, path in enumerate(files):
        for place, event in _events(path, wanted, oldest, lowered=is_address):
            if not any(_is_about(event, word) for word in words):
                continue
            if "queue_id" in event:
                queue_ids.add(event["queue_id"])
            else:
                lines.append((number, place, event))
    if queue_ids:
        for number, path in enumerate(files):
            for place, event in _events(path, _names(queue_ids), oldest, among=queue_ids):
                if _is_of(event, queue_ids):
                    lines.append((number, place, event))
    lines.sort(key=lambda line: line[:2])
    return [_with_numbers(event) for _, _, event in lines]


def history(directory: Path, queue_id: str) -> list[Event]:
    """The events of one message. OSError where the log may not be read."""
    lines = (
        event
        for path in maillog.log_files(directory)
        for _, event in _events(path, _names({queue_id}), "")
        if event.get("queue_id") == queue_id
    )
    return [_with_numbers(event) for event in lines]


def _spellings(directory: Path, word: str) -> list[str]:
    """The word, and what stands in the log for it where addresses are hashed."""
    salt = maillog.read_salt(directory.parent) if "@" in word else b""
    return [word, maillog.AddressMask(salt).text(word)] if salt else [word]


def _holds(words: list[str], *, lowered: bool) -> re.Pattern[bytes]:
    """The longest part of each word that stands in a line as it is: of an address in lower case."""
    longest = [max(maillog.escaped(word).split("*"), key=len).encode() for word in words]
    return re.compile(b"|".join(re.escape(part.lower() if lowered else part) for part in longest))


def _names(queue_ids: set[str]) -> re.Pattern[bytes]:
    """Finds lines of these messages and their reports, of many all lines that name one; the id is a group."""
    if len(queue_ids) > IDS_SEARCHED_BY_NAME_MAX:
        return re.compile(rb" queue_id=(?P<id>[^ \n-]+)")
    return re.compile(b" queue_id=(?P<id>%s)" % b"|".join(map(re.escape, _roots(queue_ids))))


def _roots(queue_ids: Iterable[str]) -> set[bytes]:
    """The ids without what makes a report's of its original's."""
    return {queue_id.partition("-")[0].encode() for queue_id in queue_ids}


def _events(
    path: Path,
    wanted: re.Pattern[bytes],
    oldest: str,
    among: Iterable[str] = (),
    *,
    lowered: bool = False,
) -> Iterator[tuple[int, Event]]:
    """Place and event of the lines in which ``wanted`` is found, with an id ``among`` these.

    ``lowered``: it is looked for in the line in lower case, several times as quick as a pattern that ignores
    the case.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return  # retention was quicker
    ids = _roots(among)
    position = 0
    for found in wanted.finditer(data.lower() if lowered else data):
        if found.start() < position or (ids and found["id"] not in ids):
            continue
        start = data.rfind(b"\n", 0, found.start()) + 1
        end = data.find(b"\n", found.end())
        if end < 0:
            return  # half a line, still being written
        event = maillog.parse_line(data[start:end].decode("utf-8", "replace"))
        if event is not None and event.get("time", "") >= oldest:
            yield start, event
        position = end + 1


def _is_about(event: Event, word: str) -> bool:
    same = _sameness(word)
    named = (event.get(key, "") for key in ("queue_id", "device", "client"))
    if word in named or event.get("message_id", "").strip("<>") == word.strip("<>"):
        return True
    lists = (event.get("from", ""), event.get("to", ""), event.get("claimed", ""))
    return any(same(address) for addresses in lists for address in addresses.split(","))


@cache
def _sameness(word: str) -> Callable[[str], object]:
    pattern = ".*".join(map(re.escape, word.split("*")))
    return re.compile(pattern, re.IGNORECASE).fullmatch if word.strip("*") else lambda address: False


def _is_of(event: Event, queue_ids: set[str]) -> bool:
    """Of one of these messages, or of a report on one: its id begins with the other's."""
    queue_id = str(event.get("queue_id", ""))
    return queue_id in queue_ids or queue_id.partition("-")[0] in queue_ids


def _with_numbers(event: Event) -> Event:
    """Whole numbers where a value is one of bytes, seconds or tries."""
    for key in maillog.NUMERIC_KEYS & event.keys():
        try:
            event[key] = round(float(event[key]))
        except (ValueError, OverflowError):
            continue  # a line that somebody has edited
    return event


# ── telling ──────────────────────────────────────────────────────────────────────────────────────


def _print_by_message(events: list[Event]) -> None:
    messages: dict[str, list[Event]] = {}
    for event in events:
        messages.setdefault(event.get("queue_id", ""), []).append(event)
    for queue_id, its_events in messages.items():
        print(coloured(printable(queue_id) if queue_id else t("(no message)"), "bold"))
        print_events(its_events, indent="  ")


def print_events(events: Iterable[Event], *, indent: str = "") -> None:
    """One line an event: its time and what happened."""
    for event in events:
        print(f"{indent}{local_time(event.get('time'))}  {printable(sentence(event))}")


def sentence(event: Event) -> str:
    """An event in words; one that we do not know as its keys and values."""
    template = SENTENCES.get(event["event"])
    if template is None:
        return " ".join(
            [event["event"], *(f"{key}={value}" for key, value in event.items() if key != "event")]
        )
    words = _Words(event)
    if event["event"] == "accepted" and "rewritten" in event:
        return f"{t(template, **words)}{t(', not as {claimed} (changed: {rewritten})', **words)}"
    return t(template, **words)


class _Words(dict[str, str]):
    """The values of an event as people read them; what a line lacks is "?"."""

    def __init__(self, event: Event) -> None:
        super().__init__({key: str(value) or "-" for key, value in event.items()})
        client, device = event.get("client", ""), event.get("device", "")
        self["sender"] = f"{device} ({client})" if device else str(client)
        if isinstance(event.get("size"), int):
            self["size"] = size_text(event["size"])
        if isinstance(event.get("delay"), int):
            self["delay"] = duration_text(event["delay"])
        for key in ("next_attempt", "until"):
            if event.get(key):
                self[key] = local_time(event[key])
        for key in (
            "to",
            "from",
            "size",
            "reply",
            "reason",
            "next_hop",
            "delay",
            "attempt",
            "what",
            "until",
            "claimed",
            "rewritten",
        ):
            self.setdefault(key, "?")
        self.setdefault("next_attempt", "?")


__all__ = ["Event", "configure", "find", "history", "print_events", "run", "seconds_of", "sentence"]
