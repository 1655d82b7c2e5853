"""Makes the certificate that devices see: ``python -m pi_relay.submission.issue_certificate``.

A process of its own, for the library that makes certificates would stay in the daemon's memory for good. It
makes the local CA if there is none, and signs a new leaf with a new key.

Files, in the folder given: ``ca.pem`` and ``ca.key``, made once; ``device.pem``, mode 0600: a few lines that
say what the leaf is made for (certificates.py reads them), its key, the leaf, the CA. One file, so that key
and certificate can never be of two minds.

Rules: the answer is the exit status and the files. Started by root, it acts as the owner of the state folder,
for the relay has to be able to read what it makes. It must not know the configuration or the daemon.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pi_relay.state import write_durably

from .certificates import CA_CERTIFICATE, CA_KEY, DEVICE_PEM, Leaf

KEY_SIZE_BITS = 2048
# The longest that phones and desktops accept (Apple's rule of 2019), counted from the first valid second.
LEAF_LIFE = datetime.timedelta(days=825) - datetime.timedelta(seconds=1)
# A device whose clock is a little behind must take it as well.
LEAF_BACKDATING = datetime.timedelta(days=1)
# From 2050 on X.509 writes times in another form (RFC 5280 4.1.2.5), which old printers do not read. The
# early start serves a box whose clock was wrong when it made its CA.
CA_FROM = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
CA_UNTIL = datetime.datetime(2049, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done; 1: the files could not be written, said on stderr."""
    parser = argparse.ArgumentParser(prog="pi_relay.submission.issue_certificate")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--name", action="append", required=True, help="a DNS name; the first is the subject")
    parser.add_argument("--address", action="append", default=[], help="an IP address")
    parser.add_argument("--now", type=float, required=True, help="seconds since the epoch")
    options = parser.parse_args(arguments)
    os.umask(0o077)
    try:
        _act_as_owner_of(options.directory.parent)
        options.directory.mkdir(parents=True, exist_ok=True)
        issue(options.directory, options.name, options.address, options.now)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _act_as_owner_of(directory: Path) -> None:
    if os.geteuid() != 0 or not directory.exists():
        return
    owner = directory.stat()
    if owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def issue(directory: Path, names: Sequence[str], addresses: Sequence[str], now: float) -> None:
    """Signs a leaf for the names and addresses and replaces the old one. Raises OSError, ValueError."""
    ca, ca_key = _local_ca(directory, names[0])
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_SIZE_BITS)
    # A leaf that outlives its CA would not be valid anyway; one before it neither.
    begin = min(max(_moment(now) - LEAF_BACKDATING, CA_FROM), CA_UNTIL - LEAF_BACKDATING)
    end = min(begin + LEAF_LIFE, CA_UNTIL)
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
    alternatives += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
    leaf = (
        x509.CertificateBuilder()
        .subject_name(_common_name(names[0]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True, key_encipherment=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    facts = Leaf(tuple(names), tuple(addresses), begin.timestamp(), end.timestamp())
    pem = [facts.in_text().encode("ascii"), _key_pem(key), _certificate_pem(leaf), _certificate_pem(ca)]
    write_durably(directory / DEVICE_PEM, b"".join(pem))


def _local_ca(directory: Path, name: str) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
    """The CA in the folder; a new one where there is none, or only half of one."""
    try:
        key = serialization.load_pem_private_key((directory / CA_KEY).read_bytes(), None)
        ca = x509.load_pem_x509_certificate((directory / CA_CERTIFICATE).read_bytes())
    except FileNotFoundError:
        return _new_ca(directory, name)
    if not isinstance(key, rsa.RSAPrivateKey) or key.public_key() != ca.public_key():
        raise ValueError(f"{directory / CA_KEY} does not belong to {directory / CA_CERTIFICATE}")
    return ca, key


def _new_ca(directory: Path, name: str) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_SIZE_BITS)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # The digits tell this CA from one that the same box had before: devices keep them by subject.
    subject = _common_name(f"pi-relay CA {identifier.digest.hex()[:8]} ({name})")
    ca = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(CA_FROM)
        .not_valid_after(CA_UNTIL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    write_durably(directory / CA_KEY, _key_pem(key))
    write_durably(directory / CA_CERTIFICATE, _certificate_pem(ca), mode=0o644)
    return ca, key


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])  # 64: RFC 5280 A.1


def _usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: rsa.RSAPrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


if __name__ == "__main__":
    sys.exit(main())
