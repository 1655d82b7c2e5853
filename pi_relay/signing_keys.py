"""Private keys that sign mail: read, made, and told in DNS (RFC 6376, RFC 8301, RFC 8463).

Rules: the only module that knows the library for them. `cryptography` costs 13 MB, so it is imported where a
key is really read or made, and nowhere else. It must not know files, nor what is signed.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

RSA_BITS = 2048  # what fits one DNS answer over UDP, and is strong enough (RFC 8301 3.2)
RSA_BITS_MIN = 1024  # verifiers take nothing below
RSA_BITS_MAX = 4096  # nor need they take anything above
KINDS = ("rsa", "ed25519")


class KeyInvalid(Exception):
    """Why this is no key to sign with, and what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class SigningKey:
    kind: str  # of KINDS: as ``k=`` has it
    bits: int
    public: str  # base64, as ``p=`` has it
    sign: Callable[[bytes], bytes]  # the signature of these bytes

    @property
    def algorithm(self) -> str:
        """As ``a=`` has it."""
        return f"{self.kind}-sha256"

    @property
    def record(self) -> str:
        """The text of the TXT record (RFC 6376 3.6.1)."""
        return f"v=DKIM1; k={self.kind}; p={self.public}"


def read_key(pem: bytes) -> SigningKey:
    """The key of a PEM file. Raises KeyInvalid."""
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    private = _private_key(pem)
    match private:
        case rsa.RSAPrivateKey():
            public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            bits = private.key_size
            if bits < RSA_BITS_MIN:
                raise KeyInvalid(
                    f"is an RSA key of {bits} bits, which nobody accepts", "make one with `pi-relay dkim`"
                )
            return SigningKey("rsa", bits, _base64(public), _rsa_signer(private))
        case ed25519.Ed25519PrivateKey():
            public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            return SigningKey("ed25519", 256, _base64(public), _ed25519_signer(private))
        case _:
            raise KeyInvalid(
                "is neither an RSA nor an Ed25519 key, and DKIM knows no others",
                "make one with `pi-relay dkim`",
            )


def make_key(kind: str) -> bytes:
    """A new private key in PEM (PKCS #8). ``kind``: of KINDS."""
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey = (
        ed25519.Ed25519PrivateKey.generate()
        if kind == "ed25519"
        else rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
    )
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _private_key(pem: bytes) -> PrivateKeyTypes:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(pem, password=None)
    except TypeError:
        raise KeyInvalid(
            "is protected by a passphrase", "openssl pkey -in OLD -out NEW takes it off"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        is_public = b"PUBLIC KEY-----" in pem
        raise KeyInvalid(
            "holds the public key" if is_public else "holds no private key that can be read",
            "give the private key: a PEM file (-----BEGIN PRIVATE KEY-----), as `pi-relay dkim` makes it",
        ) from None


def _rsa_signer(private: object) -> Callable[[bytes], bytes]:
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
    from cryptography.hazmat.primitives.hashes import SHA256

    assert isinstance(private, rsa.RSAPrivateKey)
    return lambda data: private.sign(data, padding.PKCS1v15(), SHA256())


def _ed25519_signer(private: object) -> Callable[[bytes], bytes]:
    """RFC 8463 3: what Ed25519 signs is the SHA-256 of the data."""
    from hashlib import sha256

    from cryptography.hazmat.primitives.asymmetric import ed25519

    assert isinstance(private, ed25519.Ed25519PrivateKey)
    return lambda data: private.sign(sha256(data).digest())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
