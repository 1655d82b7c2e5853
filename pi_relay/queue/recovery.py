"""What a queue folder holds: for the store at its start, and for the command line without the lock.

Purpose: read journal and files, once each, and say what is live, unfinished or damaged. Rules: nothing is
changed here, and nothing that the folder holds raises; where both know an id, the file counts, for it was
complete before the journal forgot the message. It must not know who asks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pi_relay.model import Envelope, FileSpan
from pi_relay.queue import files, ids
from pi_relay.queue.envelopes import Entry, decode_entry
from pi_relay.queue.files import PART_SUFFIX, Damaged
from pi_relay.queue.journal import Replay, read_record, replay_journal

JOURNAL_NAME = "journal"
CORRUPT_NAME = "corrupt"


class CorruptMessage(Exception):
    """A message that cannot be read; the text says why. The store moves it to corrupt/."""


class ScannedFiles(NamedTuple):
    entries: dict[str, Entry]
    unfinished: list[str]  # names
    damaged: dict[str, str]  # {name: reason}


@dataclass(frozen=True, slots=True)
class SurveyedMessage:
    """A message found on the disk. ``corrupt`` says what is wrong where there is no envelope."""

    queue_id: str
    envelope: Envelope | None
    corrupt: str = ""


def scan_files(directory: Path, directory_fd: int) -> ScannedFiles:
    """Read the tail of every message file. Names that are no queue id are left alone."""
    scanned = ScannedFiles({}, [], {})
    for name in _names(directory):
        if name.endswith(PART_SUFFIX):
            scanned.unfinished.append(name)
            continue
        if not ids.ACCEPTED.fullmatch(name):
            continue
        try:
            found = files.read_record(name, directory_fd)
            entry = decode_entry(found.envelope)
            if entry.queue_id != name:
                raise Damaged(f"holds the envelope of {entry.queue_id}")
        except (Damaged, ValueError, OSError) as error:
            scanned.damaged[name] = str(error)
            continue
        entry.message_crc = found.message_crc
        scanned.entries[name] = entry
    return scanned


def highest_number(directory: Path) -> int:
    """The highest number of an id that a file of the queue bears, those in corrupt/ included; 0 for none."""
    names = (*_names(directory), *_names(directory / CORRUPT_NAME))
    return max(map(ids.number_of, names), default=0)


def _names(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as found:
            return sorted(entry.name for entry in found if entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        return []


def survey(directory: Path) -> list[SurveyedMessage]:
    """Every message of a queue, oldest id first, while the relay is down or runs. Raises OSError.

    On a running queue it may show what has just been relayed.
    """
    found: dict[str, SurveyedMessage] = {}
    with _journal(directory) as (_, replay):  # before the files: messages move from here to there
        for record in replay.records.values():
            found[record.queue_id] = _surveyed(record.queue_id, record.encoded)
        for damaged in replay.damaged:
            found[damaged.name] = SurveyedMessage(damaged.name, None, damaged.reason)
    for name in _names(directory):
        if not ids.ACCEPTED.fullmatch(name):
            continue
        try:
            found[name] = _surveyed(name, files.read_record(str(directory / name)).envelope)
        except FileNotFoundError:
            found.pop(name, None)  # relayed meanwhile
        except (Damaged, OSError) as error:
            found[name] = SurveyedMessage(name, None, str(error))
    for name in _names(directory / CORRUPT_NAME):
        found.setdefault(name, SurveyedMessage(name, None, f"moved to {CORRUPT_NAME}/"))
    return [found[name] for name in sorted(found)]


def _surveyed(queue_id: str, encoded: bytes) -> SurveyedMessage:
    try:
        return SurveyedMessage(queue_id, files.decode_or_damaged(encoded))
    except Damaged as error:
        return SurveyedMessage(queue_id, None, str(error))


def read_message(directory: Path, queue_id: str) -> tuple[Envelope, bytes]:
    """A message of a queue, in wire form, while the relay is down or runs.

    Raises KeyError (unknown), CorruptMessage, OSError.
    """
    if not ids.ACCEPTED.fullmatch(queue_id):
        raise KeyError(queue_id)
    try:
        with _journal(directory) as (fd, replay):
            record = replay.records.get(queue_id)
            journalled = None if record is None else read_record(fd, record)
        try:
            return _read_file(str(directory / queue_id))
        except FileNotFoundError:
            if journalled is None:
                raise KeyError(queue_id) from None
        return files.decode_or_damaged(journalled[0]), journalled[1]
    except Damaged as error:
        raise CorruptMessage(str(error)) from error


def _read_file(path: str) -> tuple[Envelope, bytes]:
    envelope, message = files.read_message(path, check=True)
    body = message.body
    if isinstance(body, FileSpan):
        with Path(path).open("rb") as file:
            file.seek(body.offset_bytes)
            body = file.read(body.length_bytes)
    return envelope, message.header + body


@contextmanager
def _journal(directory: Path) -> Iterator[tuple[int, Replay]]:
    try:
        fd = os.open(directory / JOURNAL_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield -1, Replay({}, [], [], 0)
        return
    try:
        yield fd, replay_journal(fd)
    finally:
        os.close(fd)
