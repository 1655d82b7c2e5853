"""Certificates for TLS servers of tests, made by the openssl command line: a CA, and leaves it signed."""

from __future__ import annotations

import hashlib
import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Leaf:
    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def fingerprint(self) -> str:
        der = ssl.PEM_cert_to_DER_cert(self.certificate.read_text())
        return hashlib.sha256(der).hexdigest()


class Authority:
    """A CA in ``directory``; ``certificate`` is what a client has to trust."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.certificate = directory / "ca.pem"
        self._key = directory / "ca.key"
        self._openssl(
            "req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.certificate, "-days", "30",
            "-subj", "/CN=Test CA", "-addext", "keyUsage=critical,keyCertSign", at="10 days ago",
        )  # fmt: skip

    def leaf(self, names: str = "DNS:localhost,IP:127.0.0.1,IP:::1", *, at: str = "") -> Leaf:
        """For two days from now, or from ``at`` ("5 days ago"), which needs faketime."""
        stem = self._directory / hashlib.sha256(f"{names} {at}".encode()).hexdigest()[:12]
        leaf = Leaf(stem.with_suffix(".pem"), stem.with_suffix(".key"))
        self._openssl(
            "req", "-x509", *_NEW_KEY, "-keyout", leaf.key, "-out", leaf.certificate, "-days", "2",
            "-subj", "/CN=leaf", "-addext", f"subjectAltName={names}", "-CA", self.certificate,
            "-CAkey", self._key, "-addext", "basicConstraints=CA:FALSE", at=at,
        )  # fmt: skip
        return leaf

    def _openssl(self, *arguments: str | Path, at: str = "") -> None:
        fake = ("faketime", at) if at and shutil.which("faketime") else ()
        subprocess.run([*fake, "openssl", *map(str, arguments)], check=True, capture_output=True)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
