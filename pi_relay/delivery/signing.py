"""Signs what leaves with a From in a domain of `[[dkim]]`: its keys, and the hash of its body.

Rules: the body is hashed in chunks, a large one in another thread, and once: a retry, or another next hop,
finds the hash remembered. A key is read when it is first wanted and when its file has changed. Where a key
cannot be used nothing goes out unsigned: the message waits, as for any trouble of our own, and the admin is
told. It must not know next hops, sessions or the queue.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from pi_relay import dkim, maillog, signing_keys
from pi_relay.config import Dkim, Wrong, a_labels, secret_files
from pi_relay.model import Failure, FileSpan, Reply, Scope, StoredMessage
from pi_relay.signing_keys import KeyInvalid, SigningKey

CHUNK_SIZE_BYTES = 128 * 1024
BODY_HASHES_MAX = 1000
ALERT_REPEATS_AFTER_SECONDS = 86_400.0

_KEY_SIZE_MAX_BYTES = 64 * 1024


class SigningFailed(Exception):
    """A message that must be signed cannot be. Our own trouble (ACCOUNT): it waits, and never bounces."""

    def __init__(self, domain: str) -> None:
        reply = Reply(451, "4.3.5", f"the DKIM key of {domain} cannot be used")
        super().__init__(reply.text)
        self.failure = Failure(Scope.ACCOUNT, reply, False)


@dataclass(frozen=True, slots=True)
class _Loaded:
    key: SigningKey
    seen: tuple[int, int, int]  # what the file was then: inode, time of change, size


class Signer:
    """What lasts between messages: keys, hashes of bodies, and whether the admin knows of a trouble."""

    def __init__(self, clock_is_wrong: Callable[[], bool] = lambda: False) -> None:
        self._clock_is_wrong = clock_is_wrong
        self._keys: dict[Path, _Loaded] = {}
        self._body_hashes: OrderedDict[tuple[str, int], bytes] = OrderedDict()  # (queue id, size): SHA-256
        self._told: dict[Path, float] = {}  # monotonic time of the last alert, while there is trouble

    async def sign(self, entries: Sequence[Dkim], queue_id: str, message: StoredMessage) -> StoredMessage:
        """The message with a signature by each entry of its From's domain; itself where there is none.

        Raises SigningFailed, and OSError where the message's file cannot be read.
        """
        fitting = self._fitting(entries, message.header)
        if not fitting:
            return message
        keys = [await self._key(entry) for entry in fitting]
        body_hash = await self._body_hash(queue_id, message.body)
        at = None if self._clock_is_wrong() else time.time()
        fields = [
            dkim.signature(
                message.header,
                domain=entry.domain,
                selector=entry.selector,
                algorithm=key.algorithm,
                sign=key.sign,
                body_hash=body_hash,
                at=at,
            )
            for entry, key in zip(fitting, keys, strict=True)
        ]
        return replace(message, header=b"".join([*fields, message.header]))

    def _fitting(self, entries: Sequence[Dkim], header: bytes) -> list[Dkim]:
        try:
            domain = a_labels(dkim.from_domain(header))
        except Wrong:  # no name in DNS: no key of ours
            return []
        return [entry for entry in entries if entry.domain == domain]

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────

    async def _key(self, entry: Dkim) -> SigningKey:
        path = entry.key_file
        try:
            found = path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            loaded = self._keys.get(path)
            if loaded is None or loaded.seen != seen:
                # Not in the loop: the first time a large library is imported.
                loaded = _Loaded(await asyncio.to_thread(_read_key, path), seen)
                self._keys[path] = loaded
        except (OSError, Wrong, KeyInvalid) as problem:
            self._tell(path, problem)
            raise SigningFailed(entry.domain) from problem
        self._told.pop(path, None)
        return loaded.key

    def _tell(self, path: Path, problem: OSError | Wrong | KeyInvalid) -> None:
        """An alert when the trouble begins, and once a day while mail runs into it."""
        now = time.monotonic()
        if now - self._told.get(path, float("-inf")) < ALERT_REPEATS_AFTER_SECONDS:
            return
        self._told[path] = now
        match problem:
            case OSError():
                words = f"{path}: {problem.strerror}"
            case Wrong():
                words = problem.message
            case KeyInvalid():
                words = f"{path} {problem.message}"
        maillog.alert(reason=f"mail waits because its DKIM key cannot be used: {words}")

    # ── the body ─────────────────────────────────────────────────────────────────────────────────

    async def _body_hash(self, queue_id: str, body: bytes | FileSpan) -> bytes:
        if not isinstance(body, FileSpan):
            return _hash([body])
        known = self._body_hashes.get((queue_id, body.length_bytes))
        if known is None:
            known = await asyncio.to_thread(_hash_of_file, body)
            self._body_hashes[queue_id, body.length_bytes] = known
            while len(self._body_hashes) > BODY_HASHES_MAX:
                self._body_hashes.popitem(last=False)
        return known


def _read_key(path: Path) -> SigningKey:
    return signing_keys.read_key(secret_files.read_regular(path, _KEY_SIZE_MAX_BYTES))


def _hash(chunks: Iterable[bytes]) -> bytes:
    hashing = sha256()
    body = dkim.RelaxedBody(hashing.update)
    for chunk in chunks:
        body.update(chunk)
    body.close()
    return hashing.digest()


def _hash_of_file(span: FileSpan) -> bytes:
    return _hash(_chunks(span))


def _chunks(span: FileSpan) -> Iterator[bytes]:
    offset_bytes, end_bytes = span.offset_bytes, span.offset_bytes + span.length_bytes
    descriptor = os.open(span.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while offset_bytes < end_bytes:
            chunk = os.pread(descriptor, min(CHUNK_SIZE_BYTES, end_bytes - offset_bytes), offset_bytes)
            if not chunk:
                raise OSError(f"the message's file ends {end_bytes - offset_bytes} bytes too early")
            yield chunk
            offset_bytes += len(chunk)
    finally:
        os.close(descriptor)
