"""The certificate that devices see: the admin's own, or a leaf of the box's own CA.

Rules:
- The local CA is made once. The leaf is made anew when names or addresses change and at two thirds of its
  life, by a short-lived process (issue_certificate.py); here PEM files are only loaded.
- Whether it is due is looked at daily, and at a handshake, every ten seconds at most: an address that DHCP
  brings late is noticed by the first device that comes by it, and an idle box does nothing.
- At a wrong clock nothing is renewed; a first leaf is made all the same, dated by the last known time.
- An expired leaf is served on, with a warning: most devices do not look, and mail matters more.
- A file that changes is taken up within a second of use; a bad one leaves the last good one in place, with
  an alert.

It must not know SMTP, nor import what makes certificates.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pi_relay import maillog, state
from pi_relay.config import Config, Wrong, secret_files
from pi_relay.validity import certificate_blocks, validity

from .addresses import private_addresses

DIRECTORY = "tls"  # in the state folder
CA_CERTIFICATE, CA_KEY, DEVICE_PEM = "ca.pem", "ca.key", "device.pem"
EXPIRED = "the certificate that devices see has expired; it is served all the same"

_LOOK_AGAIN_SECONDS = 1.0  # at the files
_JUDGE_AGAIN_SECONDS = 10.0  # whether a new leaf is due
_AFTER_FAILURE_SECONDS = 3600.0
_ISSUING_SECONDS_MAX = 120.0  # two RSA keys on a Pi Zero that is busy booting
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class CertificateError(Exception):
    """There is no certificate to serve, or none to be had: why, and what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message + (f" (hint: {hint})" if hint else ""))
        self.message = message
        self.hint = hint


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


@dataclass(frozen=True, slots=True)
class Served:
    """What devices see now."""

    path: str
    is_admins: bool  # and not of the local CA
    chain: str  # PEM: the leaf, then who signed it; without the key
    problem: str  # why the files as they are now are not served, "" where they are


class Certificates:
    """``ensure()`` at start, and daily; ``context()`` at each handshake.

    ``now``: seconds since the epoch.
    """

    def __init__(
        self,
        config: Config,
        state_directory: Path,
        *,
        clock_is_wrong: Callable[[], bool] = lambda: False,
        now: Callable[[], float] = time.time,
        addresses: Callable[[], tuple[str, ...]] = private_addresses,
    ) -> None:
        self._config = config
        self._state_directory = state_directory
        self._clock_is_wrong = clock_is_wrong
        self._now = now
        self._addresses = addresses
        self._context: ssl.SSLContext | None = None
        self._legacy_context: ssl.SSLContext | None = None  # the same pair, where the file has such devices
        self._chain = ""  # what the context serves, in PEM
        self._problem = ""
        self._loaded: tuple[object, ...] = ()  # what the context was made of
        self._looked_at = float("-inf")
        self._judge_at = float("-inf")
        self._issuing = asyncio.Lock()
        self._renewal: asyncio.Task[None] | None = None

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
        if self._has_expired():
            maillog.alert(reason=EXPIRED)

    async def renew(self) -> None:
        """A new leaf of the local CA now, due or not. Raises CertificateError where there can be none."""
        if self._config.tls.certificate is not None:
            self._looked_at = float("-inf")
            self.context()
            raise CertificateError(
                f"{self._config.tls.certificate} is your own certificate: it is not pi-relay's to renew",
                "renew it where it came from; the relay takes up the new files by itself",
            )
        if self._clock_is_wrong():
            raise CertificateError("the clock is wrong: a certificate that is made now would be misdated")
        async with self._issuing:
            await self._issue("it was asked for")
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

    def context(self, legacy: bool = False) -> ssl.SSLContext:
        """The server's context, made anew when the files have changed. Raises CertificateError.

        ``legacy``: the one that speaks TLS 1.0 with old ciphers too, for a device with ``legacy = true``.
        """
        now = time.monotonic()
        if self._context is None or now - self._looked_at >= _LOOK_AGAIN_SECONDS:
            self._looked_at = now
            self._take_up_changes()
        if now >= self._judge_at:
            self._judge_at = now + _JUDGE_AGAIN_SECONDS
            self._renew_where_due()
        context = self._legacy_context if legacy else self._context
        assert context is not None
        return context

    def served(self) -> Served:
        """Raises CertificateError where nothing can be served."""
        self.context()
        certificate = self._config.tls.certificate
        return Served(
            path=os.fspath(certificate or self.directory / DEVICE_PEM),
            is_admins=certificate is not None,
            chain=self._chain,
            problem=self._problem,
        )

    def troubles(self) -> list[str]:
        """What an admin should know of, in words."""
        found = [self._problem] if self._problem else []
        return [*found, EXPIRED] if self._has_expired() else found

    def _has_expired(self) -> bool:
        try:
            return self._now() >= validity(self._chain)[1] and not self._clock_is_wrong()
        except ValueError:
            return False

    # ── loading ──────────────────────────────────────────────────────────────────────────────────

    def _take_up_changes(self) -> None:
        tls = self._config.tls
        certificate, key = tls.certificate or self.directory / DEVICE_PEM, tls.key
        legacy = any(device.legacy for device in self._config.devices)
        found = (tls.version_min, legacy, _stamp(certificate), _stamp(key) if key else None)
        if found == self._loaded:
            return
        contexts = [_context(tls.version_min), *([_legacy_context()] if legacy else [])]
        try:
            secret_files.refuse_open(key or certificate)
            chain = certificate_blocks(_text_of(certificate))
            for context in contexts:
                # An empty passphrase rather than a question at the terminal.
                context.load_cert_chain(certificate, key, lambda: b"")
        except (OSError, ValueError, Wrong) as error:
            words = f"the certificate in {certificate} cannot be loaded: {error}"
            if self._context is None:
                hint = getattr(error, "hint", "") or "run `pi-relay check`, as the relay's user or with sudo"
                raise CertificateError(words, hint) from None
            self._problem = f"{words}; the last good one is served on"
            maillog.alert(reason=self._problem)
        else:
            self._context, self._legacy_context = contexts[0], contexts[-1]
            self._chain, self._problem = chain, ""
        self._loaded = found

    # ── the local leaf ───────────────────────────────────────────────────────────────────────────

    def _renew_where_due(self) -> None:
        """In a task of its own: the handshake does not wait for it."""
        with contextlib.suppress(CertificateError, RuntimeError):  # no loop: a command that only looks
            if self._config.tls.certificate is None and self._reason() and not self._clock_is_wrong():
                self._renewal = asyncio.get_running_loop().create_task(self._renew_quietly())

    async def _renew_quietly(self) -> None:
        try:
            await self._ensure_leaf()
        except CertificateError as problem:
            maillog.alert(reason=str(problem))

    async def _ensure_leaf(self) -> None:
        async with self._issuing:
            leaf = self._read_leaf()
            reason = self._reason()
            if not reason or (leaf is not None and self._clock_is_wrong()):
                return
            try:
                await self._issue(reason)
            except CertificateError as problem:
                self._judge_at = time.monotonic() + _AFTER_FAILURE_SECONDS
                if leaf is None:
                    raise
                maillog.alert(reason=f"{problem}; the old one is served on")

    def _reason(self) -> str:
        leaf = self._read_leaf()
        return renewal_reason(leaf, names_of(self._config.hostname), self._addresses(), self._now())

    def _read_leaf(self) -> Leaf | None:
        try:
            return Leaf.from_text(_text_of(self.directory / DEVICE_PEM))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CertificateError(
                f"{self.directory / DEVICE_PEM} cannot be read: {error.strerror}"
            ) from None

    async def _issue(self, reason: str) -> None:
        """Raises CertificateError in words."""
        names, addresses = names_of(self._config.hostname), self._addresses()
        # A clock that has lost its year must not date the leaf before a time that has certainly passed.
        now = max(self._now(), state.last_known_time(self._state_directory))
        arguments = [
            os.fspath(self.directory), f"--now={now:.0f}", *(f"--name={name}" for name in names),
            *(f"--address={ip_address(address)}" for address in addresses),
        ]  # fmt: skip
        failure = await _run_issuer(arguments)
        if failure:
            raise CertificateError(f"no certificate could be made in {self.directory}: {failure}")
        maillog.notice(f"made a new certificate for {', '.join((*names, *addresses))}: {reason}")


def _context(version_min: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[version_min]
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


def _legacy_context() -> ssl.SSLContext:
    """As OpenSSL 3 has to be asked for what old devices speak: by version, and by security level."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with warnings.catch_warnings():  # we know that it is old
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("DEFAULT:3DES:@SECLEVEL=0")
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


async def _run_issuer(arguments: Sequence[str]) -> str:
    """What went wrong, "" where nothing did."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "pi_relay.submission.issue_certificate", *arguments,
            stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
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


def _text_of(path: Path) -> str:
    return path.read_text(encoding="ascii", errors="replace")


def _stamp(path: Path) -> tuple[object, ...]:
    """Differs whenever the file is another one or has been written to."""
    try:
        found = path.stat()
    except OSError:
        return (path,)
    return path, found.st_mtime_ns, found.st_size, found.st_ino
