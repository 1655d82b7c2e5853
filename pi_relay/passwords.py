"""Passwords of devices: one hash format, made by ``pi-relay password`` and checked at AUTH.

Rules: pure but for ``secrets``; hashlib only. A hash reads ``scrypt$N$r$p$SALT$HASH``, salt and hash in
base64 (RFC 4648 section 4). It must not know the configuration, SMTP or the loop: one hash takes some tens
of milliseconds and 16 MiB, so the caller takes it off the loop.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode

COST_N, COST_R, COST_P = 2**14, 8, 1
SALT_SIZE_BYTES = 16
HASH_SIZE_BYTES = 32
# A hash from the file must not be able to take the machine's memory: scrypt needs 128 * N * r bytes.
MEMORY_MAX_BYTES = 64 * 1024 * 1024

# Printers' panels: no 0 O o 1 l I, nothing outside ASCII, groups that can be read aloud.
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
_GROUPS, _GROUP_SIZE = 4, 4


class HashInvalid(ValueError):
    """The text is no password hash of ours."""


def hash_password(password: str, *, salt: bytes | None = None) -> str:
    """The hash of ``password`` (UTF-8) as it stands in the file, with a new random salt."""
    salt = secrets.token_bytes(SALT_SIZE_BYTES) if salt is None else salt
    digest = _scrypt(password, salt, COST_N, COST_R, COST_P, HASH_SIZE_BYTES)
    return f"scrypt${COST_N}${COST_R}${COST_P}${b64encode(salt).decode()}${b64encode(digest).decode()}"


def verify(password: str, password_hash: str) -> bool:
    """Whether ``password`` is the one of ``password_hash``; False also where the hash is not one."""
    try:
        n, r, p, salt, expected = parse_hash(password_hash)
        digest = _scrypt(password, salt, n, r, p, len(expected))
    except ValueError:
        return False
    return hmac.compare_digest(digest, expected)


def parse_hash(password_hash: str) -> tuple[int, int, int, bytes, bytes]:
    """N, r, p, salt and hash of the text; HashInvalid says what is wrong with it."""
    parts = password_hash.split("$")
    if len(parts) != 6 or parts[0] != "scrypt":
        raise HashInvalid("not of the form scrypt$N$r$p$SALT$HASH")
    try:
        n, r, p = (int(part) for part in parts[1:4])
        salt, digest = (b64decode(part, validate=True) for part in parts[4:])
    except ValueError as error:
        raise HashInvalid("N, r and p must be numbers, SALT and HASH base64") from error
    if n < 2 or n & (n - 1) or r < 1 or not 1 <= p <= 16 or 128 * n * r > MEMORY_MAX_BYTES:
        raise HashInvalid("N, r or p is out of range")
    if not salt or not 16 <= len(digest) <= 64:
        raise HashInvalid("SALT or HASH has a wrong length")
    return n, r, p, salt, digest


def generate() -> str:
    """A new password: four groups of four look-alike-free characters, 19 in all, 80 bits."""
    groups = ("".join(secrets.choice(_LETTERS) for _ in range(_GROUP_SIZE)) for _ in range(_GROUPS))
    return "-".join(groups)


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int, size_bytes: int) -> bytes:
    return hashlib.scrypt(
        # A client may send bytes that are no UTF-8; they reach us as surrogates and simply do not match.
        password.encode("utf-8", "surrogateescape"),
        salt=salt,
        n=n,
        r=r,
        p=p,
        maxmem=MEMORY_MAX_BYTES + 1024 * 1024,
        dklen=size_bytes,
    )


# Checked where the user name is unknown, so that an unknown name takes as long as a wrong password.
DUMMY_HASH = f"scrypt${COST_N}${COST_R}${COST_P}${'A' * 22}==${'A' * 43}="
