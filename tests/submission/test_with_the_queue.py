"""The server before the real queue: what clients of all kinds were promised lies on disk as they sent it."""

from __future__ import annotations

import smtplib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pi_relay.model import IncomingMessage
from pi_relay.queue.store import Store, read_message, survey
from tests.support.processes import wait_until
from tests.support.submission_room import SUBMISSION, Room, configuration

OpenRoom = Callable[..., Room]


class Queue:
    """A room with a store behind it; ``messages`` closes the store and reads what it left on disk."""

    def __init__(self, directory: Path, open_room: OpenRoom, *, size_max_bytes: int = 200_000_000) -> None:
        self.directory = directory / "queue"
        self.directory.mkdir(mode=0o700)
        self.store = Store(
            self.directory,
            size_max_bytes=size_max_bytes,
            free_space_min_bytes=0,
            journal_size_bytes=2 * 1024 * 1024,
        )
        submission = replace(SUBMISSION, message_size_max_bytes=30_000_000)
        self.room = open_room(
            configuration(directory, submission=submission), start=self.store.open, begin=self._begin
        )
        self._open = True

    def _begin(self, declared_size_bytes: int | None, *, known_device: bool) -> IncomingMessage:
        return self.store.begin(declared_size_bytes, known_device=known_device)

    def close(self) -> None:
        if self._open:
            self._open = False
            self.room.assert_nothing_is_left()
            self.room.run(self.store.close())

    def messages(self) -> dict[str, bytes]:
        """Header and body in wire form, by queue id, read as the command line reads them."""
        self.close()
        read = {}
        for surveyed in survey(self.directory):
            envelope, content = read_message(self.directory, surveyed.queue_id)
            assert envelope.message_size_bytes == len(content)
            read[envelope.queue_id] = content
        return read


@pytest.fixture
def queue(tmp_path: Path, open_room: OpenRoom) -> Iterator[Queue]:
    queue = Queue(tmp_path, open_room)
    yield queue
    queue.close()


HEADER = (
    "From: a@office.example\r\nTo: b@other.example\r\nDate: Sun, 1 Mar 2026 09:00:00 +0900\r\nSubject: s\r\n"
)
HEADER += "Message-ID: <1@office.example>\r\n\r\n"
BODIES = {
    "empty": b"",
    "dots": b".\r\n..\r\n.x\r\n\r\n.\r\n",
    "utf-8": "スキャン\r\n".encode() * 20,
    "2 KB": b"0123456789abcdef" * 4 * 30 + b"\r\n",
    "200 KB": (b"x" * 76 + b"\r\n") * 2600,
    "5 MB": (b"y" * 76 + b"\r\n") * 64_000,
}


def stuffed(body: bytes) -> bytes:
    return b"\r\n".join(b"." + line if line[:1] == b"." else line for line in body.split(b"\r\n"))


@pytest.mark.parametrize("name", BODIES)
def test_octet_by_octet(name: str, queue: Queue) -> None:
    said = HEADER.encode() + BODIES[name]
    with smtplib.SMTP("127.0.0.1", queue.room.port, timeout=20) as client:
        client.ehlo()
        assert client.mail("a@office.example")[0] == 250
        assert client.rcpt("b@other.example")[0] == 250
        code, words = client.data(said)
    assert code == 250
    messages = queue.messages()
    content = messages[words.decode().rpartition(" ")[2]]
    assert len(messages) == 1
    trace, _, theirs = content.partition(b"From: a@office.example")
    assert trace.startswith(b"Received: ") and trace.count(b"\r\n") == trace.count(b"\r\n\t") + 1
    assert b"From: a@office.example" + theirs == stuffed(said)


@pytest.mark.parametrize("kept", [False, True])
def test_a_hundred_at_once(kept: bool, queue: Queue) -> None:
    arguments = ["-s", "20", "-m", "100", "-l", "2048", *(["-d"] if kept else [])]
    arguments += ["-f", "a@office.example", "-t", "b@other.example", f"127.0.0.1:{queue.room.port}"]
    subprocess.run(["smtp-source", *arguments], check=True, timeout=30)
    accepted = [event["queue_id"] for event in queue.room.log() if event["event"] == "accepted"]
    assert len(set(accepted)) == 100
    assert sorted(queue.messages()) == sorted(accepted)


@pytest.mark.parametrize(
    "command",
    [
        "swaks --server 127.0.0.1:{port} --from a@office.example --to b@other.example --body @{file}",
        "curl -sS smtp://127.0.0.1:{port} --mail-from a@office.example --mail-rcpt b@other.example -T {file}",
        "msmtp --host=127.0.0.1 --port={port} --from=a@office.example --tls=off --auth=off b@other.example",
    ],
    ids=["swaks", "curl", "msmtp"],
)
def test_clients(command: str, queue: Queue, tmp_path: Path) -> None:
    file = tmp_path / "message"
    file.write_text(HEADER.replace("\r\n", "\n") + "a line that is looked for\n.\n")
    words = command.format(port=queue.room.port, file=file).split()
    with file.open("rb") as content:
        done = subprocess.run(words, stdin=content, capture_output=True, timeout=30)
    assert done.returncode == 0, done
    (message,) = queue.messages().values()
    assert b"a line that is looked for\r\n" in message
    assert message.startswith(b"Received: from ")


def test_a_full_queue_says_so_and_takes_mail_again(tmp_path: Path, open_room: OpenRoom) -> None:
    queue = Queue(tmp_path, open_room, size_max_bytes=4_000_000)
    with smtplib.SMTP("127.0.0.1", queue.room.port, timeout=20) as client:
        client.ehlo()
        assert client.docmd("MAIL FROM:<a@office.example> SIZE=5000000")[0] == 452
        assert client.docmd("MAIL FROM:<a@office.example>")[0] == 250  # and then it grows beyond what is free
        client.docmd("RCPT TO:<b@other.example>")
        code, words = client.data(HEADER.encode() + b"x" * 6_000_000)
        assert (code, words[:5]) == (452, b"4.3.1")
        client.docmd("MAIL FROM:<a@office.example>")
        client.docmd("RCPT TO:<b@other.example>")
        assert client.data(HEADER.encode() + b"small\r\n")[0] == 250
    wait_until(lambda: queue.store.usage().messages == 1, 5, "the small one")
    (message,) = queue.messages().values()
    assert message.endswith(b"small\r\n")
