"""The certificate that devices see: the admin's own, or a leaf of the box's own CA.

Rules:
- The local CA is made once. The leaf is made anew when names or addresses change and at two thirds of its
  life, by a short-lived process (issue_certificate.py); here PEM files are only loaded.
- At a wrong clock nothing is renewed; a first leaf is made all the same, dated by the last known time.
- An expired leaf is served on, with a warning: most devices do not look, and mail matters more.
- A file that changes is taken up within a second of use; a bad one leaves the last good one in place.

It must not know SMTP, nor import what makes certificates.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pi_relay import maillog, state
from pi_relay.config import Config, Wrong, secret_files

from .addresses import private_addresses

DIRECTORY = "tls"  # in the state folder
CA_CERTIFICATE, CA_KEY, DEVICE_PEM = "ca.pem", "ca.key", "device.pem"

_LOOK_AGAIN_SECONDS = 1.0
_ISSUING_SECONDS_MAX = 120.0  # two RSA keys on a Pi Zero that is busy booting
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class CertificateError(Exception):
    """There is no certificate to serve. The text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a leaf is made for. Stands as text above the PEM blocks, where TLS libraries skip it."""

    names: tuple[str, ...]
    addresses: tuple[str, ...]
    valid_from: float  # seconds since the epoch
    valid_until: float

    def in_text(self) -> str:
        return (
            f"names: {' '.join(self.names)}\naddresses: {' '.join(self.addresses)}\n"
            f"valid-from: {self.valid_from:.0f}\nvalid-until: {self.valid_until:.0f}\n"
        )

    @classmethod
    def from_text(cls, text: str) -> Leaf | None:
        """None where the text is not ours."""
        lines = text.partition("-----BEGIN")[0].splitlines()
        values = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        try:
            return cls(
                names=tuple(values["names"].split()),
                addresses=tuple(values["addresses"].split()),
                valid_from=float(values["valid-from"]),
                valid_until=float(values["valid-until"]),
            )
        except (KeyError, ValueError):
            return None


def renewal_reason(leaf: Leaf | None, names: Sequence[str], addresses: Sequence[str], now: float) -> str:
    """Why a new leaf is due, in words; "" where it is not.

    An address that is gone, or none at all (a box without its cable), is no reason: the old leaf still fits.
    """
    if leaf is None:
        return "there is none"
    if tuple(names) != leaf.names:
        return "the name has changed"
    if not set(addresses) <= set(leaf.addresses):
        return "the address has changed"
    if now >= leaf.valid_from + (leaf.valid_until - leaf.valid_from) * 2 / 3:
        return "two thirds of its life are over"
    return ""


def names_of(hostname: str) -> tuple[str, ...]:
    """The names by which devices may know us: the whole one, the short one, and the short one in mDNS."""
    short = hostname.partition(".")[0]
    return tuple(dict.fromkeys((hostname, short, f"{short}.local")))


class Certificates:
    """``ensure()`` at start, and daily; ``context()`` at each handshake."""

    def __init__(
        self,
        config: Config,
        state_directory: Path,
        *,
        now: Callable[[], float] = time.time,
        addresses: Callable[[], tuple[str, ...]] = private_addresses,
    ) -> None:
        self._config = config
        self._state_directory = state_directory
        self._now = now
        self._addresses = addresses
        self._started_at = time.monotonic()
        self._context: ssl.SSLContext | None = None
        self._loaded: tuple[object, ...] = ()  # what the context was made of
        self._looked_at = float("-inf")

    @property
    def directory(self) -> Path:
        """Where the local CA and its leaf are."""
        return self._state_directory / DIRECTORY

    async def ensure(self) -> None:
        """Makes or renews the local leaf where that is due. Raises CertificateError where none can be had."""
        if self._config.tls.certificate is None:
            await self._ensure_leaf()
        self._looked_at = float("-inf")
        self.context()

    async def reconfigure(self, config: Config) -> None:
        """A new configuration; raises CertificateError and keeps the last one where it cannot be served."""
        before = self._config
        self._config = config
        try:
            await self.ensure()
        except CertificateError:
            self._config = before
            raise

    def context(self) -> ssl.SSLContext:
        """The server's context, made anew when the files have changed. Raises CertificateError."""
        now = time.monotonic()
        if self._context is None or now - self._looked_at >= _LOOK_AGAIN_SECONDS:
            self._looked_at = now
            self._take_up_changes()
        assert self._context is not None
        return self._context

    # ── loading ──────────────────────────────────────────────────────────────────────────────────

    def _take_up_changes(self) -> None:
        tls = self._config.tls
        certificate, key = tls.certificate or self.directory / DEVICE_PEM, tls.key
        found = (tls.version_min, _stamp(certificate), _stamp(key) if key else None)
        if found == self._loaded:
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[tls.version_min]
        context.options |= ssl.OP_NO_RENEGOTIATION
        try:
            secret_files.refuse_open(key or certificate)
            # An empty passphrase rather than a question at the terminal.
            context.load_cert_chain(certificate, key, lambda: b"")
        except (OSError, ValueError, Wrong) as error:
            words = f"the certificate in {certificate} cannot be loaded: {error}"
            if self._context is None:
                hint = getattr(error, "hint", "") or "run `pi-relay check`"
                raise CertificateError(f"{words} ({hint})") from None
            maillog.error(f"{words}; the last good one is served on")
        else:
            self._context = context
        self._loaded = found

    # ── the local leaf ───────────────────────────────────────────────────────────────────────────

    async def _ensure_leaf(self) -> None:
        now = self._now()
        leaf = self._read_leaf()
        names, addresses = names_of(self._config.hostname), self._addresses()
        reason = renewal_reason(leaf, names, addresses, now)
        if reason and (leaf is None or not self._clock_is_wrong(now)):
            failure = await self._issue(names, addresses, now)
            if failure and leaf is None:
                raise CertificateError(f"no certificate could be made in {self.directory}: {failure}")
            if failure:
                maillog.error(f"the certificate could not be renewed: {failure}; the old one is served on")
            else:
                maillog.notice(f"made a new certificate for {', '.join((*names, *addresses))}: {reason}")
                return
        if leaf is not None and now >= leaf.valid_until and not self._clock_is_wrong(now):
            maillog.error("the certificate that devices see has expired; it is served on all the same")

    def _read_leaf(self) -> Leaf | None:
        try:
            text = (self.directory / DEVICE_PEM).read_text(encoding="ascii", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CertificateError(
                f"{self.directory / DEVICE_PEM} cannot be read: {error.strerror}"
            ) from None
        return Leaf.from_text(text)

    def _clock_is_wrong(self, now: float) -> bool:
        last_known = state.last_known_time(self._state_directory)
        return now < last_known and state.clock_is_wrong(
            now,
            last_known=last_known,
            is_synchronised=state.clock_is_synchronised(),
            running_seconds=time.monotonic() - self._started_at,
        )

    async def _issue(self, names: Sequence[str], addresses: Sequence[str], now: float) -> str:
        """What went wrong, "" where nothing did."""
        # A clock that has lost its year must not date the leaf before a time that has certainly passed.
        now = max(now, state.last_known_time(self._state_directory))
        arguments = [
            sys.executable, "-m", "pi_relay.submission.issue_certificate", os.fspath(self.directory),
            f"--now={now:.0f}", *(f"--name={name}" for name in names),
            *(f"--address={ip_address(address)}" for address in addresses),
        ]  # fmt: skip
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
            )
        except OSError as error:
            return str(error)
        try:
            async with asyncio.timeout(_ISSUING_SECONDS_MAX):
                _, said = await process.communicate()
        except TimeoutError:
            return f"it took more than {_ISSUING_SECONDS_MAX:.0f} seconds"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0:
            return ""
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the issuing process ended with status {process.returncode}"


def _stamp(path: Path) -> tuple[object, ...]:
    """Differs whenever the file is another one or has been written to."""
    try:
        found = path.stat()
    except OSError:
        return (path,)
    return path, found.st_mtime_ns, found.st_size, found.st_ino
