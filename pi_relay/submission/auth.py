"""Whether a password is right, and how often one may guess.

Rules: scrypt runs off the loop, in one worker thread: guesses cost one core at most, and 16 MiB. Where
several wait for it, addresses that failed least go first: a crowd of guessers does not hold up a device. An
unknown user name takes as long as a wrong password. Failures of an address are slowed for some minutes, more
with each; a connection is cut at GUESSES_MAX. A success is remembered for a while, as a keyed digest: never
the password. It must not know SMTP, nor who may do what.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
import secrets
import time
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pi_relay import passwords
from pi_relay.submission.replies import AUTH_BAD_BASE64, AUTH_BAD_RESPONSE, Refused

GUESSES_MAX = 5  # on one connection
SUCCESS_BELIEVED_SECONDS = 600.0
FAILURES_FORGOTTEN_SECONDS = 600.0
DELAY_MAX_SECONDS = 10.0
_REMEMBERED_MAX = 256


class Authenticator:
    """Checks passwords against hashes. ``delay_seconds``: what each earlier failure of an address adds."""

    def __init__(
        self, *, delay_seconds: float = 1.0, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._delay_seconds = delay_seconds
        self._monotonic = monotonic
        self._key = secrets.token_bytes(32)
        self._successes: dict[bytes, float] = {}  # digest -> when it was last right
        self._failures: dict[str, tuple[int, float]] = {}  # address -> how many, when the last
        self._worker: ThreadPoolExecutor | None = None
        self._working = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap: failures, turn, wake-up
        self._turns = itertools.count()

    async def check(self, username: str, password: str, password_hash: str | None, client: str) -> bool:
        """Whether ``password`` fits ``password_hash``; None: there is no such user, and nothing fits.

        ``client``: the address whose failures count. A refusal comes late where it has failed before.
        """
        now = self._monotonic()
        digest = self._digest(username, password, password_hash or "")
        if now - self._successes.get(digest, float("-inf")) < SUCCESS_BELIEVED_SECONDS:
            self._remember(digest, now)
            return True
        await self._turn(self._failures.get(client, (0, now))[0])
        try:
            right = await self._verify(password, password_hash or passwords.DUMMY_HASH)
        finally:
            self._next_turn()
        if right and password_hash is not None:
            self._remember(digest, now)
            self._failures.pop(client, None)
            return True
        await asyncio.sleep(self._failed(client, now))
        return False

    def close(self) -> None:
        if self._worker is not None:
            self._worker.shutdown(wait=False, cancel_futures=True)

    async def _turn(self, failures: int) -> None:
        """Wait for the worker; the fewest failures go first. Whoever had it calls ``_next_turn``."""
        if not self._working:
            self._working = True
            return
        wake_up = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (failures, next(self._turns), wake_up))
        try:
            await wake_up
        except asyncio.CancelledError:
            if wake_up.done() and not wake_up.cancelled():
                self._next_turn()
            raise

    def _next_turn(self) -> None:
        while self._waiting:
            wake_up = heapq.heappop(self._waiting)[2]
            if not wake_up.done():
                wake_up.set_result(None)
                return
        self._working = False

    async def _verify(self, password: str, password_hash: str) -> bool:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scrypt")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, passwords.verify, password, password_hash)

    def _digest(self, username: str, password: str, password_hash: str) -> bytes:
        # The hash is part of it: a password that was changed in the file is forgotten at once.
        secret = "\0".join((username, password, password_hash)).encode("utf-8", "surrogateescape")
        return hashlib.blake2b(secret, key=self._key, digest_size=32).digest()

    def _remember(self, digest: bytes, now: float) -> None:
        self._successes.pop(digest, None)
        self._successes[digest] = now
        if len(self._successes) > _REMEMBERED_MAX:
            del self._successes[next(iter(self._successes))]

    def _failed(self, client: str, now: float) -> float:
        """Count a failure; how long to wait before it is told."""
        count, last_at = self._failures.pop(client, (0, now))
        if now - last_at > FAILURES_FORGOTTEN_SECONDS:
            count = 0
        self._failures[client] = count + 1, now
        if len(self._failures) > _REMEMBERED_MAX:
            del self._failures[next(iter(self._failures))]
        return min(count * self._delay_seconds, DELAY_MAX_SECONDS)


# ── what a client says (RFC 4616, and the LOGIN that everybody knows) ────────────────────────────


def decode(response: bytes) -> bytes:
    """The octets of a base64 response; "=" stands for none at all (RFC 4954 4). Refused: not base64."""
    if response == b"=":
        return b""
    try:
        return b64decode(response, validate=True)
    except ValueError:
        raise Refused(AUTH_BAD_BASE64) from None


def plain(message: bytes) -> tuple[str, str]:
    """User name and password of a PLAIN message. An identity to act as is taken only if it is the user's."""
    parts = message.split(b"\0")
    if len(parts) != 3 or not parts[1] or parts[0] not in (b"", parts[1]):
        raise Refused(AUTH_BAD_RESPONSE)
    return text(parts[1]), text(parts[2])


def text(data: bytes) -> str:
    """As UTF-8; what is none survives as surrogates, and simply matches nobody."""
    return data.decode("utf-8", "surrogateescape")
