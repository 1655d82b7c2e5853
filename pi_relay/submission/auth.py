"""Checks user names and passwords of devices, and slows down whoever guesses.

Rules: scrypt runs in one thread beside the loop, so that guesses queue up rather than take the machine. An
unknown user takes as long as a wrong password. A success is remembered for a while as a keyed digest, so
that a device that signs in for every page costs little; passwords are never kept and never logged.
It must not know SMTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from pi_relay import passwords

REMEMBERED_SECONDS = 600.0
REMEMBERED_MAX = 64
WAITING_MAX = 16  # checks under way or waiting for the thread; beyond, nobody is kept waiting

GUESSES_FREE = 2  # a mistyped password costs nothing
GUESS_DELAY_SECONDS = 0.5  # doubled with each further guess
GUESS_DELAY_MAX_SECONDS = 8.0
GUESSES_FORGOTTEN_AFTER_SECONDS = 900.0
GUESSERS_MAX = 1024


class TooBusy(Exception):
    """More checks are waiting than can be done soon."""


class Passwords:
    """Off-loop verification with a short memory."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="auth")
        self._key = secrets.token_bytes(32)
        self._successes: OrderedDict[bytes, float] = OrderedDict()
        self._waiting = 0

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether the password is the hash's; ``password_hash`` None: an unknown user. Raises TooBusy."""
        known_hash = password_hash or passwords.DUMMY_HASH
        digest = self._digest(password, known_hash)
        if self._successes.get(digest, 0.0) > time.monotonic():
            return True
        if self._waiting >= WAITING_MAX:
            raise TooBusy
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            matches = await loop.run_in_executor(self._worker, passwords.verify, password, known_hash)
        finally:
            self._waiting -= 1
        if not matches or password_hash is None:
            return False
        self._remember(digest)
        return True

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _digest(self, password: str, password_hash: str) -> bytes:
        secret = password.encode("utf-8", "surrogateescape")
        return hmac.digest(self._key, hashlib.sha256(secret).digest() + password_hash.encode(), "sha256")

    def _remember(self, digest: bytes) -> None:
        self._successes[digest] = time.monotonic() + REMEMBERED_SECONDS
        while len(self._successes) > REMEMBERED_MAX:
            self._successes.popitem(last=False)


class Guesses:
    """Failed authentications by client address, so that a new connection is no new start."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def failed(self, address: str) -> float:
        """One more; how long its answer is to wait, in seconds."""
        count, at = self._failures.pop(address, (0, 0.0))
        now = time.monotonic()
        count = 1 if now - at > GUESSES_FORGOTTEN_AFTER_SECONDS else count + 1
        self._failures[address] = (count, now)
        while len(self._failures) > GUESSERS_MAX:
            self._failures.popitem(last=False)
        if count <= GUESSES_FREE:
            return 0.0
        return float(
            min(GUESS_DELAY_SECONDS * 2.0 ** min(count - GUESSES_FREE - 1, 10), GUESS_DELAY_MAX_SECONDS)
        )

    def succeeded(self, address: str) -> None:
        self._failures.pop(address, None)
