"""Devices that submit without pause and note what they were promised: each message has a token of its own."""

from __future__ import annotations

import itertools
import random
import re
import smtplib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

TOKEN = re.compile(rb"token-\d+-\d+-end")


@dataclass(frozen=True, slots=True)
class Acknowledged:
    token: bytes
    queue_id: str
    position: int  # what ``position`` said right after the 250


class Senders:
    """Threads that submit as long as the context lasts. A relay that is not there is tried again.

    One message in twenty has 300 KB, the others 2 KB; a connection carries three.
    """

    def __init__(self, port: int, *, threads: int = 8, position: Callable[[], int] = lambda: 0) -> None:
        self.acknowledged: list[Acknowledged] = []
        self._port = port
        self._position = position
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def __enter__(self) -> Senders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _run(self, thread: int) -> None:
        chance = random.Random(thread)
        tokens = (b"token-%d-%d-end" % (thread, number) for number in itertools.count())
        while not self._done.is_set():
            try:
                with smtplib.SMTP("127.0.0.1", self._port, timeout=20) as connection:
                    connection.ehlo()
                    for _ in range(3):
                        self._submit(connection, next(tokens), 300_000 if chance.random() < 0.05 else 2000)
                        time.sleep(chance.random() * 0.02)
            except (OSError, smtplib.SMTPException):
                time.sleep(0.05)

    def _submit(self, connection: smtplib.SMTP, token: bytes, size_bytes: int) -> None:
        connection.mail("printer@office.example")
        connection.rcpt("someone@office.example")
        line = b"%s and nothing else\r\n" % token
        content = b"Subject: %s\r\n\r\n" % token + line * (size_bytes // len(line))
        code, text = connection.data(content)
        if code == 250:
            queue_id = text.rpartition(b" ")[2].decode()
            self.acknowledged.append(Acknowledged(token, queue_id, self._position()))
